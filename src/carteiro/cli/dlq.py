"""`carteiro dlq`: the dead letters, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Final

import typer

from carteiro.cli.exits import CommandError, UsageError
from carteiro.cli.output import (
    age,
    as_text,
    confirm,
    heading,
    local_time,
    message_json,
    plural,
    printable,
    show_json,
    show_table,
)
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption, ListByDefault, YesOption, length
from carteiro.cli.target import Target
from carteiro.message import DeadLetter
from carteiro.ports.broker import Inspector
from carteiro.ports.clock import SYSTEM_CLOCK

cli = typer.Typer(
    cls=ListByDefault,
    help="What groups gave up on, and what becomes of it. Without a command: list.",
    rich_markup_mode=None,
)

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="As in dlq_checkout; see `carteiro dlq list`.")]
COLUMNS: Final = ("queue", "id", "topic", "group", "attempts", "died", "reason")


@cli.command("list")
def list_(
    queue: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="Only this one.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, oldest first.")] = 100,
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """List dead letters, oldest first."""

    async def look() -> list[tuple[str, DeadLetter]]:
        async with Target(app, broker).inspectors() as inspectors:
            found = {name: await one.dead_letters(queue, limit=limit + 1) for name, one in inspectors.items()}
            if queue is not None and not any(found.values()):
                raise _none_in(queue, [letter for one in inspectors.values() for letter in await one.dead_letters()])
        return [(name if len(found) > 1 else "", letter) for name, letters in found.items() for letter in letters]

    letters = sorted(asyncio.run(look()), key=lambda one: one[1].at)
    shown = letters[:limit]
    if json:
        show_json([{**_json(letter), **({"broker": name} if name else {})} for name, letter in shown])
        return
    if not shown:
        print("no dead letters")
        return
    several = ("broker",) if shown[0][0] else ()
    show_table((*several, *COLUMNS), [(*((name,) if name else ()), *_row(letter)) for name, letter in shown])
    if len(letters) > limit:
        print(f"and more: --limit {limit * 10} shows up to so many")


@cli.command()
def show(
    queue: QueueArgument,
    id: str,
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """Show why a message is dead.

    Every attempt with its time, error and traceback; its headers; its body.
    """

    async def look() -> DeadLetter:
        async with Target(app, broker).inspector() as inspector:
            return (await _letters(inspector, queue, [id]))[0]

    letter = asyncio.run(look())
    if json:
        show_json(_json(letter))
    else:
        print(_describe(letter))


@cli.command()
def replay(
    queue: QueueArgument,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    all: Annotated[bool, typer.Option("--all", help="All of the queue.")] = False,
    edit: Annotated[
        bool, typer.Option("--edit", help="Edit the body of the one ID in $VISUAL or $EDITOR first.")
    ] = False,
    app: AppOption = None,
    broker: BrokerOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Send dead letters back to the group that failed.

    To no other group; they start at attempt 1 again.
    """
    if bool(ids) == all:
        raise UsageError("which dead letters? Give their ids, or --all")
    if edit and (ids is None or len(ids) != 1):
        raise UsageError("--edit takes one dead letter: give one id")

    async def act() -> int:
        async with Target(app, broker).inspector() as inspector:
            chosen = None if all else ids
            letters = await _letters(inspector, queue, chosen, 1 if all else None)
            body = None
            if edit:
                from carteiro.cli.editor import edited

                body = await asyncio.to_thread(edited, letters[0].message)
                confirm(f"replay {letters[0].id} of {queue} with this body?", yes)
            return await inspector.replay(queue, ids=chosen, body=body)

    count = asyncio.run(act())
    if json:
        show_json({"queue": queue, "replayed": count})
    else:
        print(f"{plural(count, 'message')} replayed")


@cli.command()
def purge(
    queue: QueueArgument,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="TIME", parser=length, help="Died longer ago than 7d, 12h, …"),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="All of the queue.")] = False,
    app: AppOption = None,
    broker: BrokerOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Delete dead letters for good."""
    if (older_than is None) != all:
        raise UsageError("which dead letters? Give --older-than 7d, or --all")

    async def act() -> int:
        async with Target(app, broker).inspector() as inspector:
            await _letters(inspector, queue, None, 1)
            which = "all dead letters" if older_than is None else f"the dead letters older than {age(older_than)}"
            confirm(f"delete {which} of {queue}?", yes)
            limit = None if older_than is None else timedelta(seconds=older_than)
            return await inspector.purge_dead(queue, older_than=limit)

    count = asyncio.run(act())
    if json:
        show_json({"queue": queue, "deleted": count})
    else:
        print(f"{plural(count, 'dead letter')} deleted")


async def _letters(
    inspector: Inspector, queue: str | None, ids: Sequence[str] | None, limit: int | None = None
) -> Sequence[DeadLetter]:
    """Those that are meant, all of `ids` among them; raises CommandError, naming what there is, if one is missing."""
    letters = await inspector.dead_letters(queue, ids=ids, limit=limit)
    if queue is None:
        return letters
    missing = [id for id in ids or () if id not in {letter.id for letter in letters}]
    if letters and not missing:
        return letters
    everywhere = await inspector.dead_letters()
    if any(letter.queue == queue for letter in everywhere):
        raise CommandError(f"`{queue}` has no dead letter {', '.join(missing)}: see `carteiro dlq list {queue}`")
    raise _none_in(queue, everywhere)


def _none_in(queue: str, everywhere: Sequence[DeadLetter]) -> CommandError:
    queues = sorted({letter.queue for letter in everywhere})
    return CommandError(
        f"there are no dead letters in `{queue}`"
        + (f": there are some in {', '.join(queues)}" if queues else ", nor any at all")
    )


def _ago(at: float) -> str | None:
    return age(SYSTEM_CLOCK.time() - at)


def _row(one: DeadLetter) -> Sequence[object]:
    return one.queue, one.id, one.message.topic, one.group, one.message.attempt, f"{_ago(one.at)} ago", one.reason


def _json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "queue": letter.queue,
        "id": letter.id,
        "topic": letter.topic,
        "group": letter.group,
        "reason": letter.reason,
        "at": letter.at,
        "message": message_json(letter.message),
        "history": letter.history,
    }


def _describe(letter: DeadLetter) -> str:
    message = letter.message
    lines = [
        heading(f"{letter.queue} {letter.id}"),
        f"  reason     {letter.reason}",
        f"  topic      {message.topic}" + (f"  (by {letter.topic})" if letter.topic != message.topic else ""),
        f"  group      {letter.group}",
        f"  message    {message.id}" + (f"  key {message.key}" if message.key is not None else ""),
        f"  caused by  {message.correlation_id}",
        f"  published  {local_time(message.published)}",
        f"  died       {local_time(letter.at)}, {_ago(letter.at)} ago",
        "",
        heading(plural(message.attempt, "attempt")),
    ]
    for failure in letter.history:
        lines.append(f"  {failure.attempt}  {local_time(failure.at)}  {failure.error}")
        lines += (f"       {line}" for line in failure.traceback.rstrip().splitlines())
    lost = message.attempt - len(letter.history)
    if lost > 0:
        lines.append(f"  {plural(lost, 'attempt')} more left no trace: the worker died or lost its lease")
    if message.headers:
        lines += ["", heading("headers"), *(f"  {name}: {value}" for name, value in sorted(message.headers.items()))]
    body = as_text(message.body, message.headers)
    lines += ["", heading("body"), *(f"  {line}" for line in body.splitlines())]
    return "\n".join(line if line.startswith("\x1b[1m") else printable(line) for line in lines)
