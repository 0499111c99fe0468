"""What the server pushes besides wake-ups: messages of plain channels, and that a key was changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

Listener = Callable[[Sequence[Any]], None]
"""Gets the push: its kind, then what came."""

_COMMANDS: Final = {"message": ("SUBSCRIBE", "UNSUBSCRIBE"), "pmessage": ("PSUBSCRIBE", "PUNSUBSCRIBE")}
KINDS: Final = frozenset({b"message", b"pmessage", b"invalidate"})


class News:
    """Who is told of what. `ask` sends such a command on the connection, if there is one."""

    def __init__(self, ask: Callable[[str, str], None]) -> None:
        self._ask = ask
        self._listeners: dict[tuple[str, bytes], set[Listener]] = {}

    def listen(self, kind: str, name: str, listener: Listener) -> None:
        """`kind` is `message` (of a channel), `pmessage` (of channels by pattern) or `invalidate` (of a key).

        Of a key one is told once after each time at which one has asked for it, with `CLIENT CACHING` before a read.
        """
        listeners = self._listeners.setdefault((kind, name.encode()), set())
        if not listeners and kind in _COMMANDS:
            self._ask(_COMMANDS[kind][0], name)
        listeners.add(listener)

    def unlisten(self, kind: str, name: str, listener: Listener) -> None:
        listeners = self._listeners.get((kind, name.encode()), set())
        listeners.discard(listener)
        if not listeners and self._listeners.pop((kind, name.encode()), None) is not None and kind in _COMMANDS:
            self._ask(_COMMANDS[kind][1], name)

    def resume(self) -> None:
        """On a new connection."""
        for kind, name in self._listeners:
            if kind in _COMMANDS:
                self._ask(_COMMANDS[kind][0], name.decode())

    def heard(self, push: Sequence[Any]) -> None:
        kind = push[0].decode()
        if kind != "invalidate":
            self._tell((kind, push[1]), push)
        elif push[1] is None:  # all keys were flushed
            for one in [one for one in self._listeners if one[0] == kind]:
                self._tell(one, push)
        else:
            for key in push[1]:
                self._tell((kind, key), push)

    def _tell(self, of: tuple[str, bytes], push: Sequence[Any]) -> None:
        for listener in tuple(self._listeners.get(of, ())):
            listener(push)
