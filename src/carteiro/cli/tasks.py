"""`carteiro tasks`: what is known of tasks, and what an operator does about them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
import typer

from carteiro.cli.exits import CommandError, UsageError
from carteiro.cli.output import (
    confirm,
    plural,
    show_json,
    show_table,
)
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption, ListByDefault, YesOption, moment
from carteiro.cli.target import Target
from carteiro.cli.tasks_shown import COLUMNS, app_of, describe, details_json, row, view_json
from carteiro.tasks.inspecting import Inspection, NotDone, Sighted, TaskDetails, TaskView, Wanted
from carteiro.tasks.records import Status
from carteiro.tasks.runs import RunInspection

cli = typer.Typer(
    cls=ListByDefault,
    help="What became of tasks, cancelling and retrying them. Without a command: list.",
    rich_markup_mode=None,
)

STATUSES: Final[tuple[Status, ...]] = (
    "pending", "running", "retrying", "waiting", "succeeded", "failed", "cancelled", "expired",
)  # fmt: skip
EVERY_ONE: Final = 100_000
"""How many of those that wait are cancelled in one go, of each queue and priority."""


def status(text: str) -> str:
    if text not in STATUSES:
        raise typer.BadParameter(f"`{text}` is no status: it is {', '.join(STATUSES)}")
    return text


StatusOption = Annotated[
    list[str] | None,
    typer.Option("--status", metavar="STATUS", parser=status, help=f"{', '.join(STATUSES)}. Can be repeated."),
]
TaskOption = Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only tasks of this name.")]
QueueOption = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Only tasks of this queue.")]


@cli.command("list")
def list_(
    status: StatusOption = None,
    task: TaskOption = None,
    queue: QueueOption = None,
    since: Annotated[
        float | None,
        typer.Option(
            "--since", metavar="TIME", parser=moment, help="With that status since then: 1h (ago), 2026-11-01T12:30."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, newest first.")] = 50,
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """List tasks, those first whose status is the newest.

    By column: `since`, for how long it has had its status; `took`, from when it was sent to its end. Of those that wait
    in their queues the next 1,000 of each are looked at; a RabbitMQ shows none. Those that wait for their time are
    counted, and not listed.

    \b
    carteiro tasks list --status failed --since 1d
    carteiro tasks list --queue slow --json
    """
    wanted = Wanted(_statuses(status), task, queue, since or 0.0)

    async def look() -> tuple[Sighted, list[TaskView]]:
        async with Target(app, broker).tasks() as inspection:
            sighted = await inspection.tasks(wanted)
            return sighted, await inspection.completed(sighted.tasks[:limit])

    sighted, shown = asyncio.run(look())
    if json:
        show_json([view_json(view) for view in shown])
        return
    if shown:
        apps = {view.place.app for view in shown if view.place is not None}
        several = ("app",) if len(apps) > 1 else ()
        show_table((*several, *COLUMNS), [(*((app_of(view),) if several else ()), *row(view)) for view in shown])
    else:
        print("no such tasks" if wanted != Wanted() else "no tasks")
    if len(sighted.tasks) > limit:
        print(f"and {len(sighted.tasks) - limit} more: --limit {limit * 10} shows up to so many")
    if sighted.unseen and _asks_for(wanted, "pending"):
        print(f"and {sighted.unseen} more that wait in their queues, not looked at: `carteiro topics` counts them")
    if sighted.later and _asks_for(wanted, "pending"):
        print(f"and about {sighted.later} more that wait for their time")


@cli.command()
def show(id: str, app: AppOption = None, broker: BrokerOption = None, json: JsonOption = False) -> None:
    """Show all that is known of a task.

    Its arguments, times, progress, result or error with the traceback, and each failed attempt of one that is dead.
    """

    async def look() -> TaskDetails:
        async with Target(app, broker).tasks() as inspection:
            return await _with_its_run(inspection, await _found(inspection, id))

    details = asyncio.run(look())
    if json:
        show_json(details_json(details))
    else:
        print(describe(details))


@cli.command()
def cancel(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    status: StatusOption = None,
    task: TaskOption = None,
    queue: QueueOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also those of ID that are not found: they may wait where the broker shows none."),
    ] = False,
    app: AppOption = None,
    broker: BrokerOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Cancel tasks, for good.

    What waits will not run; what runs is interrupted at its next await, in a process at once. Either by id, or all of a
    task, queue or status that are not over and no part of a run: `carteiro workflow cancel` is for those.

    \b
    carteiro tasks cancel 5a1bc09d0d3cb0a7b1-2f
    carteiro tasks cancel --task encode --status pending
    """
    wanted = Wanted(_statuses(status), task, queue)
    if bool(ids) == (wanted != Wanted()):
        raise UsageError("which tasks? Give their ids, or --task, --queue or --status")

    async def act() -> tuple[list[dict[str, Any]], list[str]]:
        async with Target(app, broker).tasks() as inspection:
            if ids:
                return await _cancel_these(inspection, ids, force)
            sighted = await inspection.tasks(wanted, look=EVERY_ONE)
            meant = [view for view in sighted.tasks if not view.is_over and view.run is None]
            if meant:
                confirm(f"cancel {plural(len(meant), 'task')}?", yes)
            troubles = []
            if sighted.unseen and _asks_for(wanted, "pending"):
                troubles.append(f"{sighted.unseen} more wait in their queues: `carteiro topics purge` drops those")
            return [await _cancel(inspection, view) for view in meant], troubles

    done, troubles = asyncio.run(act())
    if json:
        show_json(done)
    else:
        for one in done:
            was = f"{one['task']}, {one['was']}" if one["task"] else one["was"]
            print(f"cancelled {one['id']} ({was})" if one["cancelled"] else f"{one['id']} was over: {one['was']}")
        if not done and not troubles:
            print("no such tasks")
    if troubles:
        raise CommandError("; ".join(troubles))


@cli.command()
def retry(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """Try failed tasks again.

    The dead letter of each goes back to its queue, at attempt 1; steps that it had finished are not repeated. A part of
    a run is refused: start the run again. All of a queue: `carteiro tasks list --status failed` names them.
    """

    async def act() -> tuple[list[str], list[str]]:
        done: list[str] = []
        troubles: list[str] = []
        async with Target(app, broker).tasks() as inspection:
            for id in ids:
                try:
                    await inspection.retry(await _found(inspection, id))
                    done.append(id)
                except (NotDone, CommandError) as error:
                    troubles.append(str(error))
        return done, troubles

    done, troubles = asyncio.run(act())
    if json:
        show_json([{"id": id, "retried": id in done} for id in ids])
    else:
        for id in done:
            print(f"{id} is sent again")
    if troubles:
        raise CommandError("; ".join(troubles))


async def _found(inspection: Inspection, id: str) -> TaskDetails:
    """Raises CommandError for one that nothing is known of."""
    details = await inspection.task(id)
    if details is None:
        raise _unknown(id)
    return details


async def _with_its_run(inspection: Inspection, details: TaskDetails) -> TaskDetails:
    """A part of a run that waits may be one that will not run any more."""
    view, node = details.view, details.node
    if view.run is None or node is None or view.status not in ("pending", "retrying", "waiting"):
        return details
    run = await RunInspection(inspection).run(view.run)
    status = view.status if run is None else run.nodes[node.edge.node].status
    return msgspec.structs.replace(
        details,
        view=view if status == view.status else msgspec.structs.replace(view, status=status, until=None, waits_for=""),
    )


def _unknown(id: str) -> CommandError:
    return CommandError(
        f"nothing is known of a task `{id}`: it was never sent, or is forgotten, or waits where the broker does not "
        "show it"
    )


async def _cancel_these(
    inspection: Inspection, ids: Sequence[str], force: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    done: list[dict[str, Any]] = []
    troubles: list[str] = []
    for id in ids:
        details = await inspection.task(id)
        if details is None and not force:
            troubles.append(f"{_unknown(id)}; --force cancels it all the same")
            continue
        view = TaskView(id, "", "pending", "", 1, 0.0) if details is None else details.view
        try:
            done.append(await _cancel(inspection, view))
        except NotDone as error:
            troubles.append(str(error))
    return done, troubles


async def _cancel(inspection: Inspection, view: TaskView) -> dict[str, Any]:
    cancelled = await inspection.cancel(view)
    return {"id": view.id, "task": view.task or None, "was": view.status, "cancelled": cancelled}


def _statuses(given: list[str] | None) -> frozenset[Status]:
    return frozenset(one for one in STATUSES if one in (given or ()))


def _asks_for(wanted: Wanted, status: Status) -> bool:
    return not wanted.statuses or status in wanted.statuses
