"""One attempt at a task: from a delivery to its outcome.

Before it runs, the store is asked what is known of the task: one that is over is acked and not run, whether it was
cancelled, or its run has failed, or this is a copy of what has ended. When it ends, what it returned or how it failed
goes into the store in the commit of the settle, and with it what follows in its run. The record is written over the
version that was read: where a cancel came between, the settle is refused as a whole, and the next look at the message
finds the cancel.

Where the store is not the broker's own, the record is written before what follows is sent: so an attempt that finds
its own task over tells again what follows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from carteiro.engine.attempt import with_middleware
from carteiro.engine.endings import Endings, Surroundings
from carteiro.engine.isolation import Pending, begin
from carteiro.engine.routes import Handler
from carteiro.errors import (
    BrokerCorrupted,
    BrokerUnavailable,
    HandlerFailed,
    InvalidBody,
    NoResult,
    ResultTooLarge,
    SoftTimeout,
    TaskExpired,
    TaskFailed,
    WorkerLost,
)
from carteiro.handlers.codecs import decoder
from carteiro.handlers.plan import Plan
from carteiro.handlers.running import Called
from carteiro.message import REPLY_TO, Action, Delivery, Failure, Message, Outcome, Outgoing, Subscription, Write
from carteiro.policies.limit import Limit
from carteiro.policies.retry import Retry
from carteiro.tasks.ahead import Ahead
from carteiro.tasks.bench import Bench, Stint
from carteiro.tasks.context import Context, running
from carteiro.tasks.flaws import flaw_of
from carteiro.tasks.following import GATHER_TASK, Followed, Sender, after_failure, after_success
from carteiro.tasks.graph import Edge, Node, Scope, unpack_scope
from carteiro.tasks.knowing import NOTHING, Known, keys_of, known_of, resumed, take
from carteiro.tasks.permits import Permits
from carteiro.tasks.records import (
    ALARM,
    PART_TTL,
    RESUME,
    RETRY,
    RUN,
    RUN_TTL,
    UNIQUE,
    Flaw,
    Record,
    Running,
    Status,
    node_id,
    pack,
    record_of,
    scope_key,
    step_key,
    task_key,
)
from carteiro.tasks.retrying import retry_of
from carteiro.tasks.seats import Seats
from carteiro.tasks.steps import Paused
from carteiro.tasks.unique import let_go
from carteiro.tasks.values import written

if TYPE_CHECKING:
    from carteiro.tasks.task import Task

log = logging.getLogger("carteiro.tasks")

STEP_BACK: Final = 0.5
"""Seconds after which a task is looked at again for which the store was away."""


class Kept(msgspec.Struct, frozen=True):
    """How results are kept: for so many seconds, up to so many bytes."""

    ttl: float
    size: int


class TaskAttempt:
    """The attempts at one kind of task on one queue, at one of its levels."""

    def __init__(
        self,
        task: Task[..., Any, Any],
        handler: Handler,
        subscription: Subscription,
        around: Surroundings,
        *,
        seats: Seats,
        level: int,
        bench: Bench,
        ahead: Ahead,
        permits: Sequence[Permits],
        kept: Kept,
    ) -> None:
        plan = handler.plan
        assert isinstance(plan, Plan)
        self._task = task
        self._handler = handler
        self._subscription = subscription
        self._around = around
        self._seats = seats
        self._level = level
        self._bench = bench
        self._ahead = ahead
        self._permits = permits
        self._kept = msgspec.structs.replace(kept, ttl=task.options.result_ttl or kept.ttl)
        self._keeps = task.options.result
        self._apart = bench.apart
        self._timeout = handler.timeout
        self._soft = task.options.soft_timeout
        self._invoke: Callable[[Message], Any] = with_middleware(plan.call, handler.middleware)
        self._endings = Endings(handler, subscription, around)
        self._endings_with = lru_cache(maxsize=64)(self._other_endings)
        self._arguments = decoder(plan.body_type) if permits and plan.body_type is not None else None

    async def __call__(self, delivery: Delivery) -> Outcome:
        """Raises nothing but the cancel of a worker that stops."""
        if not self._seats.take_free() and not await self._seats.take(self._level):
            return Outcome(delivery, Action.RELEASE)  # another worker may have a seat for it
        try:
            if self._around.stopping:  # it has waited for its seat meanwhile
                return Outcome(delivery, Action.RELEASE)
            return await self._handle(delivery)
        finally:
            self._seats.give_back()

    # -- before it runs --------------------------------------------------------------------------------------------

    async def _handle(self, delivery: Delivery) -> Outcome:
        message = delivery.message
        endings, known = self._endings, NOTHING
        try:
            asked = message.headers.get(RETRY)
            if asked is not None:
                endings = self._endings_with(asked)
            if self._keeps or RUN in message.headers:
                known = known_of(message, *await self._ahead.read(delivery))
                if known.node is not None and not known.is_over:
                    await take(self._bench, message, known, known.node)
            if known.is_over:
                return await self._again(delivery, known)
            if known.run is not None and known.node is None:
                raise NoResult(
                    f"nothing is known of the run `{known.run}`: it was over long ago, no worker was up for "
                    f"{PART_TTL / 86_400:g} days, or the store was emptied"
                )
            if message.attempt > endings.retry.attempts:
                lost = endings.lost(delivery)
                return await self._gave_up(lost, known, _error_of(lost))
            if RESUME not in message.headers and self._around.expired(message.headers):
                return await self._expired(delivery, known)
            if self._permits:
                return await self._limited(delivery, known, endings)
            return await self._run(delivery, known, endings)
        except BrokerUnavailable as error:
            log.warning("task %s %s waits for the store: %s", self._task.name, message.id, error)
            return Outcome(delivery, Action.RELEASE, delay=STEP_BACK)
        except BrokerCorrupted as error:  # what is recorded cannot be read, and is not written over
            return endings.failed(delivery, error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return await self._failed(delivery, known, endings, error)

    async def _limited(self, delivery: Delivery, known: Known, endings: Endings) -> Outcome:
        """Run it if all its limits let it; otherwise it goes back to the broker until its turn is likely."""
        message = delivery.message
        admitted: list[tuple[Permits, str]] = []
        try:
            for limit, permits in zip(self._task.options.limits, self._permits, strict=True):
                key = "" if limit.per is None else self._key_of(limit, message, known)
                wait = await permits.admit(key, message.id)
                if wait > 0:
                    return Outcome(delivery, Action.RELEASE, delay=wait)
                admitted.append((permits, key))
            return await self._run(delivery, known, endings)
        finally:
            for permits, key in admitted:
                permits.end(key, message.id)

    def _key_of(self, limit: Limit, message: Message, known: Known) -> str:
        """The key of its call. Many calls in one message start as one, so that theirs has to be the same."""
        keys = set()
        for call in [message] if known.node is None else self._calls(message, known.node, known.taken):
            arguments = {} if self._arguments is None else self._arguments(call)
            keys.add(limit.key_of({**self._task.defaults, **arguments}))
        if len(keys) > 1:
            raise InvalidBody(
                f"a chunk of task `{self._task.name}` has {len(keys)} keys of its limit, {min(keys)} and {max(keys)} "
                "among them: make chunks of one key each, or use map()"
            )
        return keys.pop()

    # -- while it runs ---------------------------------------------------------------------------------------------

    async def _run(self, delivery: Delivery, known: Known, endings: Endings) -> Outcome:
        message = delivery.message
        kept = self._keeps or known.run is not None
        context = Context(
            message.id, self._task.name, delivery, known.record, endings.retry, self._bench if kept else None
        )
        running.set(context)
        stint: Stint | None = None
        try:
            result = begin(self._call(message, known), self._endings.blocked)
            if type(result) is Pending:
                self._bench.stirred += 1
                if kept:
                    stint = self._stint(delivery, known)
                    self._bench.enter(stint, known.heard)
                try:
                    result = await self._rest(result)
                finally:  # from here on it ends, and nobody cancels it any more
                    if stint is not None:
                        self._bench.leave(stint)
            else:
                self._ahead.streak += 1
            if stint is not None and stint.cancelled:
                return await self._cancelled(delivery, stint)
            emits: Sequence[Outgoing] = ()
            if not self._endings.silent or REPLY_TO in message.headers:
                emits = await self._endings.published(message, result)
            return self._succeeded(delivery, known, context, stint, result, emits)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if stint is not None and stint.cancelled:
                return await self._cancelled(delivery, stint)
            if isinstance(error, Paused):
                return self._paused(delivery, known, stint, error)
            return await self._failed(delivery, known, endings, error, stint)

    def _call(self, message: Message, known: Known) -> Any:
        if known.node is None:
            return self._invoke(message)
        calls = self._calls(message, known.node, known.taken)
        return self._each(calls) if known.node.each else self._invoke(calls[0])

    def _calls(self, message: Message, node: Node, taken: bytes | None) -> Sequence[Message]:
        """The message of a node with its arguments, which are in the store, once for each of its calls."""
        if node.each:
            bodies = self._task.filled_each(node.arguments, taken)
        else:
            bodies = [self._task.filled(node.arguments, taken)]
        return [msgspec.structs.replace(message, body=body) for body in bodies]

    async def _each(self, messages: Sequence[Message]) -> list[Any]:
        results = [await self._invoke(message) for message in messages]
        return [result.result if isinstance(result, Called) else result for result in results]

    async def _rest(self, pending: Pending) -> Any:
        if self._soft is None:
            return await self._around.rest(pending, self._timeout)
        text = f"ran longer than its soft_timeout of {self._soft:g} s"

        def soften() -> None:
            pending.instead = SoftTimeout(text)

        deadline = self._around.deadlines.begin(self._soft, soften)
        try:
            return await self._around.rest(pending, self._timeout)
        finally:
            self._around.deadlines.end(deadline)

    def _stint(self, delivery: Delivery, known: Known) -> Stint:
        message, clock = delivery.message, self._around.clock
        over = [task_key(message.id)]
        if known.run is not None and known.node is not None:
            over += (task_key(node_id(known.run, exit)) for exit in known.node.scopes)
        told = Running(
            self._task.name, clock.time(), message.attempt, message.topic, self._bench.worker, message.published
        )
        return Stint(message.id, over, told, clock.monotonic())

    # -- how it ends -----------------------------------------------------------------------------------------------

    def _succeeded(
        self,
        delivery: Delivery,
        known: Known,
        context: Context,
        stint: Stint | None,
        result: Any,
        emits: Sequence[Outgoing],
    ) -> Outcome:
        message = delivery.message
        if isinstance(result, Called):
            result = result.result
        if context.bench is None:
            return Outcome(delivery, Action.ACK, emits=emits, writes=_freed(message))
        body = written(result)
        if len(body) > self._kept.size and self._task.name != GATHER_TASK:
            raise ResultTooLarge(
                f"what task `{self._task.name}` returned has {len(body) / 1024:.0f} KB, and the app keeps results of "
                f"up to {self._kept.size / 1024:.0f} KB: put it where large things are kept and return its name, or "
                "raise `result_size=` of the app"
            )
        record = self._record(delivery, "succeeded", result=body)
        followed = self._follow(message, known, body)
        writes = [self._write(message, record, known), *followed.writes, *_freed(message), *self._left(stint)]
        if context.names:
            writes += (Write(step_key(message.id, name), None) for name in _steps(context))
        return Outcome(delivery, Action.ACK, emits=[*emits, *followed.emits], writes=writes, joins=followed.joins)

    async def _failed(
        self,
        delivery: Delivery,
        known: Known,
        endings: Endings,
        error: BaseException,
        stint: Stint | None = None,
    ) -> Outcome:
        outcome = endings.failed(delivery, error)
        message = delivery.message
        if outcome.action is Action.RELEASE or outcome.failure is None:
            return msgspec.structs.replace(outcome, writes=self._left(stint))
        if isinstance(error, asyncio.CancelledError):
            error = HandlerFailed("it was cancelled from within")
        if outcome.action is Action.DEAD:
            return await self._gave_up(outcome, known, error, stint)
        if not self._keeps and known.run is None:
            return outcome
        record = self._record(
            delivery,
            "retrying",
            flaw=flaw_of(error, outcome.failure.traceback),
            until=self._around.clock.time() + outcome.delay,
        )
        write = self._write(message, record, known, ttl=RUN_TTL + outcome.delay)
        return msgspec.structs.replace(outcome, writes=[write, *self._left(stint)])

    async def _gave_up(
        self, outcome: Outcome, known: Known, error: BaseException, stint: Stint | None = None
    ) -> Outcome:
        """It failed for good, and with it perhaps what it is a part of."""
        delivery, message = outcome.delivery, outcome.delivery.message
        if not self._keeps and known.run is None:
            return msgspec.structs.replace(outcome, writes=_freed(message))
        failure = outcome.failure
        record = self._record(delivery, "failed", flaw=flaw_of(error, "" if failure is None else failure.traceback))
        try:
            followed = await self._follow_failure(message, known, record)
        except BrokerUnavailable as away:
            log.warning("task %s %s waits for the store: %s", self._task.name, message.id, away)
            return Outcome(delivery, Action.RELEASE, delay=STEP_BACK)
        writes = [self._write(message, record, known), *followed.writes, *_freed(message), *self._left(stint)]
        return msgspec.structs.replace(
            outcome, emits=[*outcome.emits, *followed.emits], writes=writes, joins=followed.joins
        )

    async def _cancelled(self, delivery: Delivery, stint: Stint) -> Outcome:
        """It was over before it ended, however it took that: its record says so, or that of what it is a part of."""
        stint.task.uncancel()
        log.info("task %s %s was cancelled while it ran", self._task.name, stint.id)
        found = await self._bench.get(keys_of(delivery.message))
        outcome = await self._again(delivery, known_of(delivery.message, found, self._bench.heard))
        return msgspec.structs.replace(outcome, writes=[*outcome.writes, *self._left(stint)])

    async def _expired(self, delivery: Delivery, known: Known) -> Outcome:
        message = delivery.message
        if not self._keeps and known.run is None:
            return Outcome(delivery, Action.ACK, writes=_freed(message))
        error = TaskExpired(f"task `{self._task.name}` had not begun when its `expires` was over")
        record = self._record(delivery, "expired", flaw=flaw_of(error, ""))
        followed = await self._follow_failure(message, known, record)
        writes = [self._write(message, record, known), *followed.writes, *_freed(message)]
        return Outcome(delivery, Action.ACK, emits=followed.emits, writes=writes, joins=followed.joins)

    def _paused(self, delivery: Delivery, known: Known, stint: Stint | None, pause: Paused) -> Outcome:
        """It waits for an event: its message is the alarm for the end of the waiting, if that has one."""
        message = delivery.message
        record = self._record(delivery, "waiting", until=pause.until, waits_for=pause.topic)
        writes = [self._write(message, record, known, ttl=RUN_TTL + pause.delay), *self._left(stint)]
        if pause.until is None:
            return Outcome(delivery, Action.ACK, writes=writes)
        return Outcome(delivery, Action.RELEASE, delay=pause.delay, writes=writes)

    async def _again(self, delivery: Delivery, known: Known) -> Outcome:
        """It is over already. What goes with that is told again where a crash may have come between."""
        message, record, outcome = delivery.message, known.record, Outcome(delivery, Action.ACK)
        if record is None or not record.is_over:
            return outcome  # what it is a part of is over, or a newer copy of it goes on
        if UNIQUE in message.headers:
            await let_go(self._bench.store, message.headers[UNIQUE], message.id)  # the lock may be of a newer one
        if not self._apart or record.status == "cancelled" or resumed(message) < record.resumed:
            return outcome
        if record.flaw is None:
            followed = self._follow(message, known, record.result)
        else:
            followed = await self._follow_failure(message, known, record)
        if record.status == "failed" and record.flaw is not None:
            failure = Failure(record.attempt, record.at, record.flaw.text, record.flaw.traceback)
            outcome = msgspec.structs.replace(outcome, action=Action.DEAD, failure=failure)
        return msgspec.structs.replace(outcome, emits=followed.emits, joins=followed.joins)

    # -- what goes with it -----------------------------------------------------------------------------------------

    def _follow(self, message: Message, known: Known, result: bytes) -> Followed:
        if known.run is None or known.node is None:
            return Followed()
        return after_success(self._sender(message, known.run), known.number, known.node, result)

    async def _follow_failure(self, message: Message, known: Known, record: Record) -> Followed:
        if known.run is None:
            return Followed()
        # Kept for as long as a member may wait that is not to begin any more: after its countdown, or for a retry.
        ttl = max(RUN_TTL, self._kept.ttl)
        if known.node is None:  # the run is forgotten: all that can be done is to tell who waits for its result
            final = task_key(node_id(known.run, 0))
            ended = record_of((await self._bench.get((final,))).get(final))
            if ended is not None and ended.is_over:
                return Followed()
            node = Node(Edge(known.number, 1, message.topic, self._task.name), b"", None, (), (0,))
            whole = {0: Scope(0, False, (), ())}
            return after_failure(
                self._sender(message, known.run), known.number, node, whole, record, self._bench.name, ttl
            )
        keys = {exit: scope_key(known.run, exit) for exit in known.node.scopes}
        found = await self._bench.get(list(keys.values()))
        scopes: dict[int, Scope] = {exit: unpack_scope(found[key].value) for exit, key in keys.items() if key in found}
        return after_failure(
            self._sender(message, known.run), known.number, known.node, scopes, record, self._bench.name, ttl
        )

    def _sender(self, message: Message, run: str) -> Sender:
        broker_of = self._around.broker_of
        return Sender(run, message.correlation_id, lambda topic: broker_of(topic, None), self._around.clock.time())

    def _record(
        self,
        delivery: Delivery,
        status: Status,
        *,
        result: bytes = b"",
        flaw: Flaw | None = None,
        until: float | None = None,
        waits_for: str = "",
    ) -> Record:
        message = delivery.message
        return Record(
            status, self._task.name, self._around.clock.time(), message.topic, message.attempt, result, flaw,
            self._bench.worker, message.published, until, waits_for, resumed(message),
        )  # fmt: skip

    def _write(self, message: Message, record: Record, known: Known, ttl: float | None = None) -> Write:
        """Over the version that was read; the last node of a run keeps its result as long as any other result."""
        if ttl is None:
            ttl = self._kept.ttl if known.run is None else max(PART_TTL, self._kept.ttl)
            if ALARM in message.headers:  # when that comes it has to find that the task is over
                ttl = max(ttl, float(message.headers[ALARM]) - self._around.clock.time() + RUN_TTL)
        return Write(task_key(message.id), pack(record), ttl=ttl, expect=known.version)

    def _left(self, stint: Stint | None) -> Sequence[Write]:
        return () if stint is None else self._bench.leave(stint)

    def _other_endings(self, asked: str) -> Endings:
        """For a message with a retry policy of its own."""
        retry: Retry = retry_of(asked, self._handler.retry)
        return Endings(msgspec.structs.replace(self._handler, retry=retry), self._subscription, self._around)


def _error_of(lost: Outcome) -> Exception:
    """Of a message whose last permitted attempt never ended, or had failed."""
    assert lost.failure is not None
    kind, _, text = lost.failure.error.partition(": ")
    return WorkerLost(text) if kind == WorkerLost.__name__ else TaskFailed(lost.failure.error)


def _freed(message: Message) -> Sequence[Write]:
    """A unique task that is over makes room for the next of its key."""
    key = message.headers.get(UNIQUE)
    return () if key is None else (Write(key, None),)


def _steps(context: Context) -> Sequence[str]:
    """The names under which results of its steps are kept."""
    return [
        name if number == 0 else f"{name}#{number + 1}"
        for name, count in context.names.items()
        for number in range(count)
    ]
