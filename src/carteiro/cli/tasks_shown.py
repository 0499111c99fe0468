"""What `carteiro tasks` prints of tasks: rows, JSON, and all of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from carteiro.cli.output import age, as_json, as_text, cut, heading, local_time, printable
from carteiro.message import NO_HEADERS
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.tasks.following import nodes_in
from carteiro.tasks.inspecting import TaskDetails, TaskView
from carteiro.tasks.records import Progress

COLUMNS: Final = ("id", "task", "status", "queue", "attempt", "since", "took", "worker", "progress")
BAR: Final = 30
NAMED: Final = 5
"""How many of those whose results a task takes are named."""
_OWN: Final = msgspec.json.Decoder(tuple[list[msgspec.Raw], dict[str, msgspec.Raw]])


def app_of(view: TaskView) -> str | None:
    return None if view.place is None else view.place.app


def _queue(view: TaskView) -> str | None:
    place = view.place
    if place is None:
        return None
    return place.queue if place.priority == "normal" else f"{place.queue} ({place.priority})"


def row(view: TaskView) -> Sequence[object]:
    progress = view.progress
    return (
        view.id, view.task or None, view.status, _queue(view), view.attempt, age(SYSTEM_CLOCK.time() - view.at),
        age(_took(view)), view.worker or None, None if progress is None else cut(told(progress), 60),
    )  # fmt: skip


def _took(view: TaskView) -> float | None:
    return view.at - view.sent if view.is_over and view.sent is not None else None


def told(progress: Progress) -> str:
    """`12 of 40 (30%), encoding`."""
    text = f"{progress.done:g}" + (f" of {progress.total:g} ({_share(progress):.0%})" if progress.total else "")
    return f"{text}, {progress.note}" if progress.note else text


def _share(progress: Progress) -> float:
    return min(1.0, max(0.0, progress.done / progress.total)) if progress.total else 0.0


def _bar(progress: Progress) -> str:
    full = round(_share(progress) * BAR)
    return f"[{'#' * full}{'-' * (BAR - full)}] " if progress.total else ""


def view_json(view: TaskView) -> dict[str, Any]:
    place = view.place
    return {
        "id": view.id,
        "task": view.task or None,
        "status": view.status,
        "app": None if place is None else place.app,
        "queue": None if place is None else place.queue,
        "priority": None if place is None else place.priority,
        "attempt": view.attempt,
        "sent": view.sent,
        "at": view.at,
        "took": _took(view),
        "until": view.until,
        "waits_for": view.waits_for or None,
        "worker": view.worker or None,
        "run": view.run,
        "error": view.error,
        "progress": view.progress,
    }


def details_json(details: TaskDetails) -> dict[str, Any]:
    record, letter = details.record, details.letter
    flaw = None if record is None else record.flaw
    succeeded = record is not None and record.status == "succeeded"
    return {
        **view_json(details.view),
        "arguments": _arguments(details),
        "result": msgspec.Raw(record.result) if record is not None and succeeded else None,
        "failed_with": details.failed_with,
        "error_type": None if flaw is None else flaw.kind.replace(":", "."),
        "traceback": None if flaw is None else flaw.traceback or None,
        "dead_letter": None if letter is None else {"queue": letter.queue, "id": letter.id},
        "attempts": [] if letter is None else letter.history,
    }


def _arguments(details: TaskDetails) -> Any:
    """Those by name; of a part of a run those that it was given, `[[by position], {by name}]`; None if not known."""
    if details.node is not None:
        return msgspec.Raw(details.node.arguments)
    return None if details.message is None else as_json(details.message.body, details.message.headers)


def describe(details: TaskDetails) -> str:
    view, record, letter = details.view, details.record, details.letter
    facts: list[tuple[str, str]] = [("status", _status_line(view))]
    if details.failed_with is not None:
        facts.append(("failed by", f"{details.failed_with}, which it was to wait for"))
    if view.progress is not None:
        facts.append(("progress", f"{_bar(view.progress)}{told(view.progress)}"))
    if view.place is not None:
        facts.append(("queue", f"{_queue(view)} of {view.place.app}"))
    if view.run is not None:
        facts.append(("run", view.run))
    if view.sent is not None:
        facts.append(("sent", f"{local_time(view.sent)}, {age(SYSTEM_CLOCK.time() - view.sent)} ago"))
    if view.is_over or view.status in ("running", "retrying", "waiting"):
        took = _took(view)
        since = "ended" if view.is_over else "since"
        facts.append((since, local_time(view.at) + (f", {age(took)} after it was sent" if took is not None else "")))
    if view.worker:
        facts += [("attempt", str(view.attempt)), ("worker", view.worker)]
    if letter is not None:
        facts.append(("dead in", f"{letter.queue}, as {letter.id}"))
    lines = [heading(f"{view.task or 'task'} {view.id}"), *(f"  {name:<9}  {text}" for name, text in facts)]
    lines += _section("arguments", _arguments_text(details))
    if record is not None and record.status == "succeeded":
        lines += _section("result", as_text(record.result, NO_HEADERS))
    if letter is not None:
        lines += ["", heading("attempts")]
        for failure in letter.history:
            lines.append(f"  {failure.attempt}  {local_time(failure.at)}  {failure.error}")
            lines += (f"     {line}" for line in failure.traceback.rstrip().splitlines())
    elif record is not None and record.flaw is not None:
        lines += _section("error", record.flaw.traceback.rstrip() or record.flaw.text)
    return "\n".join(line if line.startswith("\x1b[1m") else printable(line) for line in lines)


def _status_line(view: TaskView) -> str:
    text: str = view.status
    if view.waits_for:
        text += f" for `{view.waits_for}`"
    if view.until is not None and not view.is_over:
        text += f", until {local_time(view.until)}"
    return f"{text}: {view.error}" if view.error else text


def _section(name: str, text: str | None) -> list[str]:
    return [] if text is None else ["", heading(name), *(f"  {line}" for line in text.splitlines())]


def _arguments_text(details: TaskDetails) -> str | None:
    """Of a part of a run a line each: first what it takes, then its own."""
    if details.node is None:
        message = details.message
        return None if message is None else as_text(message.body, message.headers)
    node = details.node
    taken = [f".{number}" for number in nodes_in(node.takes)] if node.takes is not None else []
    lines = [] if node.takes is None else [f"the result of {', '.join(taken)}"]
    if len(taken) > NAMED:
        lines = [f"the results of {len(taken)} tasks, {taken[0]} to {taken[-1]}"]
    positional, named = _OWN.decode(node.arguments)
    lines += (bytes(value).decode() for value in positional)
    lines += (f"{name} = {bytes(value).decode()}" for name, value in named.items())
    return "\n".join(lines) or "none"
