"""One subscription's messages, and the one idea that does leases, delays and retries: *invisible until t*.

A row is visible once its `visible_at` is not in the future. Whatever makes it wait only moves that time: a delayed
publish sets it ahead, a claim sets it to the end of its lease, a renewal moves it, a retry sets it to its time. A
worker that dies does nothing, and its row becomes visible by itself.

Where the subscription is ordered, only the oldest row of each key, its *head*, can ever be claimed. The head's
wait, whatever its cause, holds back the rest of its key.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

from carteiro.message import Delivery, Failure, Message, Outgoing, Subscription
from carteiro.ports.broker import GroupStatus


class Row:
    """A message that one subscription has yet to finish.

    `id` orders the rows of a broker; `publication` is shared by all rows of one publish. `attempt` counts the claims,
    less those released. `token` is the fence: it changes when a claim begins and when one is settled, never back.
    """

    __slots__ = ("attempt", "claimed", "history", "id", "message", "publication", "published", "token", "visible_at")

    def __init__(self, id: int, publication: int, message: Outgoing, published: float, visible_at: float) -> None:
        self.id = id
        self.publication = publication
        self.message = message
        self.published = published
        self.visible_at = visible_at
        self.attempt = 0
        self.token = 0
        self.claimed = False
        self.history: tuple[Failure, ...] = ()

    def as_message(self, attempt: int) -> Message:
        sent = self.message
        return Message(
            sent.id, sent.topic, sent.body, sent.key, sent.headers, sent.correlation_id, self.published, attempt
        )

    def is_in_flight(self, now: float) -> bool:
        return self.claimed and self.visible_at > now


class Queue:
    """The rows of one subscription. Every step costs O(log n), a backlog of a million included."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.rows: dict[int, Row] = {}
        # (visible_at, id) of every row that could be claimed at that time. An entry whose row is gone or has moved
        # is stale and skipped when met; `_stale` counts them, so that they never outnumber the others.
        self._due: list[tuple[float, int]] = []
        self._stale = 0
        self._keys: dict[str, deque[Row]] = {}

    def redeclare(self, subscription: Subscription) -> None:
        """Take changed options over."""
        was_ordered = self.subscription.ordered
        self.subscription = subscription
        if subscription.ordered != was_ordered:
            self._rebuild()

    def add(self, row: Row) -> None:
        self.rows[row.id] = row
        if self._join_key(row):
            heapq.heappush(self._due, (row.visible_at, row.id))

    def claim(self, limit: int, now: float) -> list[Delivery]:
        """Up to `limit` visible messages in the order of (visible_at, id), leased from `now` on."""
        claimed: list[Row] = []
        while len(claimed) < limit and (due := self.next_due()) is not None and due <= now:
            row = self.rows[heapq.heappop(self._due)[1]]
            row.attempt += 1
            row.token += 1
            row.claimed = True
            row.visible_at = now + self.subscription.lease
            claimed.append(row)
        for row in claimed:
            heapq.heappush(self._due, (row.visible_at, row.id))
        return [
            Delivery(self.subscription, row.as_message(row.attempt), (row.id, row.token), row.history)
            for row in claimed
        ]

    def next_due(self) -> float | None:
        """When the next message is, or becomes, visible."""
        while self._due:
            visible_at, id = self._due[0]
            row = self.rows.get(id)
            if row is not None and row.visible_at == visible_at:
                return visible_at
            heapq.heappop(self._due)
            self._stale -= 1
        return None

    def held(self, delivery: Delivery) -> Row | None:
        """The fence: the row of `delivery`, if nobody has claimed or settled it since."""
        id, token = delivery.token
        row = self.rows.get(id)
        return row if row is not None and row.token == token else None

    def renew(self, row: Row, now: float) -> None:
        self._hide(row, now + self.subscription.lease)

    def retry(self, row: Row, at: float, failure: Failure | None) -> None:
        if failure is not None:
            row.history = (*row.history, failure)
        self._end_claim(row)
        self._hide(row, at)

    def release(self, row: Row, at: float) -> None:
        row.attempt -= 1
        self._end_claim(row)
        self._hide(row, at)

    def remove(self, row: Row) -> None:
        """The message is done for this subscription; the next of its key takes its place."""
        del self.rows[row.id]
        self._count_stale()
        key = self._key(row)
        if key is None:
            return
        line = self._keys[key]
        while line and line[0].id not in self.rows:
            line.popleft()
        if not line:
            del self._keys[key]
        elif line[0].id > row.id:
            heapq.heappush(self._due, (line[0].visible_at, line[0].id))

    def take_out(self, now: float, unwanted: Callable[[Row], bool]) -> list[Row]:
        """Take those out of what is not in flight; returns them."""
        taken = [row for row in self.rows.values() if not row.is_in_flight(now) and unwanted(row)]
        for row in taken:
            del self.rows[row.id]
        self._rebuild()
        return taken

    def waiting(self, now: float) -> list[Row]:
        """What is not in flight: first what can be claimed next, and last what is behind another of its key."""
        rows = [row for row in self.rows.values() if not row.is_in_flight(now)]
        heads = sorted((row for row in rows if self._is_head(row)), key=lambda row: (row.visible_at, row.id))
        return heads + [row for row in rows if not self._is_head(row)]

    def status(self, now: float, *, dead: int, consumers: int) -> GroupStatus:
        waiting = delayed = retrying = in_flight = 0
        for row in self.rows.values():
            if row.is_in_flight(now):
                in_flight += 1
            elif row.visible_at > now and row.attempt > 0:
                retrying += 1
            elif row.visible_at > now or not self._is_head(row):
                delayed += 1
            else:
                waiting += 1
        oldest = max((now - row.published for row in self.rows.values()), default=None)
        topic, group = self.subscription.topic, self.subscription.group
        return GroupStatus(topic, group, waiting, delayed, retrying, in_flight, dead, oldest, consumers)

    def _key(self, row: Row) -> str | None:
        """The key in whose line `row` stands, if it stands in one."""
        return row.message.key if self.subscription.ordered else None

    def _is_head(self, row: Row) -> bool:
        key = self._key(row)
        return key is None or self._keys[key][0] is row

    def _join_key(self, row: Row) -> bool:
        """Put `row` at the end of its key's line, if it stands in one; True if nothing is before it."""
        key = self._key(row)
        if key is None:
            return True
        line = self._keys.setdefault(key, deque())
        line.append(row)
        return len(line) == 1

    def _end_claim(self, row: Row) -> None:
        row.claimed = False
        row.token += 1

    def _hide(self, row: Row, until: float) -> None:
        row.visible_at = until
        if self._is_head(row):
            heapq.heappush(self._due, (until, row.id))
            self._count_stale()

    def _count_stale(self) -> None:
        # Without this the lease ends of settled messages would pile up for a whole lease: millions at full speed.
        self._stale += 1
        if self._stale > 1_000 and self._stale > len(self._due) // 2:
            self._due = [(row.visible_at, row.id) for row in self.rows.values() if self._is_head(row)]
            heapq.heapify(self._due)
            self._stale = 0

    def _rebuild(self) -> None:
        self._keys = {}
        self._due = [(row.visible_at, row.id) for row in self.rows.values() if self._join_key(row)]
        heapq.heapify(self._due)
        self._stale = 0
