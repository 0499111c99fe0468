"""What the kit's tests hold in hand: one backend, names of their own, and waits that end.

Topics and groups are the test's own, so that a kit may run again and again on one server. To see that something does
*not* come, a test publishes a last message and takes what comes until it (`until`); to let time pass, it awaits a
delayed message (`pause`); to read the broker's clock, it publishes one and looks at its time (`now`). Nothing sleeps.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import pytest

from carteiro.errors import UnsupportedFeature
from carteiro.message import (
    NO_HEADERS,
    Action,
    Delivery,
    Failure,
    Outcome,
    Outgoing,
    Retention,
    Subscription,
    new_id,
)
from carteiro.ports.broker import Backend, Consumer, GroupStatus, Inspector
from carteiro.ports.features import Capability
from carteiro.ports.registry import open_backend
from carteiro.ports.store import Store

T = TypeVar("T")
RigTest = Callable[[Any, "Rig"], Coroutine[Any, Any, None]]

LONG = 60.0
"""The lease, in seconds, of messages that no test waits to see redelivered."""


NEEDS: dict[str, tuple[Capability, ...]] = {}
"""What each test of the kit needs, by its qualified name."""


def needs(*capabilities: Capability) -> Callable[[RigTest], RigTest]:
    """For what not every backend can: one that lacks it must say so and refuse it; then the test is skipped."""

    def decorate(test: RigTest) -> RigTest:
        NEEDS[test.__qualname__] = capabilities

        @functools.wraps(test)
        async def checked(self: Any, rig: Rig) -> None:
            for capability in capabilities:
                support = rig.broker.features[capability]
                if not support:
                    assert support.how, f"{rig.url} lacks {capability.value} and must say why, in `Support.how`"
                    await rig.check_refusal(capability)
                    pytest.skip(f"{rig.broker.features.backend} has no {capability.value}: {support.how}")
            await test(self, rig)

        return checked

    return decorate


class Rig:
    """One backend under test.

    `lease` is the shortest lease, and `delay` the shortest delay, that the backend tells apart from none, in seconds.
    `patience` is how long anything may take before the test is given up.
    """

    def __init__(self, url: str, *, lease: float, delay: float, patience: float) -> None:
        self.url = url
        self.lease = lease
        self.delay = delay
        self.patience = patience
        self._prefix = f"kit{uuid.uuid4().hex[:12]}"
        self._open: list[Backend] = []
        self._declared: set[Subscription] = set()
        self.backend: Backend

    async def connect(self) -> None:
        self.backend = await self.another()
        self.broker = self.backend.broker

    async def another(self) -> Backend:
        """A further handle on the same broker, as another process would have."""
        backend = open_backend(self.url)
        await backend.broker.connect()
        self._open.append(backend)
        return backend

    async def close(self) -> None:
        """Leave nothing behind, neither here nor on a server that others use."""
        cleaner = (await self.another()).broker  # the test may have closed its own
        if isinstance(cleaner, Inspector):
            for subscription in self._declared:
                await cleaner.remove_group(subscription.topic, subscription.group)
            for queue in {letter.queue for letter in await cleaner.dead_letters() if self._prefix in letter.queue}:
                await cleaner.purge_dead(queue)
        for backend in self._open:
            await backend.broker.close()

    # -- names -----------------------------------------------------------------------------------------------------

    def topic(self, name: str) -> str:
        return f"{self._prefix}.{name}"

    async def declare(
        self,
        name: str,
        group: str = "group",
        *,
        lease: float = LONG,
        ordered: bool = False,
        ephemeral: bool = False,
        start: str | float = "latest",
        retain: float | None = None,
    ) -> Subscription:
        """Declare a subscription to one of the test's topics; `retain`, in seconds, also keeps what is published."""
        subscription = Subscription(self.topic(name), group, ordered, ephemeral, lease, start)
        await self.broker.declare([subscription], [] if retain is None else [Retention(subscription.topic, retain)])
        self._declared.add(subscription)
        return subscription

    async def lease_longer(self, subscription: Subscription) -> Subscription:
        """Declare it with a long lease: what a test claims from then on, no stall of the machine takes away."""
        longer = msgspec.structs.replace(subscription, lease=LONG)
        await self.broker.declare([longer])
        return longer

    # -- what the ports do, with little to write --------------------------------------------------------------------

    def message(
        self,
        name: str,
        body: bytes = b"",
        *,
        id: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        delay: float = 0.0,
        dedupe: float | None = None,
    ) -> Outgoing:
        return Outgoing(id or new_id(), self.topic(name), body, key, headers, f"cause-{name}", delay, dedupe)

    async def publish(self, name: str, *bodies: bytes, key: str | None = None, delay: float = 0.0) -> list[Outgoing]:
        """Publish these bodies in one call."""
        messages = [self.message(name, body, key=key, delay=delay) for body in bodies]
        await self.broker.publish(messages)
        return messages

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await what must come; the test fails where it does not."""
        async with asyncio.timeout(self.patience):
            return await awaitable

    async def take(self, consumer: Consumer, subscription: Subscription, count: int = 1) -> list[Delivery]:
        """Claim exactly `count` messages, in as many fetches as it takes."""
        taken: list[Delivery] = []
        while len(taken) < count:
            try:
                taken += await self.wait(consumer.fetch({subscription: count - len(taken)}))
            except TimeoutError:
                came = [delivery.message.body[:40] for delivery in taken]
                pytest.fail(f"{subscription}: expected {count} messages, and after {self.patience} s only had {came}")
        assert len(taken) == count, f"{subscription}: a fetch with room for {count} returned {len(taken)}"
        return taken

    async def one(self, consumer: Consumer, subscription: Subscription) -> Delivery:
        return (await self.take(consumer, subscription))[0]

    async def until(self, consumer: Consumer, subscription: Subscription, name: str) -> list[Delivery]:
        """What comes before a last message that is published now; all of it, and the last, is acked."""
        (last,) = await self.publish(name, b"the last one")
        before: list[Delivery] = []
        while True:
            delivery = await self.one(consumer, subscription)
            await self.settle(consumer, delivery)
            if delivery.message.id == last.id:
                return before
            before.append(delivery)

    async def until_done(self, consumer: Consumer, subscription: Subscription, count: int) -> list[Delivery]:
        """Take and ack so many, one after the other."""
        done: list[Delivery] = []
        while len(done) < count:
            done.append(await self.one(consumer, subscription))
            await self.settle(consumer, done[-1])
        return done

    async def settle(
        self,
        consumer: Consumer,
        *deliveries: Delivery,
        action: Action = Action.ACK,
        delay: float = 0.0,
        error: str = "",
    ) -> None:
        """End them all in one call; each must still be held. `error` gives each its failure."""
        outcomes = [outcome(delivery, action, delay=delay, error=error) for delivery in deliveries]
        lost = await consumer.settle(outcomes)
        assert not lost, f"refused to {action.value} what is still held: {[one.message.body[:40] for one in lost]}"

    async def status(self, subscription: Subscription) -> GroupStatus:
        """Its counts, from the inspector."""
        for status in await self.inspector.groups():
            if (status.topic, status.group) == (subscription.topic, subscription.group):
                return status
        pytest.fail(f"groups() does not list {subscription}")

    @property
    def inspector(self) -> Inspector:
        assert isinstance(self.broker, Inspector), f"{self.url} claims inspection, but its broker is no Inspector"
        return self.broker

    @property
    def store(self) -> Store:
        assert self.broker.store is not None, f"{self.url} claims a store, but its broker has none"
        return self.broker.store

    @property
    def actions(self) -> list[Action]:
        """The ends that a delivery may have here."""
        needed = {Action.RETRY: Capability.RETRY, Action.DEAD: Capability.DEAD_LETTERS}
        return [one for one in Action if one not in needed or self.broker.features[needed[one]]]

    # -- time, as the broker has it ----------------------------------------------------------------------------------

    async def pause(self, seconds: float) -> None:
        """Return when that much of the broker's time has passed: when a message with that delay has come."""
        await self._marker(seconds)

    async def now(self) -> float:
        """The broker's time, in seconds since the epoch."""
        return (await self._marker(0.0)).message.published

    async def _marker(self, delay: float) -> Delivery:
        name = f"marker-{new_id()}"
        subscription = await self.declare(name)
        consumer = self.broker.consume([subscription])
        await self.publish(name, b"", delay=delay)
        delivery = await self.one(consumer, subscription)
        await self.settle(consumer, delivery)
        await consumer.close()
        return delivery

    # -- what is unsupported must be refused --------------------------------------------------------------------------

    async def check_refusal(self, capability: Capability) -> None:
        """A backend without `capability` raises UnsupportedFeature when it is asked for, and never acts as if."""
        match capability:
            case Capability.PATTERNS:
                refused: Awaitable[object] = self.declare("refused.*")
            case Capability.BROADCAST:
                refused = self.declare("refused", ephemeral=True)
            case Capability.ORDERED:
                refused = self.declare("refused", ordered=True)
            case Capability.RETENTION:
                refused = self.declare("refused", retain=60)
            case Capability.DELAY:
                refused = self.publish("refused", b"", delay=60)
            case Capability.DEDUPE:
                refused = self.broker.publish([self.message("refused", dedupe=60)])
            case Capability.RETRY:
                refused = self._settle_one(Action.RETRY)
            case Capability.DEAD_LETTERS:
                refused = self._settle_one(Action.DEAD)
            case Capability.STORE:
                assert self.broker.store is None, f"{self.url} says that it has no store, and has one"
                return
            case Capability.INSPECT:
                assert not isinstance(self.broker, Inspector), f"{self.url} is an Inspector and says that it is not"
                return
            case Capability.PEEK:
                refused = self._peek()
            case Capability.COUNTS:
                status = await self.status(await self.declare("uncounted"))
                assert None in (status.delayed, status.retrying, status.in_flight), "it counts, and says that it cannot"
                return
            case _:
                return  # nothing that one could ask for: the feature's absence is all there is
        with pytest.raises(UnsupportedFeature):
            await refused

    async def _peek(self) -> None:
        subscription = await self.declare("refused")
        await self.inspector.peek(subscription.topic, subscription.group)

    async def _settle_one(self, action: Action) -> None:
        subscription = await self.declare("refused")
        consumer = self.broker.consume([subscription])
        await self.publish("refused", b"")
        await self.settle(consumer, await self.one(consumer, subscription), action=action, delay=60, error="no")


def outcome(
    delivery: Delivery, action: Action = Action.ACK, *, delay: float = 0.0, error: str = "", **more: Any
) -> Outcome:
    """How `delivery` ends; `error` gives it a failure."""
    failure = Failure(delivery.message.attempt, delivery.message.published, error) if error else None
    return Outcome(delivery, action, delay, failure, **more)


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]
