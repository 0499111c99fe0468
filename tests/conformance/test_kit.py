"""The kit itself: what a backend lacks must be said and refused, and is not passed over in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from carteiro.backends.memory import open_backend
from carteiro.errors import UnsupportedFeature
from carteiro.message import Action, Delivery, Message, Outcome, Outgoing, Retention, Subscription
from carteiro.ports.broker import Backend, Check, Consumer, GroupStatus
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.features import Capability, Features, Support
from carteiro.testing.conformance import rig as kit
from carteiro.testing.conformance.rig import Rig, needs
from carteiro.testing.conformance.themes.leases import LeasesConformance

CAPABILITIES = [
    one
    for one in Capability
    if one not in (Capability.GROUPS, Capability.ATOMIC, Capability.MULTIPROCESS, Capability.DURABLE)
]
"""Those that one can ask for, and so be refused."""


class Plain:
    """A broker that lacks much, and says so. `honest=False` says so and does it nevertheless."""

    def __init__(self, backend: Backend, missing: set[Capability], how: str, honest: bool) -> None:
        self._inner = backend.broker
        self._missing = missing if honest else set[Capability]()
        self.store = None if Capability.STORE in self._missing else backend.store
        self.features = Features(
            "plain", {one: Support("unsupported", how) if one in missing else Support("native") for one in Capability}
        )

    async def connect(self) -> None: ...

    async def close(self) -> None:
        await self._inner.close()

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention] = ()) -> None:
        self._refuse(Capability.RETENTION, bool(retentions))
        for one in subscriptions:
            self._refuse(Capability.ORDERED, one.ordered)
            self._refuse(Capability.BROADCAST, one.ephemeral)
            self._refuse(Capability.PATTERNS, "*" in one.topic)
        await self._inner.declare(subscriptions, retentions)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        for message in messages:
            self._refuse(Capability.DELAY, message.delay > 0)
            self._refuse(Capability.DEDUPE, message.dedupe is not None)
        return await self._inner.publish(messages)

    def consume(self, subscriptions: Sequence[Subscription]) -> Consumer:
        return PlainConsumer(self, self._inner.consume(subscriptions))

    def _refuse(self, capability: Capability, asked: bool) -> None:
        if asked and capability in self._missing:
            raise UnsupportedFeature(f"no {capability.value} here")

    def check(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._refuse(Capability.RETRY, outcome.action is Action.RETRY)
            self._refuse(Capability.DEAD_LETTERS, outcome.action is Action.DEAD)


class Inspectable(Plain):
    """The same, with an inspector: what it is asked goes to the broker behind it."""

    async def groups(self) -> Sequence[GroupStatus]:
        statuses: Sequence[GroupStatus] = await self._inner.groups()  # type: ignore[attr-defined]
        if Capability.COUNTS not in self._missing:
            return statuses
        return [msgspec.structs.replace(one, delayed=None, retrying=None, in_flight=None) for one in statuses]

    async def peek(self, topic: str, group: str, limit: int = 10) -> Sequence[Message]:
        self._refuse(Capability.PEEK, True)
        messages: Sequence[Message] = await self._inner.peek(topic, group, limit)  # type: ignore[attr-defined]
        return messages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class PlainConsumer:
    def __init__(self, broker: Plain, inner: Consumer) -> None:
        self._broker = broker
        self.fetch = inner.fetch
        self.renew = inner.renew
        self.close = inner.close
        self._settle = inner.settle

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        self._broker.check(outcomes)
        return await self._settle(outcomes)


class PlainBackend:
    def __init__(self, missing: set[Capability], how: str, honest: bool) -> None:
        backend = open_backend("memory://", clock=SYSTEM_CLOCK)
        inspectable = not honest or Capability.INSPECT not in missing
        self.broker = (Inspectable if inspectable else Plain)(backend, missing, how, honest)
        self.store = self.broker.store

    async def doctor(self) -> Sequence[Check]:
        return []


async def rig_lacking(
    monkeypatch: pytest.MonkeyPatch, capability: Capability, *, how: str = "it is plain", honest: bool = True
) -> Rig:
    backend = PlainBackend({capability}, how, honest)
    monkeypatch.setattr(kit, "open_backend", lambda _: backend)
    rig = Rig("plain://", lease=0.3, delay=0.2, patience=10)
    await rig.connect()
    return rig


def needing(capability: Capability) -> Any:
    @needs(capability)
    async def test(self: object, rig: Rig) -> None:
        pytest.fail("it ran without what it needs")

    return test


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_what_is_refused_is_skipped_with_the_backends_own_reason(
    monkeypatch: pytest.MonkeyPatch, capability: Capability
) -> None:
    rig = await rig_lacking(monkeypatch, capability)

    with pytest.raises(pytest.skip.Exception, match=f"plain has no {capability.value}: it is plain"):
        await needing(capability)(None, rig)
    await rig.close()


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_what_is_called_unsupported_and_done_nevertheless_fails(
    monkeypatch: pytest.MonkeyPatch, capability: Capability
) -> None:
    rig = await rig_lacking(monkeypatch, capability, honest=False)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await needing(capability)(None, rig)
    await rig.close()


async def test_what_is_unsupported_without_a_reason_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await rig_lacking(monkeypatch, Capability.DELAY, how="")

    with pytest.raises(AssertionError, match="must say why"):
        await needing(Capability.DELAY)(None, rig)
    await rig.close()


@pytest.mark.parametrize("capability", [Capability.RETRY, Capability.DEAD_LETTERS])
async def test_no_delivery_is_ended_in_a_way_that_the_backend_lacks(
    monkeypatch: pytest.MonkeyPatch, capability: Capability
) -> None:
    rig = await rig_lacking(monkeypatch, capability)

    await LeasesConformance().test_a_delivery_is_settled_once(rig)
    await rig.close()
