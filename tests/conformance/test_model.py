"""Random lives of messages: the memory backend against its invariants, and the others against the memory backend.

Each machine publishes, claims, settles, renews, replays, purges and moves the clock as Hypothesis likes. The books that
it keeps beside the broker are simple enough to be seen right: what each group was given, and who may still settle what.
`CARTEIRO_MODEL_EXAMPLES=2000` searches longer.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from carteiro.message import (
    Action,
    Delivery,
    Failure,
    Join,
    Outcome,
    Outgoing,
    Retention,
    Subscription,
    Write,
    new_id,
)
from carteiro.ports.broker import Backend, Consumer, Inspector
from carteiro.ports.registry import open_backend
from carteiro.testing.clock import VirtualClock
from carteiro.topics import dlq_name, matches
from tests.servers.redis import RedisServer, with_query

STOCK = Subscription("orders", "stock", lease=30)
LEDGER = Subscription("orders", "ledger", ordered=True, lease=20)
AUDIT = Subscription("*", "audit", lease=10)  # it also gets the dead letters of its own refunds
RETOLD = Subscription("orders", "retold", ordered=True, lease=10)  # as the ledger, but that it is rewound
SUBSCRIPTIONS = (STOCK, LEDGER, AUDIT, RETOLD)
RETAINED = Retention("orders", 3_600)
STORE_KEY = "last"
JOINED_KEY = "full"
DUE = "due:"

topics = st.sampled_from(["orders", "orders", "refunds"])
keys = st.sampled_from(["a", "a", "b", None])
delays = st.sampled_from([0, 0, 0, 5, 60])
actions = st.sampled_from(Action)
ends = st.sampled_from([Action.ACK, Action.ACK, Action.RETRY, Action.DEAD])
members = st.sampled_from(["x", "y", None])
dues = st.sampled_from(["", "1", "1/a", "2", "é", "\ue000", "📦"]).map(DUE.__add__)
ttls = st.sampled_from([None, None, 5, 30])


@dataclass(eq=False)
class Claim:
    """A delivery of each backend for the same message, the memory backend's first."""

    deliveries: list[Delivery]
    until: float

    @property
    def subscription(self) -> Subscription:
        return self.deliveries[0].subscription

    @property
    def row(self) -> tuple[Subscription, int]:
        return self.subscription, self.deliveries[0].token[0]


class Set:
    """One that is joined, in the books."""

    SIZE = 2
    TTL = 45

    def __init__(self) -> None:
        self.members: set[str] = set()
        self.completed: tuple[str, str] | None = None
        self.until = 0.0

    def join(self, member: str, actor: str, now: float) -> bool:
        if now >= self.until:
            self.members, self.completed = set(), None
        if self.completed or member in self.members:
            return self.completed == (member, actor)
        self.members.add(member)
        self.until = now + self.TTL
        if len(self.members) == self.SIZE:
            self.completed = member, actor
        return self.completed is not None


class Lives(RuleBasedStateMachine):
    """The memory backend, and the books."""

    urls: tuple[str, ...] = ("memory://",)
    tick = 0.0
    """Seconds that pass before whatever happens, for a backend that does not put in order what happens at one time."""
    alone: tuple[Subscription, ...] = ()
    """Those whose messages are claimed one by one, for the same reason: leases that end at one time."""
    rewinds_in_order = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.directory = tempfile.TemporaryDirectory()
        self.backends: list[Backend] = []
        self.inspectors: list[Inspector] = []
        self.consumers: list[Consumer] = []
        self.bodies = 0
        self.claims: list[Claim] = []
        self.newest: dict[tuple[Subscription, int], Claim] = {}
        self.given: Counter[Subscription] = Counter()
        self.ended: Counter[Subscription] = Counter()
        self.undone: dict[str | None, list[tuple[str, bytes]]] = {}
        self.joined = Set()
        self.due: dict[str, tuple[bytes, float]] = {}

    @initialize()
    def connect(self) -> None:
        for url in self.urls:
            backend = open_backend(url.format(directory=self.directory.name), clock=self.clock)
            self.run(backend.broker.connect())
            self.run(backend.broker.declare(SUBSCRIPTIONS, [RETAINED]))
            self.backends.append(backend)
            assert isinstance(backend.broker, Inspector)
            self.inspectors.append(backend.broker)
            self.consumers.append(backend.broker.consume(SUBSCRIPTIONS))

    def teardown(self) -> None:
        for backend in self.backends:
            self.run(backend.broker.close())
        self.loop.close()
        self.directory.cleanup()

    # -- what happens to messages --------------------------------------------------------------------------------------

    @rule(sent=st.lists(st.tuples(topics, keys, delays), min_size=1, max_size=5))
    def publish(self, sent: list[tuple[str, str | None, int]]) -> None:
        self.pass_time()
        messages = [
            Outgoing(new_id(), topic, self.new_body(), key, {}, "cause", delay and delay + number * self.tick)
            for number, (topic, key, delay) in enumerate(sent)
        ]
        self.same(backend.broker.publish(messages) for backend in self.backends)
        for message in messages:
            self.note_arrival(message.topic, message.key, message.body)

    @rule(number=st.integers(0, 2))
    def publish_deduped(self, number: int) -> None:
        self.pass_time()
        before = self.counts()[AUDIT]
        message = Outgoing(f"deduped-{number}", "refunds", b"deduped", None, {}, "cause", 0, 15)
        self.same(backend.broker.publish([message]) for backend in self.backends)
        if self.counts()[AUDIT] > before:
            self.note_arrival("refunds", None, message.body)

    @precondition(lambda self: self.visible())
    @rule(data=st.data(), room=st.integers(1, 5))
    def fetch(self, data: st.DataObject, room: int) -> None:
        self.claim(data.draw(st.sampled_from(self.visible())), room)

    @precondition(lambda self: self.visible())
    @rule(data=st.data(), action=ends, delay=delays, member=members)
    def handle(self, data: st.DataObject, action: Action, delay: int, member: str | None) -> None:
        for claim in self.claim(data.draw(st.sampled_from(self.visible())), room=5):
            self.settle_one(claim, action, delay, False, member)

    def claim(self, subscription: Subscription, room: int) -> list[Claim]:
        self.pass_time()
        room = 1 if subscription in self.alone else room
        fetches = [consumer.fetch({subscription: room}) for consumer in self.consumers]
        fetched = [self.run(asyncio.wait_for(fetch, 60)) for fetch in fetches]
        for other in fetched[1:]:
            assert [told(one) for one in other] == [told(one) for one in fetched[0]]
        for deliveries in zip(*fetched, strict=True):
            claim = Claim(list(deliveries), self.clock.time() + subscription.lease)
            earlier = self.newest.get(claim.row)
            assert earlier is None or not self.lives(earlier), "two live claims on one message"
            if subscription is LEDGER and deliveries[0].message.key is not None:
                message = deliveries[0].message
                assert self.undone[message.key][0] == (message.topic, message.body), "not the oldest of its key"
            self.newest[claim.row] = claim
            self.claims.append(claim)
        return self.claims[-len(fetched[0]) :]

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(), endings=st.lists(st.tuples(st.sampled_from(Action), delays, st.booleans(), members), min_size=1)
    )
    def settle(self, data: st.DataObject, endings: list[tuple[Action, int, bool, str | None]]) -> None:
        for action, delay, emit, member in endings:
            self.settle_one(data.draw(st.sampled_from(self.claims[-4:])), action, delay, emit, member)

    def settle_one(self, claim: Claim, action: Action, delay: int, emit: bool, member: str | None = None) -> None:
        self.pass_time()
        holds = self.newest.get(claim.row) is claim
        emits = [Outgoing(new_id(), "refunds", self.new_body(), None, {}, "cause")] if emit else []
        writes = [Write(STORE_KEY, self.new_body())]
        actor = claim.deliveries[0].message.id
        full = Outgoing(new_id(), "refunds", self.new_body(), None, {}, "cause", self.tick)
        joins = [] if member is None else [self.join_of(member, actor, full)]
        lost: list[bool] = []
        for consumer, delivery in zip(self.consumers, claim.deliveries, strict=True):
            failed = action in (Action.RETRY, Action.DEAD)
            failure = Failure(delivery.message.attempt, self.clock.time(), f"failure {self.bodies}") if failed else None
            outcome = Outcome(delivery, action, delay, failure, emits, writes, joins)
            lost.append(bool(self.run(consumer.settle([outcome]))))
        assert lost == [not holds] * len(lost), "only the newest claim may settle"
        if holds:
            self.note_end(claim, action)
            if member is not None and self.joined.join(member, actor, self.clock.time()):
                emits.append(full)
            for emitted in emits:
                self.note_arrival(emitted.topic, emitted.key, emitted.body)

    def join_of(self, member: str, actor: str, full: Outgoing) -> Join:
        return Join("set", member, actor, Set.SIZE, [full], [Write(JOINED_KEY, full.body)], Set.TTL)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims[-4:]))
        holds = self.newest.get(claim.row) is claim
        for consumer, delivery in zip(self.consumers, claim.deliveries, strict=True):
            assert bool(self.run(consumer.renew([delivery]))) is not holds
        if holds:
            claim.until = self.clock.time() + claim.subscription.lease

    @rule(seconds=st.sampled_from([1, 5, 10, 30, 61]))
    def advance(self, seconds: int) -> None:
        self.clock.advance_to(self.clock.time() + seconds)

    # -- what an operator does --------------------------------------------------------------------------------------

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        self.pass_time()
        letters = self.run(self.inspectors[0].dead_letters())
        if not letters:
            return
        queue = data.draw(st.sampled_from(sorted({letter.queue for letter in letters})))
        replayed = [letter for letter in letters if letter.queue == queue]
        self.same(inspector.replay(queue) for inspector in self.inspectors)
        for letter in replayed:
            subscription = Subscription(letter.topic, letter.group)
            self.given[subscription] += 1
            if subscription == LEDGER:
                self.undone.setdefault(letter.message.key, []).append((letter.message.topic, letter.message.body))

    @rule(older_than=st.sampled_from([0, 20]))
    def purge_dead(self, older_than: int) -> None:
        for queue in (dlq_name("orders", "stock"), dlq_name("refunds")):
            age = timedelta(seconds=older_than)
            self.same(inspector.purge_dead(queue, older_than=age) for inspector in self.inspectors)

    @rule(subscription=st.sampled_from([STOCK, AUDIT]))
    def purge(self, subscription: Subscription) -> None:
        topic, group = subscription.topic, subscription.group
        self.ended[subscription] += self.same(inspector.purge(topic, group) for inspector in self.inspectors)
        self.newest = {row: one for row, one in self.newest.items() if row[0] != subscription or self.lives(one)}

    @rule(subscription=st.sampled_from([STOCK, RETOLD]), back=st.sampled_from([0, 10, 7_200]))
    def rewind(self, subscription: Subscription, back: int) -> None:
        self.pass_time()
        topic, group, to = subscription.topic, subscription.group, self.clock.time() - back
        if subscription.ordered and not self.rewinds_in_order:
            waiting = self.run(self.inspectors[0].peek(topic, group, 1000))
            if any(message.key is None for message in waiting):
                return
        self.given[subscription] += self.same(inspector.rewind(topic, group, to) for inspector in self.inspectors)
        # A lapsed claim may have been put back into its order as a new row, so nobody is to settle it from here on.
        lapsed = [one for one in self.claims if one.subscription == RETOLD == subscription and not self.lives(one)]
        self.claims = [claim for claim in self.claims if claim not in lapsed]

    # -- what is stored ------------------------------------------------------------------------------------------------

    @rule(changed=st.lists(st.tuples(dues, ttls), min_size=1, max_size=5), gone=st.booleans())
    def write(self, changed: list[tuple[str, float | None]], gone: bool) -> None:
        writes = [Write(key, None if gone else self.new_body(), ttl=ttl) for key, ttl in changed]
        assert all(self.same(backend.store.write(writes) for backend in self.backends if backend.store))
        for write in writes:
            until = math.inf if write.ttl is None else self.clock.time() + write.ttl
            self.due.pop(write.key, None)
            if write.value is not None:
                self.due[write.key] = write.value, until

    @rule(prefix=dues, before=st.none() | dues, limit=st.none() | st.integers(0, 3))
    def scan(self, prefix: str, before: str | None, limit: int | None) -> None:
        there = sorted(key for key, (_, until) in self.due.items() if until > self.clock.time())
        wanted = [key for key in there if key.startswith(prefix) and (before is None or key < before)][:limit]
        for store in (backend.store for backend in self.backends if backend.store):
            found = self.run(store.scan(prefix, before=before, limit=limit))
            assert [(key, entry.value) for key, entry in found.items()] == [(key, self.due[key][0]) for key in wanted]

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def published_is_done_and_dead_and_waiting(self) -> None:
        assert self.counts() == {one: self.given[one] - self.ended[one] for one in self.counts()}

    @invariant()
    def in_flight_are_the_claims_whose_lease_has_not_ended(self) -> None:
        for inspector in self.inspectors[:1]:
            counted = Counter(
                {Subscription(one.topic, one.group): one.in_flight for one in self.run(inspector.groups())}
            )
            assert +counted == Counter(claim.subscription for claim in self.newest.values() if self.lives(claim))

    @invariant()
    def all_backends_tell_the_same(self) -> None:
        for subscription in SUBSCRIPTIONS if self.backends else ():
            seen = [self.run(one.peek(subscription.topic, subscription.group)) for one in self.inspectors]
            for other in seen[1:]:
                assert [(one.topic, one.body, one.attempt) for one in other] == [
                    (one.topic, one.body, one.attempt) for one in seen[0]
                ]
        groups = [[counted(one) for one in self.run(inspector.groups())] for inspector in self.inspectors]
        dead = [self.run(inspector.dead_letters()) for inspector in self.inspectors]
        stored = [
            self.run(backend.store.get([STORE_KEY, JOINED_KEY, *self.due]))
            for backend in self.backends
            if backend.store
        ]
        for other in range(1, len(self.backends)):
            assert groups[other] == groups[0]
            assert [buried(one) for one in dead[other]] == [buried(one) for one in dead[0]]
            assert stored[other] == stored[0]

    # -- the books ----------------------------------------------------------------------------------------------------

    def note_arrival(self, topic: str, key: str | None, body: bytes, besides: str | None = None) -> None:
        for subscription in SUBSCRIPTIONS:
            if matches(subscription.topic, topic) and not (besides and matches(subscription.topic, besides)):
                self.given[subscription] += 1
                if subscription is LEDGER:
                    self.undone.setdefault(key, []).append((topic, body))

    def note_end(self, claim: Claim, action: Action) -> None:
        del self.newest[claim.row]
        message = claim.deliveries[0].message
        if action in (Action.RETRY, Action.RELEASE):
            return
        self.ended[claim.subscription] += 1
        if claim.subscription == LEDGER:
            self.undone[message.key].remove((message.topic, message.body))
        if action is Action.DEAD:
            names = dlq_name(message.topic), dlq_name(message.topic, claim.subscription.group)
            short = sum(matches(one.topic, message.topic) for one in SUBSCRIPTIONS) == 1
            name, alias = names if short else reversed(names)
            self.note_arrival(name, message.key, message.body)
            self.note_arrival(alias, message.key, message.body, besides=name)

    def lives(self, claim: Claim) -> bool:
        """Whether its lease has not ended."""
        return claim.until > self.clock.time()

    def pass_time(self) -> None:
        self.clock.advance_to(self.clock.time() + self.tick)

    def new_body(self) -> bytes:
        self.bodies += 1
        return b"%d" % self.bodies

    # -- both at once -------------------------------------------------------------------------------------------------

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def same(self, awaitables: Any) -> Any:
        """The answer that all backends give."""
        answers = [self.run(awaitable) for awaitable in awaitables]
        for other in answers[1:]:
            assert other == answers[0]
        return answers[0]

    def visible(self) -> list[Subscription]:
        """The subscriptions that a fetch would not wait for."""
        statuses = [one for inspector in self.inspectors[:1] for one in self.run(inspector.groups())]
        waiting = {(one.topic, one.group) for one in statuses if one.waiting}
        return [one for one in SUBSCRIPTIONS if (one.topic, one.group) in waiting]

    def counts(self) -> dict[Subscription, int]:
        """How many messages each group has yet to end."""
        statuses = [one for inspector in self.inspectors[:1] for one in self.run(inspector.groups())]
        return {
            Subscription(one.topic, one.group): one.waiting + one.delayed + one.retrying + one.in_flight
            for one in statuses
        }


def told(delivery: Delivery) -> tuple[Any, ...]:
    """What a claim says, but for what is the backend's own."""
    message = delivery.message
    return (
        delivery.subscription,
        message.topic,
        message.body,
        message.key,
        dict(message.headers),
        message.correlation_id,
        message.published,
        message.attempt,
        delivery.history,
        delivery.lost,
    )


def counted(status: Any) -> tuple[Any, ...]:
    return (
        status.topic,
        status.group,
        status.waiting,
        status.delayed,
        status.retrying,
        status.in_flight,
        status.dead,
        status.oldest,
    )


def buried(letter: Any) -> tuple[Any, ...]:
    message = letter.message
    life = (letter.queue, letter.topic, letter.group, letter.reason, letter.at, letter.history)
    return (*life, message.topic, message.body, message.attempt)


class LivesOnSqlite(Lives):
    """SQLite beside the memory backend, on one clock."""

    urls = ("memory://", "sqlite:///{directory}/broker.db")

    def teardown(self) -> None:
        super().teardown()
        assert not Path(self.directory.name).exists()


class LivesOnRedis(Lives):
    """Redis beside the memory backend; the held clock's time is passed to its scripts."""

    server: ClassVar[RedisServer]
    tick = 1 / 64  # a whole number of microseconds, and exact as a float
    alone = (STOCK, RETOLD)  # after a rewind the order of their rows is another than in memory
    rewinds_in_order = False  # what has no key may come before what has one, to which no order is promised

    def __init__(self) -> None:
        super().__init__()
        self.urls = ("memory://", with_query(self.server.url, prefix=new_id()))


def effort(examples: int, *, shrink: bool = True) -> settings:
    """Beside another backend it takes minutes to make a failure smaller: without `shrink` only a longer search does."""
    longer = os.environ.get("CARTEIRO_MODEL_EXAMPLES")
    phases = set(settings().phases) - {Phase.explain}
    return settings(
        max_examples=int(longer or examples),
        stateful_step_count=60,
        deadline=None,
        phases=phases if shrink or longer else phases - {Phase.shrink},
        suppress_health_check=[HealthCheck.too_slow],
    )


TestMemoryLives = Lives.TestCase
TestMemoryLives.settings = effort(100)
TestSqliteLives = LivesOnSqlite.TestCase
TestSqliteLives.settings = effort(15, shrink=False)


@pytest.mark.needs("redis")
class TestRedisLives(LivesOnRedis.TestCase):  # type: ignore[misc, valid-type]
    settings = effort(60, shrink=False)

    @classmethod
    def setUpClass(cls) -> None:
        LivesOnRedis.server = RedisServer()
        LivesOnRedis.server.start()

    @classmethod
    def tearDownClass(cls) -> None:
        LivesOnRedis.server.close()
