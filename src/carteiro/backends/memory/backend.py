"""From a `memory://` URL to a backend."""

from __future__ import annotations

from collections.abc import Sequence

from carteiro.backends.memory.broker import MemoryBroker
from carteiro.backends.memory.state import State
from carteiro.backends.memory.store import MemoryStore
from carteiro.ports.broker import Check
from carteiro.ports.clock import Clock

_named: dict[str, State] = {}


def open_backend(url: str, *, clock: Clock) -> MemoryBackend:
    """`memory://`: a fresh broker each call. `memory://name`: one for the process, on its first caller's clock."""
    name = url.partition("://")[2]
    if not name:
        return MemoryBackend(State(clock), url)
    if name not in _named:
        _named[name] = State(clock)
    return MemoryBackend(_named[name], url)


class MemoryBackend:
    """A handle on one in-memory broker and its store. All its handles belong to one event loop."""

    def __init__(self, state: State, url: str) -> None:
        self._state = state
        self._url = url
        self.store = MemoryStore(state.entries, state.joins)
        self.broker = MemoryBroker(state, self.store)

    async def doctor(self) -> Sequence[Check]:
        queues = self._state.queues.values()
        waiting = sum(len(queue.rows) for queue in queues)
        return [
            Check("broker", "ok", f"`{self._url}` holds {waiting} messages for {len(queues)} subscriptions"),
            Check(
                "durability",
                "warning",
                f"what `{self._url}` holds is gone when this process ends: for messages that stay, "
                "use sqlite:///path/file.db",
            ),
        ]
