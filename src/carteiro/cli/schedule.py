"""`carteiro schedule`: when an app's schedules fire, how that went, and what an operator does about them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import Annotated, Any, Final, get_args

import typer

from carteiro.cli.exits import CommandError, UsageError
from carteiro.cli.output import confirm, show_json
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption, ListByDefault, YesOption
from carteiro.cli.schedule_shown import Sighted, State, show_schedules, show_times
from carteiro.cli.target import Target
from carteiro.cli.tasks import STATUSES
from carteiro.errors import ConfigurationError
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.schedules.book import Schedules
from carteiro.schedules.declaring import Plan, Publish
from carteiro.schedules.specs import dues
from carteiro.schedules.status import ScheduleStatus, tz_of
from carteiro.telemetry.logs import configure

cli = typer.Typer(
    cls=ListByDefault,
    help="Schedules: when each fires, how the last firing went, and pausing, resuming, firing and removing them. "
    "Without a command: list.",
    rich_markup_mode=None,
)

STATES: Final[tuple[State, ...]] = get_args(State)
OUTCOMES: Final = ("sent", "skipped", *STATUSES)
"""How a firing may stand: of a message no more is known than that it was sent."""
NEVER: Final = datetime.max.replace(tzinfo=UTC)


def state(text: str) -> str:
    if text not in STATES:
        raise typer.BadParameter(f"`{text}` is no state of a schedule: it is {', '.join(STATES)}")
    return text


def outcome(text: str) -> str:
    if text not in OUTCOMES:
        raise typer.BadParameter(f"`{text}` is no outcome: it is {', '.join(OUTCOMES)}")
    return text


Done = tuple[str, dict[str, Any]]
"""What to say of a schedule with which something was done, as a line and as JSON."""
Act = Callable[[Sighted], Awaitable[Done]]
NamesArgument = Annotated[list[str], typer.Argument(metavar="NAME...")]


@cli.command("list")
def list_(
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="PATTERN", help="Only those called so; `trial-*` is all that begin so."),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="STATE", parser=state, help=f"{', '.join(STATES)}. Can be repeated."),
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            "--outcome",
            metavar="OUTCOME",
            parser=outcome,
            help=f"Of the last firing: {', '.join(OUTCOMES)}. Can be repeated.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, by when they are due.")] = 50,
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """List schedules, by when they are due.

    By column: `next`, in the zone of a cron, else in yours; `due for` is one that nobody has fired, since nothing runs
    that fires, or that waits for the last one to be over. `outcome` of the last firing: the status of the task or the
    run, `sent` for a message, `skipped` where the one before was not over. `late` is how long after its time it was
    sent. One that is `not started` is in the code, and nothing that fires has run since.

    \b
    carteiro schedule list --app shop:app
    carteiro schedule list --outcome failed --json
    """

    async def look() -> list[Sighted]:
        async with Target(app, broker).schedules() as books:
            return [one for name, book in books.items() for one in await _all(name, book)]

    found = [
        one
        for one in asyncio.run(look())
        if fnmatchcase(one.status.name, name or "*")
        and (not state or one.state in state)
        and (not outcome or (one.status.last is not None and one.status.last.outcome in outcome))
    ]
    found.sort(key=lambda one: (STATES.index(one.state), one.status.next or NEVER, one.status.name))
    if json:
        show_json([one.as_json() for one in found[:limit]])
        return
    if not found:
        print("no such schedules" if name or state or outcome else "no schedules")
        return
    show_schedules(found[:limit], SYSTEM_CLOCK.time())
    if len(found) > limit:
        print(f"and {len(found) - limit} more: --limit {limit * 10} shows up to so many")


@cli.command("next")
def next_(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="So many.")] = 10,
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """Show when a schedule is due next, in its zone and in yours.

    Of one that is paused: if it were resumed now. Without the jitter, which makes a firing so much later at most.
    """

    async def look() -> tuple[Sighted, list[datetime]]:
        async with Target(app, broker).schedules() as books:
            one = await _find(books, name)
            return one, await _upcoming(one, count)

    one, times = asyncio.run(look())
    if json:
        told = one.as_json()
        show_json(
            {
                **{key: told[key] for key in ("name", "app", "schedule", "tz", "state")},
                "due": [t.timestamp() for t in times],
            }
        )
        return
    notes = {
        "paused": ", paused: if it is resumed now",
        "new": ", not started: if it is started now",
        "ended": ", ended: it is not due any more",
    }
    print(f"{name}: {one.status.spec}{notes.get(one.state, '')}")
    if times:
        show_times(one, times, SYSTEM_CLOCK.time())


@cli.command()
def pause(names: NamesArgument, app: AppOption = None, broker: BrokerOption = None, json: JsonOption = False) -> None:
    """Have schedules fire no more until they are resumed, over starts and deploys."""

    async def act(one: Sighted) -> Done:
        name = one.status.name
        await one.book.pause(name)
        said = f"{name} was paused already" if one.state == "paused" else f"{name} is paused"
        return said, (await _again(one)).as_json()

    _change(names, app, broker, json, act)


@cli.command()
def resume(names: NamesArgument, app: AppOption = None, broker: BrokerOption = None, json: JsonOption = False) -> None:
    """Have paused schedules fire again from now on.

    What was due meanwhile is not made up for, but for a one-shot.
    """

    async def act(one: Sighted) -> Done:
        name = one.status.name
        await one.book.resume(name)
        resumed = await _again(one)
        said = f"{name} is resumed" if one.state == "paused" else f"{name} was not paused"
        follows = "has ended" if resumed.state == "ended" else f"next {resumed.next(SYSTEM_CLOCK.time())}"
        return f"{said}: {follows}", resumed.as_json()

    _change(names, app, broker, json, act)


@cli.command()
def remove(
    names: NamesArgument,
    app: AppOption = None,
    broker: BrokerOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove schedules that were added while running, for good. One that is in the code can only be paused."""
    confirm(f"remove {', '.join(names)}?", yes)

    async def act(one: Sighted) -> Done:
        name = one.status.name
        if one.status.in_code and app is None:  # with the app, its code says whether it still is
            raise ConfigurationError(
                f"schedule `{name}` is in the code of app `{one.app}`, which would bring it back: remove it there, or "
                "pause it (if it is gone from there, --app module:app says so)"
            )
        removed = await one.book.remove(name)
        return f"{name} is removed", {"name": name, "app": one.app, "removed": removed}

    _change(names, app, broker, json, act)


@cli.command()
def fire(names: NamesArgument, app: AppOption = None, json: JsonOption = False) -> None:
    """Fire schedules now, besides their times, also while they are paused. Prints the id of what is sent.

    It is sent as a worker of the app would send it, so that --app is needed.
    """
    configure("warning", "brief")
    if app is None:
        raise UsageError("which app? What is fired is sent by it: name it with --app module:app")
    resolved = Target(app, None).resolve_shared()

    async def act(one: Sighted) -> Done:
        id = await one.book.fire(one.status.name)
        return f"{one.status.name} is fired: {id}", {"name": one.status.name, "app": one.app, "id": id}

    async def fire_all() -> tuple[list[Done], list[str]]:
        async with resolved:
            return await _each(names, {resolved.name: resolved.schedules}, act)

    _tell(*asyncio.run(fire_all()), json=json)


# -- finding them ------------------------------------------------------------------------------------------------------


async def _all(app: str, book: Schedules) -> list[Sighted]:
    """Those that the store has, and those of the code that it has not yet."""
    found = {status.name: _sighted(app, book, status) for status in await book.list()}
    for name, plan in book.declared.items():
        found.setdefault(name, _unstarted(app, book, plan))
    return list(found.values())


async def _find(books: Mapping[str, Schedules], name: str) -> Sighted:
    """Raises CommandError where there is none of this name, or where several apps have one."""
    found: list[Sighted] = []
    troubles: list[str] = []
    for app, book in books.items():
        try:
            found.append(_sighted(app, book, await book.get(name)))
        except ConfigurationError as error:
            if name in book.declared:
                found.append(_unstarted(app, book, book.declared[name]))
            troubles.append(str(error))
    if len(found) > 1:
        apps = ", ".join(f"`{one.app}`" for one in found)
        raise CommandError(f"the apps {apps} have a schedule `{name}` each: say which with --app module:app")
    if not found:
        raise CommandError("; ".join(troubles) or f"there is no schedule `{name}`, nor any other")
    return found[0]


def _sighted(app: str, book: Schedules, status: ScheduleStatus) -> Sighted:
    state: State = "paused" if status.paused else "ended" if status.next is None else "active"
    return Sighted(app, book, status, state)


def _unstarted(app: str, book: Schedules, plan: Plan) -> Sighted:
    what = plan.what.topic if isinstance(plan.what, Publish) else plan.what.label
    status = ScheduleStatus(plan.name, str(plan.spec), what, None, False, True, 0, tz=tz_of(plan.spec))
    return Sighted(app, book, status, "new")


async def _again(one: Sighted) -> Sighted:
    """As it is now."""
    return _sighted(one.app, one.book, await one.book.get(one.status.name))


async def _upcoming(one: Sighted, count: int) -> list[datetime]:
    if one.state != "new":
        return await one.book.upcoming(one.status.name, count)
    now = SYSTEM_CLOCK.time()
    spec = one.book.declared[one.status.name].spec
    return [datetime.fromtimestamp(due, UTC) for due in islice(dues(spec, now, now), count)]


# -- changing them -----------------------------------------------------------------------------------------------------


def _change(names: Sequence[str], app: str | None, broker: str | None, json: bool, act: Act) -> None:
    async def change() -> tuple[list[Done], list[str]]:
        async with Target(app, broker).schedules() as books:
            return await _each(names, books, act)

    _tell(*asyncio.run(change()), json=json)


async def _each(names: Sequence[str], books: Mapping[str, Schedules], act: Act) -> tuple[list[Done], list[str]]:
    """What was done, and what could not be."""
    done: list[Done] = []
    troubles: list[str] = []
    for name in names:
        try:
            one = await _find(books, name)
            if one.state == "new":
                raise CommandError(
                    f"schedule `{name}` is in the code of app `{one.app}` and not started yet: `carteiro run` or "
                    "`carteiro scheduler` starts it"
                )
            done.append(await act(one))
        except (ConfigurationError, CommandError) as error:
            troubles.append(str(error))
    return done, troubles


def _tell(done: Sequence[Done], troubles: Sequence[str], *, json: bool) -> None:
    """Raises CommandError if there were troubles."""
    if json:
        show_json([told for _, told in done])
    else:
        for line, _ in done:
            print(line)
    if troubles:
        raise CommandError("; ".join(troubles))
