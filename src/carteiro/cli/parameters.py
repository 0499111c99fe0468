"""The options that several commands have, and how their text becomes a value."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from carteiro.durations import seconds
from carteiro.errors import ConfigurationError
from carteiro.ports.clock import SYSTEM_CLOCK

AppOption = Annotated[
    str | None, typer.Option("--app", metavar="MODULE:APP", help="Use the brokers of this app, and declare its groups.")
]
BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="Use this broker; with --app, the one that the app calls so. Without either: CARTEIRO_BROKER, or "
        "./carteiro.db.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class ListByDefault(TyperGroup):
    """A group of commands that without one is its `list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = not args or (args[0].startswith("-") and args[0] not in ("--help", "-h"))
        return super().parse_args(ctx, ["list", *args] if bare else args)


def length(text: str | float) -> float:
    """A length of time in seconds, from `90`, `5m`, `1h30m`."""
    if not isinstance(text, str):
        return text  # an option's default
    try:
        return seconds(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from error


def moment(text: str) -> float:
    """A point in time, in seconds since the epoch: a date or date and time, a length of time ago, or `earliest`."""
    if text == "earliest":
        return 0.0
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        pass
    try:
        return SYSTEM_CLOCK.time() - seconds(text)
    except ConfigurationError:
        raise typer.BadParameter(
            f"`{text}` is no time: give 2026-11-01, 2026-11-01T12:30, 7d (ago), or earliest"
        ) from None


def header(text: str) -> str:
    """A header as `name=value`."""
    if not text.partition("=")[0].strip() or "=" not in text:
        raise typer.BadParameter(f"`{text}` is no header: write it as name=value")
    return text


def headers(given: list[str] | None) -> dict[str, str]:
    return {name.strip(): value for name, _, value in (text.partition("=") for text in given or ())}
