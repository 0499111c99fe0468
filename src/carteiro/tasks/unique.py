"""Of several tasks that are one: only the first is sent, and who sends another gets its handle.

The *lock* of a unique key is a value in the store: whose id it is, since when, and whether its message is sent. Who
finds it there gets that task, unless it is over (the worker that ended it died before it could say so) or its sender
said nothing for a while after it had taken the lock: then the message may never have been sent, and is sent now, under
the same id. A task that is over takes its lock away in the same commit; a lock with a window ends by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store
from carteiro.tasks.records import RUN_TTL, record_of, task_key

PATIENCE: Final = 60.0
"""Seconds after which a sender that took a lock and said nothing more is taken to have died."""


class Unique(msgspec.Struct, frozen=True):
    """While a task of this `key` waits or runs, or for `window` after it was sent, another is not sent.

    `key` is made of the arguments, which are attributes of what it gets, `lambda a: a.user_id`; or it is text; by
    default it is all the arguments. With a `window` the lock lasts so long, whether the task is over or not.
    """

    key: str | Callable[[Any], object] | None = None
    window: Duration | None = None

    def __post_init__(self) -> None:
        if self.window is not None and seconds(self.window) <= 0:
            raise ConfigurationError("Unique(window=…) must be over 0 seconds")


def unique_of(given: bool | str | Unique | None) -> Unique | None:
    """What a user gave as `unique=`. Raises ConfigurationError."""
    if given is None or given is False:
        return None
    if given is True:
        return Unique()
    if isinstance(given, str):
        return Unique(given)
    if isinstance(given, Unique):
        return given
    raise ConfigurationError(f"unique={given!r}: it is True, a key, or Unique(key=…, window=…)")


def lock_key(task: str, unique: Unique, arguments: Mapping[str, Any], body: bytes) -> str:
    """The store's key of the lock; `arguments` are by name, with those left to their defaults; `body` is as sent."""
    if unique.key is None:
        key = hashlib.blake2b(body, digest_size=12).hexdigest()
    else:
        key = unique.key if isinstance(unique.key, str) else str(unique.key(_Arguments(arguments)))
    return f"unique:{task}:{key}"


class _Arguments:
    """Arguments as attributes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)


class _Lock(msgspec.Struct, frozen=True, array_like=True):
    id: str
    since: float
    sent: bool


_lock_of = msgspec.msgpack.Decoder(_Lock).decode
_pack = msgspec.msgpack.Encoder().encode


class Taken(msgspec.Struct, frozen=True):
    """How it stands with a lock: the task's id, and whether it is ours to send."""

    id: str
    ours: bool
    version: int = 0


class Locks:
    """The locks in one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def take(self, key: str, id: str, window: float | None) -> Taken:
        """Take the lock for the task `id`, or say whose it is."""
        ttl = RUN_TTL if window is None else window
        while True:
            entry = (await self._store.get((key,))).get(key)
            now, expect = self._clock.time(), 0
            if entry is not None:
                lock, expect = _lock_of(entry.value), entry.version
                if window is None and await self._is_over(lock.id):
                    pass
                elif lock.sent or (lock.id != id and now - lock.since < PATIENCE):
                    return Taken(lock.id, ours=False)
                else:
                    id = lock.id
            write = Write(key, _pack(_Lock(id, now, False)), ttl=ttl, expect=expect)
            if (await self._store.write([write]))[0]:
                return Taken(id, ours=True, version=expect + 1)

    async def sent(self, key: str, taken: Taken, window: float | None) -> None:
        """Its message is safe. If the task is over already its lock is gone, and stays so."""
        await self._say(key, taken, _Lock(taken.id, self._clock.time(), True), window)

    async def not_sent(self, key: str, taken: Taken, window: float | None) -> None:
        """Nobody knows whether its message is safe: whoever comes next sends it, under the same id, at once."""
        await self._say(key, taken, _Lock(taken.id, 0.0, False), window)

    async def _say(self, key: str, taken: Taken, lock: _Lock, window: float | None) -> None:
        """Change the lock that was taken. The version alone does not tell it from a later one, which began at 1 too."""
        entry = (await self._store.get((key,))).get(key)
        if entry is None or _lock_of(entry.value).id != taken.id:
            return
        ttl = RUN_TTL if window is None else window
        await self._store.write([Write(key, _pack(lock), ttl=ttl, expect=taken.version)])

    async def _is_over(self, id: str) -> bool:
        key = task_key(id)
        record = record_of((await self._store.get((key,))).get(key))
        return record is not None and record.is_over


async def let_go(store: Store, key: str, id: str) -> None:
    """Take the lock away if it is still that of the task `id`."""
    entry = (await store.get((key,))).get(key)
    if entry is not None and _lock_of(entry.value).id == id:
        await store.write([Write(key, None, expect=entry.version)])
