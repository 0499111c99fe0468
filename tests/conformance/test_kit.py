"""The kit itself: what a backend lacks must be said and refused, and is not passed over in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from carteiro.backends.memory import open_backend
from carteiro.errors import UnsupportedFeature
from carteiro.message import Action, Delivery, Outcome, Outgoing, Retention, Subscription
from carteiro.ports.broker import Backend, Check, Consumer
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.features import Capability, Features, Support
from carteiro.testing.conformance import rig as kit
from carteiro.testing.conformance.rig import Rig, needs

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
