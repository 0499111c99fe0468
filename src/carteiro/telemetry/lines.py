"""One line when a message is received and one when it is done with, for a person who watches a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TextIO

from carteiro.current import current
from carteiro.message import Message
from carteiro.ports.clock import Clock
from carteiro.telemetry.logs import colours

_DIM: Final = "2"
_RED: Final = "31"
_GREEN: Final = "32"
_YELLOW: Final = "33"
_BLUE: Final = "34"


class MessageLines:
    """Consume middleware that writes to `stream`: topic, group, correlation id, and how long handling took."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._coloured = colours(stream)

    async def __call__(self, message: Message, call_next: Callable[[Message], Awaitable[Any]]) -> Any:
        again = f"attempt {message.attempt}" if message.attempt > 1 else ""
        self._line("received", _BLUE, message, again)
        started = self._clock.monotonic()
        try:
            result = await call_next(message)
        except asyncio.CancelledError:
            self._line("interrupted", _YELLOW, message, self._since(started))
            raise
        except BaseException as error:
            text = " ".join(str(error).split())
            self._line("failed", _RED, message, f"{self._since(started)}  {type(error).__name__}: {text}")
            raise
        self._line("processed", _GREEN, message, self._since(started))
        return result

    def _group(self) -> str:
        delivery = current.get()
        return "" if delivery is None else f"{delivery.subscription.group}  "

    def _since(self, started: float) -> str:
        return f"{(self._clock.monotonic() - started) * 1000:.1f} ms"

    def _line(self, word: str, colour: str, message: Message, rest: str) -> None:
        at = datetime.fromtimestamp(self._clock.time()).astimezone().strftime("%H:%M:%S.%f")[:-3]
        text = (
            f"{self._paint(_DIM, at)} {self._paint(colour, f'{word:<11}')} {message.topic}  "
            f"{self._paint(_DIM, f'{self._group()}{message.correlation_id}')}  {rest}"
        )
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone: no reason for a message to fail
            self._stream.write(text.rstrip() + "\n")

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text
