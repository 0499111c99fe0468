"""The place where outcomes go out: whatever has gathered, whenever the last settle returns."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from carteiro.engine.batcher import Batcher
from carteiro.engine.failures import describe
from carteiro.engine.forwarder import STEP_BACK, Forward, Forwarder, Joining, Publishing, Step, Writing, expects
from carteiro.engine.lane import Lane
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerUnavailable
from carteiro.message import Action, Delivery, Failure, Outcome, Subscription
from carteiro.ports.broker import Consumer
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

log = logging.getLogger("carteiro.worker")

LARGEST = 5000


class Settler:
    """Settles for the lanes of one consumer. What the broker cannot take now is kept and tried again.

    Where a try fails nobody knows what of it the broker has applied. The next one then finds the deliveries lost that
    were settled, as those that another worker has taken meanwhile; for neither is there anything left to do.

    `store` is where writes and joins go that the broker cannot commit with the settle: before it, so that a crash
    between repeats the delivery and loses nothing. So does what is emitted to other brokers than `name`, the consumer's
    own, each by its `forward`. What goes in which order is said in `forwarder.py`.
    """

    def __init__(
        self, consumer: Consumer, name: str, forward: Mapping[str, Forward], store: Store | None, clock: Clock
    ) -> None:
        self.lanes: Mapping[Subscription, Lane] = {}
        self._giving_up = False
        self._killed = False
        self._consumer = consumer
        self._name = name
        self._store = store
        self._clock = clock
        self._batcher = Batcher(self._send, limit=LARGEST)
        steps: list[Step] = [] if store is None else [Writing(store), Joining(store)]
        steps += [
            Publishing(one, name, publish) for one, publish in forward.items() if one != name or store is not None
        ]
        self._stages = [Forwarder(step, self._add_in_order, clock) for step in steps]
        self.add = self._add_in_order if self._stages else self._batcher.add

    def give_up(self) -> None:
        """The worker can wait no longer: what the broker does not take is left to its lease."""
        self._giving_up = True
        for stage in self._stages:
            stage.giving_up = True

    def kill(self) -> None:
        """Settle and publish nothing more, as a killed process would."""
        self._killed = True
        for stage in self._stages:
            stage.killed = True

    async def drain(self) -> None:
        """Return when everything added so far is settled, or given up."""
        for stage in self._stages:  # in the order in which an outcome goes through them
            await stage.drain()
        await self._batcher.drain()

    def _add_in_order(self, outcome: Outcome) -> None:
        """Settle it once all that is to be safe before is, one stage after the other."""
        for stage in self._stages:
            if stage.wants(outcome):
                stage.add(outcome)
                return
        self._batcher.add(outcome)

    async def _send(self, outcomes: list[Outcome]) -> None:
        if self._killed:
            return
        lost = await self._settled(outcomes)
        if lost and self._store is None:
            lost = await self._step_back(outcomes, lost)
        doubtful = sum(self.lanes[delivery.subscription].lost(delivery) for delivery in lost)
        if doubtful:
            log.warning(
                "%d of %d outcomes were settled by an earlier try that got no answer, or have gone to another worker",
                doubtful, len(outcomes),
            )  # fmt: skip
        self._tell(outcomes)

    async def _settled(self, outcomes: list[Outcome]) -> Sequence[Delivery]:
        """Those that are lost, once all are settled or given up."""
        tries = 0
        while True:
            try:
                return await self._settle(outcomes)
            except BrokerUnavailable as error:
                self._doubt(outcomes)
                if self._giving_up:
                    log.error(
                        "%d outcomes may not be settled, and then their messages will come again: %s",
                        len(outcomes), error,
                    )  # fmt: skip
                    return ()
                log.warning("%d outcomes wait for the broker: %s", len(outcomes), error)
                await self._clock.sleep(reconnect_wait(tries))
                tries += 1
            except Exception as error:
                if len(outcomes) > 1:  # one of them cannot be settled: find out which
                    self._doubt(outcomes)
                    return [delivery for outcome in outcomes for delivery in await self._settled([outcome])]
                await self._refused(outcomes[0], error)
                return ()

    async def _step_back(self, outcomes: list[Outcome], lost: Sequence[Delivery]) -> Sequence[Delivery]:
        """Have those come again soon that did not hold because the store has changed under them; returns the others."""
        not_settled = set(lost)
        changed = [one.delivery for one in outcomes if one.delivery in not_settled and any(map(expects, one.writes))]
        if not changed:
            return lost
        try:
            gone = await self._consumer.settle(
                [Outcome(delivery, Action.RELEASE, delay=STEP_BACK) for delivery in changed]
            )
        except BrokerUnavailable:  # they come when their leases end
            return lost
        released = set(changed).difference(gone)
        if released:
            log.info("%d outcomes are not settled, and come again: the store has changed under them", len(released))
        return [delivery for delivery in lost if delivery not in released]

    def _doubt(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self.lanes[outcome.delivery.subscription].doubtful.add(outcome.delivery)

    async def _settle(self, outcomes: list[Outcome]) -> Sequence[Delivery]:
        if self._store is None:
            return await self._consumer.settle(outcomes)
        writes = [write for outcome in outcomes for write in outcome.writes]
        if writes:
            await self._store.write(writes)
            outcomes = [msgspec.structs.replace(outcome, writes=()) for outcome in outcomes]
        return await self._consumer.settle(outcomes)

    async def _refused(self, outcome: Outcome, error: Exception) -> None:
        """What the broker cannot take as it is, such as an emit that it cannot hold, is a failed attempt."""
        delivery = outcome.delivery
        log.error("%s cannot be settled", delivery.message.id, exc_info=error)
        failure = Failure(delivery.message.attempt, self._clock.time(), describe(error))
        self.lanes[delivery.subscription].last_failure = failure
        try:
            await self._consumer.settle([Outcome(delivery, Action.RETRY, delay=1.0, failure=failure)])
        except Exception as worse:
            log.error("%s will come again when its lease ends: %s", delivery.message.id, worse)

    def _tell(self, outcomes: list[Outcome]) -> None:
        """Tell each lane of its own; neighbours of one subscription go together."""
        start = 0
        while start < len(outcomes):
            subscription = outcomes[start].delivery.subscription
            end = start + 1
            while end < len(outcomes) and outcomes[end].delivery.subscription is subscription:
                end += 1
            self.lanes[subscription].settled(outcomes[start:end])
            start = end
