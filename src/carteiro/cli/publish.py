"""`carteiro publish`: one message, or one a line of stdin."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from carteiro.app import Carteiro
from carteiro.cli.bodies import BodyArgument, TopicArgument, outgoing, read
from carteiro.cli.exits import UsageError
from carteiro.cli.output import is_terminal, plural, show_json
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption, header, headers, length
from carteiro.cli.target import Target
from carteiro.message import Outgoing
from carteiro.telemetry.logs import configure

CHUNK: Final = 1000
"""How many lines are published in one call."""


def publish(
    topic: TopicArgument,
    body: BodyArgument,
    app: AppOption = None,
    broker: BrokerOption = None,
    key: Annotated[str | None, typer.Option("--key", help="What ordered handlers keep the order by.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", parser=header, help="Can be repeated.")
    ] = None,
    type: Annotated[str | None, typer.Option("--type", help="The type that selects a handler.")] = None,
    delay: Annotated[
        float | None, typer.Option("--delay", metavar="TIME", parser=length, help="Not before then: 90, 5m, 1h30m.")
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="A second message with this id is dropped for a while.")
    ] = None,
    mandatory: Annotated[bool, typer.Option("--mandatory", help="Fail if no group gets it.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="With BODY `-`: each line of stdin is a message.")] = False,
    json: JsonOption = False,
) -> None:
    """Publish a message and print its id.

    It returns when the broker has the message safe.
    """
    if lines and (body != "-" or id is not None):
        raise UsageError("--lines reads the messages from stdin: give `-` as BODY, and no --id")
    configure("warning", "brief")
    target = Target(app, broker)
    resolved = target.resolve_shared()

    def message(text: bytes) -> Outgoing:
        return outgoing(
            resolved, topic, text, broker=target.name, key=key, headers=headers(header), type=type, delay=delay, id=id
        )

    if lines:
        count = asyncio.run(_publish_lines(resolved, message, mandatory))
        if json:
            show_json({"topic": topic, "published": count})
        else:
            print(f"published {plural(count, 'message')} to {topic}")
        return
    sent = message(read(body))
    asyncio.run(_publish(resolved, sent, mandatory))
    if json:
        show_json({"topic": topic, "id": sent.id})
    else:
        print(sent.id)


async def _publish(app: Carteiro, message: Outgoing, mandatory: bool) -> None:
    async with app:
        await app.connections.of(message).publisher.publish(message, mandatory=mandatory)


async def _publish_lines(app: Carteiro, message: Callable[[bytes], Outgoing], mandatory: bool) -> int:
    count = 0
    async with app:
        with _progress() as advance:
            while chunk := await asyncio.to_thread(lambda: list(itertools.islice(sys.stdin.buffer, CHUNK))):
                messages = [message(line) for line in chunk if line.strip()]
                if messages:
                    await app.connections.of(messages[0]).publisher.publish_many(messages, mandatory=mandatory)
                count += len(messages)
                advance(len(messages), sum(map(len, chunk)))
    return count


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr if that is a terminal: of the bytes of a file, and without an end for a pipe."""
    if not is_terminal(sys.stderr):
        yield lambda messages, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    about = os.fstat(sys.stdin.fileno())
    columns = (BarColumn(), TextColumn("{task.fields[messages]:,} messages"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = about.st_size if stat.S_ISREG(about.st_mode) else None
        task = progress.add_task("", total=total, messages=0)

        def advance(messages: int, size: int) -> None:
            sofar = progress.tasks[0].fields["messages"]
            progress.update(task, advance=size, messages=sofar + messages)

        yield advance
