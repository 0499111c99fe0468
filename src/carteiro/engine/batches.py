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
from carteiro.durations import seconds
from carteiro.engine.attempt import with_middleware
from carteiro.engine.endings import Endings, Surroundings
from carteiro.engine.isolation import Pending, begin
from carteiro.engine.lane import Lane, interrupted
from carteiro.engine.routes import Handler
from carteiro.errors import BatchFailed, InvalidBody
from carteiro.handlers.plan import BatchPlan
from carteiro.message import Action, Delivery, Message, Outcome, Subscription
from carteiro.policies.batch import Batch


def in_batches(attempt: BatchAttempt, batch: Batch) -> Callable[[Lane], Awaitable[bool]]:
    """Serve a lane batch by batch."""

    async def serve(lane: Lane) -> bool:
        if lane.gathering:
            return False  # another slot's batch comes first
        gathered: list[Delivery] = []
        hand_over_at = lane.clock.monotonic() + seconds(batch.wait)
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
            current.set(gathered[0])
            try:
                outcomes = await attempt([delivery for delivery in gathered if delivery in lane.held])
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
            try:
                ended = self._ended(delivery)
            except InvalidBody as error:
                ended = self._endings.failed(delivery, error)
            if ended is None:
                live.append(delivery)
            else:
                outcomes.append(ended)
        through = self._through_middleware if self._middleware else self._together
        results = await through([delivery.message for delivery in live])
        done = [(one, result) for one, result in zip(live, results, strict=True) if not isinstance(result, Failed)]
        failed = [(one, result.error) for one, result in zip(live, results, strict=True) if isinstance(result, Failed)]
        try:
            outcomes += await self._done(done)
        except Exception as error:
            failed += [(delivery, error) for delivery, _ in done]
        return outcomes + [self._endings.failed(delivery, error) for delivery, error in failed]

    def _ended(self, delivery: Delivery) -> Outcome | None:
        """The outcome of a message that is not to be attempted any more, or None."""
        message = delivery.message
        if message.attempt > self._attempts:
            return self._endings.lost(delivery)
        expired = bool(message.headers) and self._around.expired(message.headers)
        return Outcome(delivery, Action.ACK) if expired else None

    async def _done(self, done: Sequence[tuple[Delivery, Any]]) -> list[Outcome]:
        """What the one call returned and emitted goes out once, with the first ack; replies go out with each."""
        ends = self._endings
        emits = [ends.replied(delivery.message, result) for delivery, result in done]
        if done and not ends.silent:
            (first, result), *_ = done
            emits[0] = await ends.published(first.message, result)
        return [Outcome(delivery, Action.ACK, emits=sent) for (delivery, _), sent in zip(done, emits, strict=True)]

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
                result = await self._around.rest(result, self._timeout)
        except KeyboardInterrupt:
            raise
        except BatchFailed as some:
            unknown = [index for index in some.errors if index not in range(len(messages))]
            if unknown:
                strange = ValueError(f"BatchFailed names index {unknown[0]!r} of a batch of {len(messages)}")
                return [Failed(strange)] * len(messages)
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
        """The innermost `call_next`: returns or raises what the call did with this message.

        Who comes again after the call, as middleware that retries does, has one alone.
        """
        if self._done:
            (result,) = await self._call([message])
        else:
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
