"""Many messages in one call: how a slot gathers them, and the attempt that handles them.

A slot takes what waits and, while the batch is not full, waits for more until `wait` seconds have passed since it took
the first. Each message keeps an attempt, a fence and an outcome of its own: one that cannot be decoded is dead alone,
and `BatchFailed` fails those that it names only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from carteiro.engine.current import current
from carteiro.engine.endings import Endings, Surroundings
from carteiro.engine.isolation import Pending, begin
from carteiro.engine.lane import Lane, interrupted
from carteiro.engine.routes import Handler
from carteiro.errors import BatchFailed
from carteiro.handlers.plan import BatchPlan
from carteiro.message import Action, Delivery, Outcome, Subscription
from carteiro.policies.batch import Batch


def in_batches(attempt: BatchAttempt, batch: Batch) -> Callable[[Lane], Awaitable[bool]]:
    """Serve a lane batch by batch."""

    async def serve(lane: Lane) -> bool:
        gathered: list[Delivery] = []
        hand_over_at = lane.clock.monotonic() + batch.wait
        while not lane.stopping:
            while lane.buffer and len(gathered) < batch.size:
                delivery = lane.buffer.popleft()
                if delivery in lane.held:
                    gathered.append(delivery)
            left = hand_over_at - lane.clock.monotonic()
            if not gathered:
                return False
            if len(gathered) == batch.size or left <= 0:
                break
            await lane.more(left)
        if lane.stopping:
            outcomes = [Outcome(delivery, Action.RELEASE) for delivery in gathered]
        else:
            lane.wake()
            try:
                current.get().message = gathered[0].message
                outcomes = await attempt(gathered)
            except BaseException as error:
                outcomes = [interrupted(lane, delivery, error) for delivery in gathered]
        for outcome in outcomes:
            lane.settle(outcome)
        return True

    return serve


class BatchAttempt:
    """From deliveries to their outcomes, with one call of the handler."""

    def __init__(self, handler: Handler, subscription: Subscription, around: Surroundings) -> None:
        assert isinstance(handler.plan, BatchPlan)
        self._plan = handler.plan
        self._attempts = handler.retry.attempts
        self._timeout = handler.timeout
        self._around = around
        self._endings = Endings(handler, subscription, around)

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        fit: list[Delivery] = []
        values: list[Any] = []
        for delivery in deliveries:
            message = delivery.message
            if message.attempt > self._attempts:
                outcomes.append(self._endings.lost(delivery))
            elif message.headers and self._around.expired(message.headers):
                outcomes.append(Outcome(delivery, Action.ACK))
            else:
                try:
                    values.append(self._plan.decode(message))
                    fit.append(delivery)
                except Exception as error:
                    outcomes.append(self._endings.failed(delivery, error))
        if fit:
            outcomes.extend(await self._call(fit, values))
        return outcomes

    async def _call(self, deliveries: Sequence[Delivery], values: list[Any]) -> list[Outcome]:
        failed = self._endings.failed
        messages = [delivery.message for delivery in deliveries]
        try:
            result = begin(self._plan.call(messages, values), self._endings.blocked)
            if type(result) is Pending:
                rest = result.rest()
                result = await (rest if self._timeout is None else self._around.deadlines.limit(rest, self._timeout))
            emits = [await self._endings.published(messages[0], result)]
            emits += (self._endings.replied(message, result) for message in messages[1:])
        except KeyboardInterrupt:
            raise
        except BatchFailed as some:
            return [
                failed(delivery, some.errors[index])
                if index in some.errors
                else Outcome(delivery, Action.ACK, emits=self._endings.replied(delivery.message, None))
                for index, delivery in enumerate(deliveries)
            ]
        except BaseException as error:
            return [failed(delivery, error) for delivery in deliveries]
        return [Outcome(delivery, Action.ACK, emits=sent) for delivery, sent in zip(deliveries, emits, strict=True)]
