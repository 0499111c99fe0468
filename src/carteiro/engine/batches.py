"""Many messages in one call: how a slot gathers them, and the attempt that handles them.

A slot takes what waits and, while the batch is not full, waits for more until `wait` seconds have passed since it took
the first. Each message keeps an attempt, a fence and an outcome of its own: one that cannot be decoded is dead alone,
and `BatchFailed` fails those that it names only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from carteiro.current import current
from carteiro.engine.attempt import with_middleware
from carteiro.engine.endings import Endings, Surroundings
from carteiro.engine.isolation import Pending, begin
from carteiro.engine.lane import Lane, interrupted
from carteiro.engine.routes import Handler
from carteiro.errors import BatchFailed
from carteiro.handlers.plan import BatchPlan
from carteiro.message import Action, Delivery, Message, Outcome, Subscription
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
                current.get().delivery = gathered[0]
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
        self._middleware = handler.middleware
        self._around = around
        self._endings = Endings(handler, subscription, around)

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        live: list[Delivery] = []
        for delivery in deliveries:
            message = delivery.message
            if message.attempt > self._attempts:
                outcomes.append(self._endings.lost(delivery))
            elif message.headers and self._around.expired(message.headers):
                outcomes.append(Outcome(delivery, Action.ACK))
            else:
                live.append(delivery)
        messages = [delivery.message for delivery in live]
        through = self._together if not self._middleware else self._through_middleware
        published = False
        for delivery, result in zip(live, await through(messages), strict=True):
            if not isinstance(result, Failed):
                outcomes.append(await self._done(delivery, result, first=not published))
                published = True
            else:
                outcomes.append(self._endings.failed(delivery, result.error))
        return outcomes

    async def _done(self, delivery: Delivery, result: Any, *, first: bool) -> Outcome:
        """What the one call returned and emitted goes out once, with the first message; replies go out with each."""
        try:
            message, ends = delivery.message, self._endings
            all_of_it = first and not ends.silent
            emits = await ends.published(message, result) if all_of_it else ends.replied(message, result)
            return Outcome(delivery, Action.ACK, emits=emits)
        except Exception as error:
            return self._endings.failed(delivery, error)

    async def _together(self, messages: Sequence[Message]) -> list[Any]:
        """Call the handler once; for each message what it returned, or Failed."""
        results: list[Any] = [None] * len(messages)
        fit: list[int] = []
        values: list[Any] = []
        for index, message in enumerate(messages):
            try:
                values.append(self._plan.decode(message))
                fit.append(index)
            except Exception as error:
                results[index] = Failed(error)
        if fit:
            for index, result in zip(fit, await self._call([messages[index] for index in fit], values), strict=True):
                results[index] = result
        return results

    async def _call(self, messages: Sequence[Message], values: list[Any]) -> list[Any]:
        try:
            result = begin(self._plan.call(messages, values), self._endings.blocked)
            if type(result) is Pending:
                rest = result.rest()
                result = await (rest if self._timeout is None else self._around.deadlines.limit(rest, self._timeout))
        except KeyboardInterrupt:
            raise
        except BatchFailed as some:
            return [Failed(some.errors[n]) if n in some.errors else None for n in range(len(messages))]
        except BaseException as error:
            return [Failed(error)] * len(messages)
        return [result] * len(messages)

    async def _through_middleware(self, messages: Sequence[Message]) -> list[Any]:
        """Each message goes through middleware by itself; where they come out at the other end, they meet."""
        meeting = Meeting(len(messages), self._together)

        async def alone(message: Message) -> Any:
            try:
                return await with_middleware(meeting.join, self._middleware)(message)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                return Failed(error)
            finally:
                await meeting.leave()

        return await asyncio.gather(*(alone(message) for message in messages))


class Failed:
    """In the place of a result: the error of one message."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Meeting:
    """Where the messages of a batch wait for each other: the last to come, or to leave before, has the call made."""

    def __init__(self, expected: int, call: Callable[[Sequence[Message]], Awaitable[list[Any]]]) -> None:
        self._expected = expected
        self._call = call
        self._there: list[tuple[Message, asyncio.Future[Any]]] = []
        self._settled = 0
        self._done = False

    async def join(self, message: Message) -> Any:
        """The innermost `call_next`: returns or raises what the one call did with this message."""
        place: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._there.append((message, place))
        await self._perhaps_call()
        result = await place
        if isinstance(result, Failed):
            raise result.error
        return result

    async def leave(self) -> None:
        """A message's middleware has ended; one that never joined is waited for no more."""
        self._settled += 1
        await self._perhaps_call()

    async def _perhaps_call(self) -> None:
        if self._done or not self._there or len(self._there) + self._settled < self._expected:
            return
        self._done = True
        for (_, place), result in zip(
            self._there, await self._call([message for message, _ in self._there]), strict=True
        ):
            if not place.done():
                place.set_result(result)
