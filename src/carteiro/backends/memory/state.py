"""What all handles of one in-memory broker share, and every change to it.

Nothing here awaits, so each call is one step that no other task can see half done: a settle's ack, its emits, its
store writes and its joins are atomic for the plain reason that nothing runs between them.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from carteiro.backends.memory.entries import Entries
from carteiro.backends.memory.joins import Joins
from carteiro.backends.memory.queue import Queue, Row
from carteiro.errors import BrokerError
from carteiro.message import Action, DeadLetter, Delivery, Outcome, Outgoing, Retention, Subscription
from carteiro.ports.broker import Unrouted
from carteiro.ports.clock import Clock
from carteiro.ports.dead_letters import dead_notice, dead_queue, reason_of, whole_history
from carteiro.topics import matches

_ROUTES: Final = 10_000  # topics whose queues are remembered; more topics than that would be names made up as they go


class _Published(msgspec.Struct, frozen=True, eq=False):
    """A message in a retained topic's log."""

    publication: int
    message: Outgoing
    published: float


class _Log(msgspec.Struct):
    """A retained topic: what was published to it in the last `seconds`."""

    seconds: float
    kept: deque[_Published]

    def expire(self, now: float) -> None:
        while self.kept and self.kept[0].published < now - self.seconds:
            self.kept.popleft()


class State:
    """One broker's subscriptions, messages, logs, dead letters, store entries and sets."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.entries = Entries(clock)
        self.joins = Joins(clock, self.entries)
        self.unrouted = Unrouted()
        self.queues: dict[Subscription, Queue] = {}
        self.dead: dict[str, tuple[DeadLetter, Row]] = {}
        self.listeners: defaultdict[Subscription, set[Callable[[], None]]] = defaultdict(set)
        """Called whenever a message of the subscription may have become due earlier: the waiting fetches."""
        self._routes: dict[str, Sequence[Queue]] = {}
        self._logs: dict[str, _Log] = {}
        self._marks: dict[tuple[str, str], float] = {}
        self._mark_expiries: list[tuple[float, tuple[str, str]]] = []
        self._publications = itertools.count(1)
        self._rows = itertools.count(1)

    # -- subscriptions ---------------------------------------------------------------------------------------------

    def retain(self, retention: Retention) -> None:
        log = self._logs.setdefault(retention.topic, _Log(retention.seconds, deque()))
        log.seconds = retention.seconds

    def declare(self, subscription: Subscription) -> None:
        queue = self.queues.get(subscription)
        if queue is not None:
            queue.redeclare(subscription)
            self._wake(queue)
            return
        queue = self.queues[subscription] = Queue(subscription)
        self._routes.clear()
        if subscription.start != "latest":
            since = float("-inf") if subscription.start == "earliest" else float(subscription.start)
            self._deliver_again(queue, since)

    def remove(self, subscription: Subscription) -> None:
        self.queues.pop(subscription, None)
        self._routes.clear()

    def rewind(self, subscription: Subscription, since: float) -> int:
        if not any(matches(subscription.topic, topic) for topic in self._logs):
            raise BrokerError(
                f"cannot rewind {subscription}: `{subscription.topic}` keeps nothing; "
                'declare the topic with a retention, such as retain="7d", and what is published from then on is kept'
            )
        return self._deliver_again(self.queue(subscription), since)

    def queue(self, subscription: Subscription) -> Queue:
        """Raises BrokerError for a subscription that was never declared, or was removed."""
        if subscription not in self.queues:
            raise BrokerError(f"no group `{subscription.group}` on `{subscription.topic}`: declare it first")
        return self.queues[subscription]

    def _deliver_again(self, queue: Queue, since: float) -> int:
        """Add what the logs hold since then, in the order published, but for what the queue has still to do."""
        now = self.clock.time()
        found: dict[int, _Published] = {}
        for topic, log in self._logs.items():
            if matches(queue.subscription.topic, topic):
                log.expire(now)
                found |= {one.publication: one for one in log.kept if one.published >= since}
        dropped: list[Row] = []
        moved: list[Row] = []
        if queue.subscription.ordered:
            # What still waits gets its place among what comes again, so that each key's order holds.
            running = {row.publication for row in queue.rows.values() if row.is_in_flight(now)}
            keys = {found[one].message.key for one in found.keys() - running} - {None}
            dropped = queue.take_out(now, lambda row: row.message.key in keys and row.publication in found)
            moved = queue.take_out(now, lambda row: row.message.key in keys)
        again = found.keys() - {row.publication for row in queue.rows.values()}
        for one in map(found.__getitem__, again):
            visible_at = max(now, one.published + one.message.delay)
            moved.append(Row(0, one.publication, one.message, one.published, visible_at))
        for row in sorted(moved, key=lambda row: (row.published, row.publication)):
            row.id = next(self._rows)
            queue.add(row)
        self._wake(queue)
        return len(again) - len(dropped)

    # -- publish ---------------------------------------------------------------------------------------------------

    def publish(self, messages: Iterable[Outgoing]) -> Sequence[Outgoing]:
        """Fan out; returns the messages that no group and no log gets."""
        return [message for message in messages if not self._fan_out(message, self._queues_for(message.topic))]

    def _fan_out(self, message: Outgoing, queues: Sequence[Queue]) -> bool:
        """False where neither they nor a log get it."""
        log = self._logs.get(message.topic)
        if not queues and log is None:
            return False
        # Only what someone gets leaves a mark: what was refused for want of a group can be published again.
        if self._is_duplicate(message):
            return True
        now = self.clock.time()
        # A copy: the publisher may go on to change its headers.
        message = msgspec.structs.replace(message, headers=dict(message.headers))
        publication = next(self._publications)
        for queue in queues:
            queue.add(Row(next(self._rows), publication, message, now, now + message.delay))
            self._wake(queue)
        if log is not None:
            log.expire(now)
            log.kept.append(_Published(publication, message, now))
        return True

    def _queues_for(self, topic: str) -> Sequence[Queue]:
        if topic not in self._routes:
            if len(self._routes) >= _ROUTES:
                self._routes.clear()
            self._routes[topic] = [queue for one, queue in self.queues.items() if matches(one.topic, topic)]
        return self._routes[topic]

    def _is_duplicate(self, message: Outgoing) -> bool:
        if message.dedupe is None:
            return False
        now = self.clock.time()
        while self._mark_expiries and self._mark_expiries[0][0] <= now:
            del self._marks[heapq.heappop(self._mark_expiries)[1]]
        mark = (message.topic, message.id)
        if mark in self._marks:
            return True
        self._marks[mark] = now + message.dedupe
        heapq.heappush(self._mark_expiries, (now + message.dedupe, mark))
        return False

    # -- settle ----------------------------------------------------------------------------------------------------

    def settle(self, outcome: Outcome) -> bool:
        """Apply it whole; or, where the fence or the version that a write expects does not hold, not at all."""
        held = self.held(outcome.delivery)
        if held is None or not self.entries.write_all(outcome.writes):
            return False
        queue, row = held
        at = self.clock.time() + outcome.delay
        match outcome.action:
            case Action.ACK:
                queue.remove(row)
            case Action.RETRY:
                queue.retry(row, at, outcome.failure)
            case Action.RELEASE:
                queue.release(row, at)
            case Action.DEAD:
                queue.remove(row)
                self._bury(queue.subscription, row, outcome)
        if queue.subscription.ordered or outcome.action in (Action.RETRY, Action.RELEASE):
            self._wake(queue)
        emits = outcome.emits
        if outcome.joins:
            emits = [*emits, *(emit for join in outcome.joins if self.joins.make(join) for emit in join.emits)]
        for message in self.publish(emits):
            self.unrouted.note(message)
        return True

    def renew(self, delivery: Delivery) -> bool:
        held = self.held(delivery)
        if held is None:
            return False
        queue, row = held
        queue.renew(row, self.clock.time())
        return True

    def held(self, delivery: Delivery) -> tuple[Queue, Row] | None:
        queue = self.queues.get(delivery.subscription)
        row = None if queue is None else queue.held(delivery)
        return None if queue is None or row is None else (queue, row)

    # -- dead letters ----------------------------------------------------------------------------------------------

    def _bury(self, subscription: Subscription, row: Row, outcome: Outcome) -> None:
        """List it as a dead letter, and publish it to whoever subscribes to its queue, under either of its names."""
        message = row.as_message(row.attempt)
        queues = [queue.subscription for queue in self._queues_for(message.topic)]
        groups = {one.group for one in queues if not one.ephemeral}
        name, alias = dead_queue(message.topic, subscription.group, len(groups))
        reason = reason_of(outcome)
        letter = DeadLetter(
            id=str(row.id),
            queue=name,
            topic=subscription.topic,
            group=subscription.group,
            message=message,
            reason=reason,
            at=self.clock.time(),
            history=whole_history(outcome),
        )
        self.dead[letter.id] = (letter, row)
        # Who listens to the other name still hears, under that name, when a second group changes which the queue has.
        told = self._queues_for(name)
        self._fan_out(dead_notice(message, subscription.group, reason, name), told)
        others = [queue for queue in self._queues_for(alias) if queue not in told]
        self._fan_out(dead_notice(message, subscription.group, reason, alias), others)

    def dead_letters(self, queue: str | None, ids: Sequence[str] | None = None) -> list[DeadLetter]:
        wanted = None if ids is None else set(ids)
        return [
            letter
            for letter, _ in self.dead.values()
            if (queue is None or letter.queue == queue) and (wanted is None or letter.id in wanted)
        ]

    def replay(self, letters: Sequence[DeadLetter], body: bytes | None) -> None:
        """Raises BrokerError, and replays none, where a group that failed is no longer there."""
        queues = [self.queue(Subscription(letter.topic, letter.group)) for letter in letters]
        now = self.clock.time()
        for letter, queue in zip(letters, queues, strict=True):
            _, row = self.dead.pop(letter.id)
            message = row.message if body is None else msgspec.structs.replace(row.message, body=body)
            queue.add(Row(next(self._rows), next(self._publications), message, row.published, now))
            self._wake(queue)

    def _wake(self, queue: Queue) -> None:
        for listener in self.listeners.get(queue.subscription, ()):
            listener()
