"""Limits of tasks across a cluster: several `Permits` on one store stand for as many processes."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from carteiro.backends.memory import open_backend
from carteiro.errors import BrokerUnavailable, ConfigurationError, InvalidBody
from carteiro.message import Write
from carteiro.policies.limit import Limit
from carteiro.policies.rate import Rate
from carteiro.ports.store import Entry, Store
from carteiro.tasks.permits import Permits
from carteiro.testing.clock import VirtualClock
from tests.unit.outage import later


class Shared:
    """A store behind a network: others get their turn within each call, and it can be away."""

    def __init__(self, clock: VirtualClock) -> None:
        store = open_backend("memory://", clock=clock).store
        assert store is not None
        self._store: Store = store
        self.away = False
        self.writes: list[bool] = []
        """Of each write, whether it met no other."""

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        await self._call()
        return await self._store.get(keys)

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        await self._call()
        done = await self._store.write(writes)
        self.writes += done
        return done

    async def keys(self) -> list[str]:
        return list(await self._store.scan(""))

    async def _call(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise BrokerUnavailable("the store is away")


class Cluster:
    """Some processes that share a limit on the task `send`."""

    def __init__(self, limit: Limit, processes: int = 2) -> None:
        self.clock = VirtualClock()
        self.store = Shared(self.clock)
        self.processes = [self.process(limit) for _ in range(processes)]

    def process(self, limit: Limit) -> Permits:
        permits = Permits("send", limit, cast("Store", self.store), self.clock)
        permits.start()
        return permits

    async def pass_time(self, seconds: float) -> None:
        await later(self.clock, seconds)

    async def close(self) -> None:
        for process in self.processes:
            closing = asyncio.create_task(process.close())
            while not closing.done():
                await later(self.clock, 0.1)


MakeCluster = Callable[..., Cluster]


@pytest.fixture
async def cluster() -> AsyncIterator[MakeCluster]:
    made: list[Cluster] = []

    def make(limit: Limit, processes: int = 2) -> Cluster:
        made.append(Cluster(limit, processes))
        return made[-1]

    yield make
    for one in made:
        one.store.away = False
        await one.close()


# -- what is declared --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "limits nothing"),
        ({"per": len}, "limits nothing"),
        ({"running": 0}, "at least 1"),
        ({"running": True}, "at least 1"),
        ({"running": "2"}, "at least 1"),
        ({"rate": "100"}, "100/m"),
        ({"rate": 100}, "100/m"),
        ({"running": 2, "per": "user_id"}, "lambda a"),
    ],
)
def test_a_limit_that_cannot_work_says_what_to_write_instead(options: dict[str, Any], said: str):
    with pytest.raises(ConfigurationError, match=said):
        Limit(**options)


def test_the_key_is_made_of_the_arguments_by_name():
    assert Limit(2).key_of({"user_id": 7}) == ""
    assert Limit(2, per=lambda a: a.user_id).key_of({"user_id": 7, "text": "hello"}) == "7"
    assert Limit(2, per=lambda a: (a.shop, a.user["id"])).key_of({"shop": "br", "user": {"id": 1}}) == "('br', 1)"


@pytest.mark.parametrize(
    "per",
    [lambda a: a.tenant, lambda a: a.user["id"], lambda a: a.number["id"]],
    ids=["no such argument", "no such item", "no items"],
)
def test_arguments_of_which_no_key_can_be_made_do_not_fit(per: Callable[[Any], object]):
    with pytest.raises(InvalidBody, match="`per`"):
        Limit(2, per=per).key_of({"user": {}, "number": 1})


# -- how many run ------------------------------------------------------------------------------------------------------


async def test_no_more_run_at_once_than_the_limit_says_whoever_asks(cluster: MakeCluster):
    c = cluster(Limit(2))
    one, other = c.processes

    assert await one.admit("", "a") == 0.0
    assert await other.admit("", "b") == 0.0
    assert await one.admit("", "c") > 0
    assert await other.admit("", "d") > 0

    one.end("", "a")
    await c.pass_time(0)
    assert await other.admit("", "d") == 0.0
    assert await one.admit("", "c") > 0


async def test_each_key_has_the_limit_to_itself(cluster: MakeCluster):
    c = cluster(Limit(1, per=lambda a: a.user_id))
    one, other = c.processes

    assert await one.admit("7", "a") == 0.0
    assert await other.admit("8", "b") == 0.0
    assert await other.admit("7", "c") > 0


async def test_all_who_ask_at_the_same_time_get_no_more_than_there_is(cluster: MakeCluster):
    c = cluster(Limit(3), processes=8)
    asking = [asyncio.create_task(c.processes[n % 8].admit("", f"{n}")) for n in range(80)]
    await c.pass_time(5)

    waits = [asked.result() for asked in asking]
    assert waits.count(0.0) == 3
    assert len(set(waits)) == 78, "each that is sent away has a place of its own"
    assert 7 <= c.store.writes.count(False) < 14, "they met each other, and then stepped back"


async def test_a_burst_of_deliveries_costs_a_few_writes(cluster: MakeCluster):
    c = cluster(Limit(2), processes=1)

    waits = await asyncio.gather(*(c.processes[0].admit("", f"{n}") for n in range(500)))

    assert waits.count(0.0) == 2
    assert len(c.store.writes) <= 3


async def test_many_keys_go_in_one_write(cluster: MakeCluster):
    c = cluster(Limit(1, per=lambda a: a.user_id), processes=1)
    calls = 0
    write = c.store.write

    async def counted(writes: Sequence[Write]) -> Sequence[bool]:
        nonlocal calls
        calls += 1
        return await write(writes)

    c.store.write = counted  # type: ignore[method-assign]
    assert await asyncio.gather(*(c.processes[0].admit(f"{n}", "m") for n in range(200))) == [0.0] * 200
    assert calls <= 3


async def test_the_end_of_what_never_had_a_permit_does_nothing(cluster: MakeCluster):
    c = cluster(Limit(1))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0

    other.end("", "a")
    one.end("", "b")
    await c.pass_time(1)

    assert await other.admit("", "b") > 0


async def test_a_worker_that_stops_while_it_asks_leaves_no_permit_behind(cluster: MakeCluster):
    c = cluster(Limit(1))
    one, other = c.processes
    for turns in range(8):  # wherever the cancel meets the answer
        asking = asyncio.create_task(one.admit("", "a"))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            one.end("", "a")
        await c.pass_time(1)

        assert await other.admit("", "b") == 0.0, f"cancelled after {turns} turns"
        other.end("", "b")
        await c.pass_time(0)


# -- leases ------------------------------------------------------------------------------------------------------------


async def test_a_permit_is_held_for_as_long_as_its_task_runs(cluster: MakeCluster):
    c = cluster(Limit(1))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0

    for _ in range(10):
        await c.pass_time(60)
        assert await other.admit("", "b") > 0


async def test_the_permits_of_a_killed_worker_come_free_when_their_lease_ends(cluster: MakeCluster):
    c = cluster(Limit(1))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0

    await one.kill()
    one.end("", "a")
    await c.pass_time(29)
    assert await other.admit("", "b") > 0
    await c.pass_time(2)
    assert await other.admit("", "b") == 0.0


async def test_a_message_that_comes_again_takes_its_own_permit_over(cluster: MakeCluster):
    c = cluster(Limit(1))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0

    assert await other.admit("", "a") == 0.0
    one.end("", "a")  # what ran there ends late: the permit is not its any more
    await c.pass_time(0)
    assert await one.admit("", "b") > 0
    await c.pass_time(60)
    assert await one.admit("", "b") > 0

    other.end("", "a")
    await c.pass_time(0)
    assert await one.admit("", "b") == 0.0


async def test_a_worker_that_lost_its_permit_to_another_says_so_and_renews_it_no_more(
    cluster: MakeCluster, caplog: pytest.LogCaptureFixture
):
    c = cluster(Limit(1))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0
    assert await other.admit("", "a") == 0.0

    with caplog.at_level(logging.WARNING):
        await c.pass_time(60)

    assert [record.message for record in caplog.records] == [
        "a of task `send` was taken over by another worker, and runs here too"
    ]


async def test_a_worker_that_was_frozen_takes_its_permit_back_and_nobody_joins_the_two_that_run(cluster: MakeCluster):
    c = cluster(Limit(1))
    frozen, other = c.processes
    assert await frozen.admit("", "a") == 0.0
    c.clock.advance_to(c.clock.time() + 31)  # nobody has run meanwhile: the other is the first to wake
    assert await other.admit("", "b") == 0.0

    await c.pass_time(1)  # the frozen one renews
    other.end("", "b")
    await c.pass_time(1)
    assert await other.admit("", "c") > 0

    frozen.end("", "a")
    await c.pass_time(0)
    assert await other.admit("", "c") == 0.0


async def test_without_anything_to_hold_there_is_no_timer(cluster: MakeCluster):
    c = cluster(Limit(1))
    assert c.clock.next_due() is None
    assert await c.processes[0].admit("", "a") == 0.0
    await c.pass_time(0)
    assert c.clock.next_due() is not None

    c.processes[0].end("", "a")
    await c.pass_time(30)
    assert c.clock.next_due() is None


async def test_keys_that_nobody_uses_vanish(cluster: MakeCluster):
    c = cluster(Limit(1, rate="10/m", per=lambda a: a.user_id))
    one, _ = c.processes
    for user in range(20):
        assert await one.admit(f"{user}", f"{user}") == 0.0
        one.end(f"{user}", f"{user}")
    await c.pass_time(1)
    assert len(await c.store.keys()) == 20

    await c.pass_time(700)
    assert await c.store.keys() == []


# -- a store that is away ----------------------------------------------------------------------------------------------


async def test_a_store_that_is_away_is_an_error_for_those_who_ask(cluster: MakeCluster):
    c = cluster(Limit(1))
    c.store.away = True
    with pytest.raises(BrokerUnavailable):
        await c.processes[0].admit("", "a")

    c.store.away = False
    assert await c.processes[0].admit("", "a") == 0.0


async def test_what_ends_while_the_store_is_away_is_given_back_when_it_is_there_again(
    cluster: MakeCluster, caplog: pytest.LogCaptureFixture
):
    c = cluster(Limit(2))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0
    assert await one.admit("", "b") == 0.0

    c.store.away = True
    with caplog.at_level(logging.WARNING):
        one.end("", "a")
        await c.pass_time(15)
    assert {record.message for record in caplog.records} == {
        "permits of task `send` are not given back or renewed, trying again: the store is away"
    }
    c.store.away = False
    await c.pass_time(10)

    assert await other.admit("", "c") == 0.0
    assert await other.admit("", "d") > 0, "b runs on, and was renewed"


async def test_closing_gives_back_what_has_ended(cluster: MakeCluster):
    c = cluster(Limit(1))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0
    c.store.away = True
    one.end("", "a")
    await c.pass_time(1)

    c.store.away = False
    await one.close()

    assert await other.admit("", "b") == 0.0


# -- rates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["5/10s", "1/2s", "200/s"])
async def test_no_window_ever_holds_more_starts_than_the_rate_and_few_are_lost(cluster: MakeCluster, text: str):
    rate = Rate.parse(text)
    c = cluster(Limit(rate=text))
    queue = Queue(c, lasts=lambda n: 0.0)
    queue.publish("", 12 * rate.count)
    await queue.drain()

    starts = queue.starts[""]
    assert len(starts) == 12 * rate.count
    for first, beyond in zip(starts, starts[rate.count :], strict=False):
        assert beyond - first >= rate.per * (1 - 1e-6)
    assert starts[-1] - starts[0] < 12 * rate.per * 1.1
    assert queue.moves[""] < 3 * len(starts)


async def test_a_message_that_was_sent_away_by_the_rate_comes_back_to_its_start(cluster: MakeCluster):
    c = cluster(Limit(rate="6/m"))
    one, other = c.processes
    assert await one.admit("", "a") == 0.0

    wait = await other.admit("", "b")
    assert wait == pytest.approx(10, abs=0.01)
    assert await one.admit("", "c") > 10, "there is one message to one start"

    await c.pass_time(wait)
    assert await other.admit("", "b") == 0.0, "it is not charged again"
    assert await one.admit("", "c") == pytest.approx(10, abs=0.01)


# -- fairness ----------------------------------------------------------------------------------------------------------


class Queue:
    """A broker's queue, ordered by the time at which a message is visible, and ten slots of each process for it."""

    def __init__(self, cluster: Cluster, lasts: Callable[[int], float]) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._lasts = lasts
        self._line: list[tuple[float, int, str, str]] = []
        self._count = self._left = 0
        self._idle: list[asyncio.Future[tuple[str, str]]] = []
        self._running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        """By key: how many ran at once."""
        self.moves: Counter[str] = Counter()
        self.starts: dict[str, list[float]] = {}
        self.done: list[tuple[str, str]] = []

    def publish(self, key: str, count: int) -> None:
        for n in range(count):
            self._put(key, f"{key}{n}", 0.0)
        self._left += count

    async def drain(self) -> None:
        """Work until all is done."""
        slots = [asyncio.create_task(self._slot(process)) for process in self._cluster.processes for _ in range(10)]
        while True:
            for _ in range(12):
                await asyncio.sleep(0)
            if not self._left:
                break
            if self._hand_out():
                continue
            ahead = [self._clock.next_due(), self._line[0][0] if self._line and self._idle else None]
            self._clock.advance_to(max(self._clock.time(), min(due for due in ahead if due is not None)))
        for slot in slots:
            slot.cancel()
        await asyncio.wait(slots)

    def _put(self, key: str, id: str, delay: float) -> None:
        self._count += 1
        heapq.heappush(self._line, (self._clock.time() + delay, self._count, key, id))

    def _hand_out(self) -> bool:
        handed = False
        while self._idle and self._line and self._line[0][0] <= self._clock.time():
            _, _, key, id = heapq.heappop(self._line)
            self._idle.pop().set_result((key, id))
            handed = True
        return handed

    async def _slot(self, permits: Permits) -> None:
        while True:
            self._idle.append(asyncio.get_running_loop().create_future())
            key, id = await self._idle[-1]
            wait = await permits.admit(key, id)
            if wait:
                self.moves[key] += 1
                self._put(key, id, wait)
                continue
            self.starts.setdefault(key, []).append(self._clock.time())
            self._running[key] += 1
            self.most[key] = max(self.most[key], self._running[key])
            lasts = self._lasts(len(self.starts[key]))
            if lasts:
                await self._clock.sleep(lasts)
            self._running[key] -= 1
            permits.end(key, id)
            self.done.append((key, id))
            self._left -= 1


@pytest.mark.parametrize(
    ("lasts", "many"),
    [pytest.param(lambda n: 0.25, 3000, marks=pytest.mark.slow), (lambda n: 2.0 if n % 10 == 0 else 0.05, 1000)],
    ids=["tasks take equally long", "one in ten takes longer"],
)
async def test_ten_messages_do_not_wait_for_the_thousands_before_them(
    cluster: MakeCluster, lasts: Callable[[int], float], many: int
):
    c = cluster(Limit(2, per=lambda a: a.tenant))
    queue = Queue(c, lasts)
    queue.publish("whale", many)
    queue.publish("small", 10)
    began = c.clock.time()
    await queue.drain()

    assert sorted(queue.done) == sorted(
        [("whale", f"whale{n}") for n in range(many)] + [("small", f"small{n}") for n in range(10)]
    )
    assert queue.most == {"whale": 2, "small": 2}
    before = max(at for at, (key, _) in enumerate(queue.done) if key == "small") - 9
    assert before <= 36, f"{before} of the whale's ran before the ten were done"
    took, ideal = c.clock.time() - began, sum(lasts(n) for n in range(1, many + 1)) / 2
    assert took < 1.3 * ideal
    assert queue.moves["whale"] < 12 * many


async def test_places_of_messages_that_are_gone_keep_nobody_waiting_for_long(cluster: MakeCluster):
    c = cluster(Limit(2))
    one, other = c.processes
    assert await one.admit("", "x") == 0.0
    assert await one.admit("", "y") == 0.0
    await c.pass_time(60)
    waits = await asyncio.gather(*(one.admit("", f"{n}") for n in range(1000)))
    assert max(waits) > 120

    one.end("", "x")
    one.end("", "y")
    await c.pass_time(61)  # none of the thousand comes, for longer than a task takes

    assert await other.admit("", "a") == 0.0
    assert await other.admit("", "b") == 0.0
    assert await other.admit("", "c") < 20


async def test_behind_a_task_of_an_hour_nobody_moves_all_the_time(cluster: MakeCluster):
    c = cluster(Limit(1), processes=1)
    queue = Queue(c, lasts=lambda n: 3600.0 if n == 1 else 0.01)
    queue.publish("", 10)
    await queue.drain()

    assert queue.moves[""] < 10 * 40
    assert queue.starts[""][-1] - queue.starts[""][0] < 3600 + 600 + 60
