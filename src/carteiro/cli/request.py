"""`carteiro request`: publish, and print the reply."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from carteiro.app import Carteiro
from carteiro.cli.bodies import BodyArgument, TopicArgument, outgoing, read
from carteiro.cli.output import as_json, is_terminal, printable, show_json
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption, header, headers, length
from carteiro.cli.target import Target
from carteiro.handlers.codecs import decoder
from carteiro.message import Message, Outgoing
from carteiro.telemetry.logs import configure


def request(
    topic: TopicArgument,
    body: BodyArgument,
    app: AppOption = None,
    broker: BrokerOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="TIME", parser=length, help="How long to wait: 5, 500ms, 1m.")
    ] = 30.0,
    key: Annotated[str | None, typer.Option("--key", help="What ordered handlers keep the order by.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", parser=header, help="Can be repeated.")
    ] = None,
    type: Annotated[str | None, typer.Option("--type", help="The type that selects a handler.")] = None,
    json: JsonOption = False,
) -> None:
    """Publish a message and print what its handler returns.

    Text is printed as it is, anything else as JSON.
    """
    configure("warning", "brief")
    target = Target(app, broker)
    resolved = target.resolve_shared()
    message = outgoing(
        resolved, topic, read(body), broker=target.name, key=key, headers=headers(header), type=type, expires=timeout
    )
    _show(asyncio.run(_request(resolved, message, timeout)), json)


async def _request(app: Carteiro, message: Outgoing, timeout: float) -> Message:
    async with app:
        return await app.connections.of(message).request(message, timeout)


def _show(reply: Message, json: bool) -> None:
    value: Any = decoder(Any)(reply)
    if json or not isinstance(value, str | bytes):
        show_json(as_json(reply.body, reply.headers))
    elif isinstance(value, bytes):
        sys.stdout.buffer.write(value)
    else:
        print(printable(value) if is_terminal() else value)
