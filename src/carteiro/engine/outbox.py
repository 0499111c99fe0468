"""The outbox: while a broker is away, what is published to it is kept in a file, and forwarded when it is back.

A publish goes to the broker while nothing waits for that broker in the file; if the broker cannot take it, or something
waits, it goes into the file, behind what is there, whichever process of the machine that came from. It returns when it
is safe in either. One process at a time forwards, in the order of the file: a batch is taken out once the broker has
it. So a crash between the two forwards the batch again, with the same ids, and for DEDUPED seconds a broker that can
tell drops what it has; nothing is lost. What the broker does not take, though it is there, is set aside in the file. An
error that says nothing of the messages, as while the app closes or the interpreter ends, leaves them where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Final

import msgspec

from carteiro.engine.failures import describe
from carteiro.engine.outbox_file import TERM, Kept, OutboxFile, OutboxStatus
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import (
    BrokerCorrupted,
    BrokerError,
    BrokerUnavailable,
    CircuitOpen,
    ConfigurationError,
    Unencodable,
    UnsupportedFeature,
)
from carteiro.message import Native, Outgoing, new_id
from carteiro.ports.broker import Unrouted
from carteiro.ports.clock import Clock
from carteiro.ports.records import pack, unpack

log = logging.getLogger("carteiro.outbox")

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outgoing]]]
"""Publish these; returns those that no group gets. Raises BrokerUnavailable, and then they may or may not be there."""

AT_ONCE: Final = 5000
"""Messages that go to the broker in one call while nothing waits."""
DEDUPED: Final = 600.0
"""Seconds for which the broker remembers what was forwarded: time for another process to take over."""
LOOK: Final = 5.0
"""Seconds between two looks for what a process that is gone has left."""
LAST_BATCH: Final = 5.0
"""Seconds for a batch that is under way when the app closes."""


class Outbox:
    """One process's side of what is kept for one broker, on one event loop: open from `open` to `close`.

    `broker` is the app's name for it; the file goes by `identity`, for names change with the app's configuration.
    `send` tries the broker for as long as a caller may be made to wait, `forward` once. `dedupes`: whether the broker
    drops a message whose id it knows.
    """

    def __init__(
        self, file: OutboxFile, broker: str, identity: str, clock: Clock, *, send: Send, forward: Send,
        dedupes: bool, unrouted: Unrouted,
    ) -> None:  # fmt: skip
        self._file = file
        self._broker = broker
        self._identity = identity
        self._clock = clock
        self._send = send
        self._forward = forward
        self._dedupes = dedupes
        self._unrouted = unrouted
        self._name = new_id()
        self._something = asyncio.Event()
        """Set when this process has kept something: it need not look for it."""
        self._under_way = asyncio.Lock()
        self._forwarding: asyncio.Task[None] | None = None
        self._telling = True
        """Whether the next message that is kept is the first one of an outage, which the log tells of."""
        file.brokers.add(identity)

    async def open(self) -> None:
        """Raises BrokerUnavailable or BrokerCorrupted for a file that cannot be used."""
        await self._file.open()
        try:
            again = await self._file.retry_refused(self._identity)
        except BaseException:
            await self._file.close()
            raise
        if again:
            log.warning("%d messages that the broker `%s` had refused are tried again", again, self._broker)
        self._forwarding = asyncio.create_task(self._run(), name="carteiro outbox")

    async def close(self) -> None:
        """What waits stays in the file, for whichever process opens it next."""
        if self._forwarding is None:
            return
        try:
            async with asyncio.timeout(LAST_BATCH):
                await self._under_way.acquire()  # or what is sent, and not yet taken out, would be sent again
        except TimeoutError:
            log.warning("what is on its way to the broker `%s` is sent again later", self._broker)
        self._forwarding.cancel()
        await asyncio.wait([self._forwarding])
        self._forwarding = None
        with contextlib.suppress(BrokerError):  # its term ends by itself
            await self._file.yield_(self._identity, self._name)
        await self._file.close()

    async def status(self) -> OutboxStatus:
        return await self._file.status(self._identity)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Returns when all are safe, in the broker or in the file; the result lists those that no group gets.

        Of what is kept in the file that is not known yet. Raises BrokerUnavailable where the file takes nothing either.
        """
        now = self._clock.time()
        outage: BrokerUnavailable | None = None
        unrouted: list[Outgoing] = []
        for start in range(0, len(messages), AT_ONCE):
            if self._file.waits(self._identity):
                break
            try:
                unrouted += await self._send(messages[start : start + AT_ONCE])
            except BrokerUnavailable as error:
                outage = error
                break
        else:
            self._telling = True
            return unrouted
        kept = [Kept(pack(one, now + one.delay), one.dedupe, _frozen(one.target)) for one in messages[start:]]
        await self._keep(kept, outage)
        return unrouted

    async def _keep(self, messages: Sequence[Kept], outage: BrokerUnavailable | None) -> None:
        try:
            await self._file.keep(self._identity, messages)
        except BrokerError as error:
            raise error from outage
        self._something.set()
        if self._telling:
            self._telling = False
            log.warning(
                "what is published to the broker `%s` is kept in `%s`, and forwarded when it is back: %s",
                self._broker, self._file.path, outage or "others wait already",
            )  # fmt: skip

    # -- forwarding ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        tries = 0
        while True:
            try:
                if self._file.waits(self._identity):
                    if not await self._file.claim(self._identity, self._name):
                        await self._clock.sleep(TERM / 4)  # another process forwards; or its term ends
                        continue
                    await self._drain()
                tries = 0
                await self._until_something()
            except Exception as error:
                # Once is no matter: the interpreter is ending, and its threads have ended, or the app is closing.
                level = logging.ERROR if tries else logging.INFO
                log.log(level, "the outbox `%s` does not go on: %s", self._file.path, describe(error))
                await self._clock.sleep(reconnect_wait(tries))
                tries += 1

    async def _until_something(self) -> None:
        """Return when something was kept here, or it is time to look."""
        kept, time = asyncio.ensure_future(self._something.wait()), asyncio.ensure_future(self._clock.sleep(LOOK))
        try:
            await asyncio.wait((kept, time), return_when=asyncio.FIRST_COMPLETED)
        finally:
            kept.cancel()
            time.cancel()
        self._something.clear()

    async def _drain(self) -> None:
        """Forward until nothing waits, or another process has taken over."""
        term = asyncio.create_task(self._renew())
        forwarded = 0
        try:
            while not term.done():
                batch = await self._file.next(self._identity)
                if batch:
                    forwarded += await self._pass_on(batch, term)
                    continue
                yielded = await self._file.yield_if_none_waits(self._identity, self._name)
                if yielded or not self._file.waits(self._identity):  # the latter: another one took over, and is done
                    break
        finally:
            term.cancel()
        if forwarded:
            log.warning("%d messages were forwarded to the broker `%s`", forwarded, self._broker)
            await self._file.shrink()

    async def _renew(self) -> None:
        """End when another process has taken over, or may have."""
        try:
            while await self._file.claim(self._identity, self._name):
                await self._clock.sleep(TERM / 3)
        except BrokerError as error:
            log.warning("this process forwards nothing for now: %s", error)

    async def _pass_on(self, batch: Sequence[Kept], term: asyncio.Task[None]) -> int:
        """Forward a batch as soon as the broker takes it, and take it out; returns how many went out."""
        messages: list[Outgoing] = []
        tries = 0
        while not term.done():
            try:
                async with self._under_way:
                    if not messages or any(one.delay for one in messages):  # else the same: some brokers tell by that
                        messages = [self._restored(one) for one in batch]
                    unrouted = await self._forward(messages)
                    await self._take_out(batch)
            except BrokerUnavailable as error:
                cut_off = error.retry_after if isinstance(error, CircuitOpen) else 0.0
                await self._clock.sleep(max(cut_off, reconnect_wait(tries)))
                tries += 1
            except BrokerCorrupted:
                raise
            except (BrokerError, ConfigurationError, Unencodable) as error:
                if len(batch) > 1:  # one of them cannot be published: the others can
                    return sum([await self._pass_on([one], term) for one in batch])
                await self._refuse(batch[0], describe(error))
                return 0
            else:
                for message in unrouted:
                    self._unrouted.note(message)
                return len(batch)
        return 0

    async def _take_out(self, batch: Sequence[Kept]) -> None:
        """What the broker has is not sent again because the file is locked, or its disk full."""
        ids = [one.id for one in batch]
        tries = 0
        while True:
            try:
                return await self._file.drop(ids)
            except BrokerError as error:
                log.error("what the broker `%s` has got cannot be taken out of the outbox: %s", self._broker, error)
                await self._clock.sleep(reconnect_wait(tries))
                tries += 1

    async def _refuse(self, kept: Kept, reason: str) -> None:
        log.error(
            "the broker `%s` does not take message %d of the outbox `%s`, which stays there, and is tried again when a "
            "process starts: %s", self._broker, kept.id, self._file.path, reason,
        )  # fmt: skip
        await self._file.refuse(kept.id, reason)

    def _restored(self, kept: Kept) -> Outgoing:
        """The message as it was published; its delay began then. Raises BrokerError where that cannot be."""
        try:
            message = unpack(kept.record)
            target = None if kept.target is None else _thawed(kept.target)
        except Exception as error:
            raise BrokerError(f"it cannot be read: {describe(error)}") from error
        dedupe = DEDUPED if kept.dedupe is None and target is None and self._dedupes else kept.dedupe
        return Outgoing(
            message.id, message.topic, message.body, message.key, message.headers, message.correlation_id,
            max(0.0, message.published - self._clock.time()), dedupe, target,
        )  # fmt: skip


def _frozen(target: Native | None) -> bytes | None:
    """The name of its class, and what it says. Raises UnsupportedFeature for what is no Struct of msgspec's."""
    if target is None:
        return None
    if not isinstance(target, msgspec.Struct):
        raise UnsupportedFeature(
            f"the broker is away, and the outbox cannot keep what goes to {target!r}: publish it to a topic"
        )
    kind = type(target)
    return msgspec.json.encode((kind.__module__, kind.__qualname__, target))


def _thawed(data: bytes) -> Native:
    module, name, fields = msgspec.json.decode(data, type=tuple[str, str, msgspec.Raw])
    kind: type[msgspec.Struct] = getattr(import_module(module), name)
    target = msgspec.json.decode(fields, type=kind)
    assert isinstance(target, Native)
    return target
