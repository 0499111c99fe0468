"""`carteiro topics`: what waits where, and what an operator can do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

import msgspec
import typer

from carteiro.cli.exits import CommandError, UsageError
from carteiro.cli.output import (
    age,
    as_text,
    confirm,
    cut,
    is_terminal,
    local_time,
    message_json,
    plural,
    rich_table,
    show_json,
    show_table,
)
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption, ListByDefault, YesOption, moment
from carteiro.cli.target import Target
from carteiro.ports.broker import GroupStatus, Inspector
from carteiro.ports.clock import SYSTEM_CLOCK

EVERY: Final = 1.0
"""Seconds between two looks of `--watch`."""

COLUMNS: Final = ("topic", "group", "waiting", "delayed", "retrying", "in flight", "dead", "oldest", "consumers")


cli = typer.Typer(
    cls=ListByDefault, help="What waits for each group of each topic. Without a command: list.", rich_markup_mode=None
)

TopicArgument = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic or pattern, as `topics list` shows it.")]
GroupOption = Annotated[
    str | None, typer.Option("--group", metavar="GROUP", help="Needed where the topic has several.")
]


@cli.command("list")
def list_(
    app: AppOption = None,
    broker: BrokerOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until ctrl-C.")] = False,
    all: Annotated[bool, typer.Option("--all", help="Also carteiro's own topics, which begin with `$`.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what waits for each group.

    By column: what could be handled now, what is delayed or waits behind another of its key, what waits for a retry,
    what is being handled, what is dead, the age of the oldest that is not done, and how many consumers there are.
    """
    if watch and not json and not is_terminal():
        raise UsageError("--watch needs a terminal, or --json for one line each second")
    asyncio.run(_list(Target(app, broker), watch, all, json))


async def _list(target: Target, watch: bool, all: bool, json: bool) -> None:
    async with target.inspectors() as inspectors:
        several = len(inspectors) > 1
        columns = ("broker", *COLUMNS) if several else COLUMNS

        async def look() -> list[tuple[str, GroupStatus]]:
            return [
                (name, one)
                for name, inspector in inspectors.items()
                for one in await inspector.groups()
                if all or not one.topic.startswith("$")
            ]

        async def rows() -> list[Sequence[object]]:
            return [(name, *_row(one)) if several else _row(one) for name, one in await look()]

        if watch and not json:
            await _watch(columns, rows)
            return
        while True:
            if json:
                found = await look()
                show_json([{"broker": name, **msgspec.structs.asdict(one)} if several else one for name, one in found])
            elif lines := await rows():
                show_table(columns, lines)
            else:
                print("no group has subscribed to anything yet")
            if not watch:
                return
            await SYSTEM_CLOCK.sleep(EVERY)


async def _watch(columns: Sequence[str], rows: Callable[[], Awaitable[list[Sequence[object]]]]) -> None:
    from rich.live import Live

    with Live(rich_table(columns, await rows()), auto_refresh=False) as live:
        while True:
            await SYSTEM_CLOCK.sleep(EVERY)
            live.update(rich_table(columns, await rows()), refresh=True)


def _row(one: GroupStatus) -> Sequence[object]:
    return (
        one.topic, one.group, one.waiting, one.delayed, one.retrying, one.in_flight, one.dead, age(one.oldest),
        one.consumers,
    )  # fmt: skip


@cli.command()
def peek(
    topic: TopicArgument,
    group: GroupOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 10,
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """Show the next messages of a group, without taking them."""

    async def look() -> None:
        async with Target(app, broker).inspector() as inspector:
            messages = await inspector.peek(topic, await _group(inspector, topic, group), limit)
        if json:
            show_json([message_json(message) for message in messages])
        elif messages:
            show_table(
                ("id", "topic", "key", "published", "attempt", "body"),
                [
                    (one.id, one.topic, one.key, local_time(one.published), one.attempt,
                     cut(as_text(one.body, one.headers, indent=0), 200))
                    for one in messages
                ],
            )  # fmt: skip
        else:
            print("nothing waits")

    asyncio.run(look())


@cli.command()
def rewind(
    topic: TopicArgument,
    to: Annotated[
        float,
        typer.Option(
            "--to", metavar="TIME", parser=moment, help="2026-11-01, 2026-11-01T12:30 (here), 7d (ago) or earliest."
        ),
    ],
    group: GroupOption = None,
    app: AppOption = None,
    broker: BrokerOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Deliver again to a group what was published since then.

    That takes a topic with retention: app.topic("orders.placed", retain="7d").
    """

    async def act(inspector: Inspector, chosen: str) -> int:
        return await inspector.rewind(topic, chosen, to)

    since = "the beginning" if to == 0 else local_time(to)
    question = f"deliver again what was published to {topic} since {since}, to the group {{group}}?"
    count, chosen = asyncio.run(_act(Target(app, broker), topic, group, act, question, yes))
    _tell(
        {"topic": topic, "group": chosen, "delivered_again": count}, json, f"{plural(count, 'message')} delivered again"
    )


@cli.command()
def purge(
    topic: TopicArgument,
    group: GroupOption = None,
    app: AppOption = None,
    broker: BrokerOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Drop what waits for a group.

    What is in flight stays.
    """

    async def act(inspector: Inspector, chosen: str) -> int:
        return await inspector.purge(topic, chosen)

    question = f"drop all that waits on {topic} for the group {{group}}?"
    count, chosen = asyncio.run(_act(Target(app, broker), topic, group, act, question, yes))
    _tell({"topic": topic, "group": chosen, "dropped": count}, json, f"{plural(count, 'message')} dropped")


@cli.command("remove-group")
def remove_group(
    topic: TopicArgument,
    group: GroupOption = None,
    app: AppOption = None,
    broker: BrokerOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """End a group: it receives nothing more.

    What waits for it is gone. A worker or a publisher that declares it begins it anew.
    """

    async def act(inspector: Inspector, chosen: str) -> int:
        await inspector.remove_group(topic, chosen)
        return 0

    question = f"remove the group {{group}} of {topic}, with all that waits for it?"
    _, chosen = asyncio.run(_act(Target(app, broker), topic, group, act, question, yes))
    _tell({"topic": topic, "group": chosen, "removed": True}, json, f"removed the group {chosen} of {topic}")


async def _act(target: Target, topic: str, group: str | None, act: Any, question: str, yes: bool) -> tuple[int, str]:
    """Ask, and do it; returns how many messages it concerned, and the group."""
    async with target.inspector() as inspector:
        chosen = await _group(inspector, topic, group)
        confirm(question.format(group=chosen), yes)
        return await act(inspector, chosen), chosen


async def _group(inspector: Inspector, topic: str, group: str | None) -> str:
    """The group that is meant; raises CommandError if there is no such, or several and none was named."""
    statuses = await inspector.groups()
    groups = [one.group for one in statuses if one.topic == topic]
    if group in groups:
        return group
    if not groups:
        topics = sorted({one.topic for one in statuses if not one.topic.startswith("$")})
        raise CommandError(f"no group has subscribed to `{topic}`: there is {', '.join(topics) or 'nothing yet'}")
    if group is not None:
        raise CommandError(f"`{topic}` has no group `{group}`: it has {', '.join(groups)}")
    if len(groups) > 1:
        raise UsageError(f"`{topic}` has several groups, name one with --group: {', '.join(groups)}")
    return groups[0]


def _tell(result: dict[str, object], json: bool, line: str) -> None:
    if json:
        show_json(result)
    else:
        print(line)
