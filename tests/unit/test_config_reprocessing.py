"""Dead letters that go back by themselves: after a while, a few times, and once for each death."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from carteiro import Carteiro, ConfigurationError, Message, Reject, Reprocess, Retry
from carteiro.engine.failures import is_hopeless
from carteiro.engine.reprocessing import KEPT, Reprocessing
from carteiro.message import DeadLetter, Write
from carteiro.ports.store import Entry, Store
from carteiro.testing import TestApp, VirtualClock
from tests.e2e.tour.stage import Stage, soon

ONCE = Retry(attempts=1)


class Failing:
    """A handler that fails as long as `down`, and notes when it was called, in seconds since the first call."""

    def __init__(self, app: Carteiro) -> None:
        self.down = True
        self.times: list[float] = []
        self._app = app

    async def __call__(self, number: int) -> None:
        self.times.append(self._app.clock.time())
        if self.down:
            raise ConnectionError("the bank is away")

    @property
    def after(self) -> list[float]:
        return [round(time - self.times[0], 3) for time in self.times]


@pytest.fixture
def app() -> Carteiro:
    return Carteiro("shop", "memory://")


async def test_a_dead_letter_goes_back_when_it_has_been_dead_for_so_long(app: Carteiro):
    handler = Failing(app)
    app.subscriber("orders", retry=ONCE, reprocess=Reprocess(every="10m", limit=3))(handler)
    async with TestApp(app) as t:
        await t.advance(minutes=7)  # whatever the worker did before
        await t.publish("orders", 1)
        await t.advance(minutes=9, seconds=59)
        assert handler.after == [0]
        handler.down = False
        await t.advance(seconds=1)
        assert handler.after == [0, 600]
        assert t.dead() == []


async def test_it_goes_back_so_many_times_and_then_stays(app: Carteiro):
    handler = Failing(app)
    app.subscriber("orders", retry=ONCE, reprocess=Reprocess(every="10m", limit=2))(handler)
    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.advance(seconds=2 * KEPT)
        assert handler.after == [0, 600, 1200]
        assert len(t.dead("orders")) == 1


async def test_each_time_it_has_all_its_attempts_again(app: Carteiro):
    handler = Failing(app)
    retry = Retry(attempts=2, backoff=lambda failures: 60.0)
    app.subscriber("orders", retry=retry, reprocess=Reprocess(every="10m", limit=1))(handler)
    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.advance(hours=5)
        assert handler.after == [0, 60, 660, 720]


class OrderClosed(Reject):
    """A user's own kind of Reject."""


async def test_what_no_further_try_can_help_stays_dead(app: Carteiro):
    seen: list[object] = []

    @app.subscriber("orders", type="close", retry=ONCE, reprocess=Reprocess(every="10m", limit=3))
    async def close(number: int) -> None:
        seen.append(number)
        raise Reject("closed") if number == 1 else OrderClosed("closed")

    async with TestApp(app) as t:
        for value, kind in ((1, "close"), (2, "close"), ("not a number", "close"), (3, "open")):
            await t.publish("orders", value, type=kind)
        await t.advance(hours=24)
        assert seen == [1, 2]
        kinds = [letter.reason.partition(":")[0] for letter in t.dead()]
        assert kinds == ["Reject", "OrderClosed", "InvalidBody", "NoHandler"]


@pytest.mark.parametrize("reason", ["ConnectionError: Reject: no", "Rejected: no", "WorkerLost: it died", ""])
def test_other_reasons_are_worth_a_try(reason: str):
    assert not is_hopeless(reason)


async def test_the_letters_of_other_groups_are_left_alone(app: Carteiro):
    ours, theirs = Failing(app), Failing(app)
    app.subscriber("orders", group="ours", retry=ONCE, reprocess=Reprocess(every="10m", limit=1))(ours)
    app.subscriber("orders", group="theirs", retry=ONCE)(theirs)
    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.advance(hours=1)
        assert (ours.after, theirs.after) == ([0, 600], [0])


async def test_what_a_pattern_gets_is_reprocessed_from_each_of_its_queues(app: Carteiro):
    handler = Failing(app)
    app.subscriber("orders.*", retry=ONCE, reprocess=Reprocess(every="10m", limit=1))(handler)
    async with TestApp(app) as t:
        await t.publish("orders.placed", 1)
        await t.publish("orders.paid", 2)
        await t.advance(hours=1)
        assert handler.after == [0, 0, 600, 600]


async def test_more_than_a_page_of_hopeless_letters_hides_nothing(app: Carteiro, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("carteiro.engine.reprocessing.PAGE", 3)
    handler = Failing(app)
    app.subscriber("orders", retry=ONCE, reprocess=Reprocess(every="10m", limit=1))(handler)
    async with TestApp(app) as t:
        await t.publish_many("orders", ["bad"] * 10)
        await t.publish_many("orders", list(range(10)))
        await t.advance(hours=1)
        assert handler.after == [0] * 10 + [600] * 10


async def test_letters_that_stay_are_fetched_once_a_look_and_gone_through_with_turns_for_others(
    app: Carteiro, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("carteiro.engine.reprocessing.PAGE", 10)
    app.subscriber("orders", retry=ONCE)(Failing(app))
    turns = 0
    fetched: list[int] = []
    asked: list[tuple[str, int]] = []  # the kind of a reason, and in which turn of the loop

    async with TestApp(app) as t:
        assert app.worker is not None
        message = Message("1", "orders", b"1", None, {}, "1", t.now.timestamp(), 1)
        letters = [
            DeadLetter(str(number), "dlq_orders", "orders", "shop", message, f"Kind{number // 10}: no", 0.0, ())
            for number in range(95)
        ]

        async def dead_letters(queue: str, *, limit: int) -> Sequence[DeadLetter]:
            if queue != "dlq_orders":
                return []
            fetched.append(len(letters[:limit]))
            asyncio.get_running_loop().call_soon(turn)
            return letters[:limit]

        def turn() -> None:
            nonlocal turns
            turns += 1
            if turns % 20:
                asyncio.get_running_loop().call_soon(turn)

        def hopeless(kind: str) -> bool:
            asked.append((kind, turns))
            return True

        monkeypatch.setattr(app.connection.broker, "dead_letters", dead_letters)
        monkeypatch.setattr("carteiro.engine.reprocessing.is_hopeless", hopeless)
        routes = [msgspec.structs.replace(app.worker.routes[0], reprocess=Reprocess(every="10m", limit=3))]
        running = asyncio.create_task(
            Reprocessing(routes, app.connection.broker, app.connection.store, app.clock).run()
        )
        await t.idle()
        assert fetched == [10, 20, 40, 80, 95]
        assert [kind for kind, _ in asked] == [f"Kind{number}" for number in range(10)]

        fetched.clear()
        asked.clear()
        await t.advance(minutes=10)
        running.cancel()
    assert fetched == [95]
    assert len({turn for _, turn in asked}) == len(asked) == 10


async def test_a_worker_that_cannot_see_its_dead_letters_tries_again(app: Carteiro, monkeypatch: pytest.MonkeyPatch):
    handler = Failing(app)
    app.subscriber("orders", retry=ONCE, reprocess=Reprocess(every="10m", limit=1))(handler)
    async with TestApp(app) as t:
        broker = app.connection.broker
        looks: list[object] = []

        async def fail(*_: object, **__: object) -> None:
            looks.append(None)
            raise ConnectionError("away")

        with monkeypatch.context() as away:
            away.setattr(broker, "dead_letters", fail)
            await t.publish("orders", 1)
            await t.advance(minutes=30)
        assert looks
        assert handler.after == [0]
        await t.advance(minutes=1)
        assert len(handler.times) == 2


def test_an_option_that_cannot_be_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"Reprocess\(every='10m', limit=0\): over 0 seconds, and at least once"
    ):
        Reprocess(limit=0)
    with pytest.raises(ConfigurationError, match=r"reprocess='10m' on `a`: write reprocess=Reprocess"):
        Carteiro("shop").subscriber("a", reprocess="10m")  # type: ignore[arg-type]


async def test_without_a_store_it_is_refused_at_the_start(app: Carteiro):
    app.subscriber("orders", reprocess=Reprocess())(Failing(app))
    async with TestApp(app):
        assert app.worker is not None
        with pytest.raises(ConfigurationError, match=r"orders \[shop\] needs a store to reprocess dead letters"):
            Reprocessing(app.worker.routes, app.connection.broker, None, app.clock)


class Meeting:
    """A store in which two readers have read before either writes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read = asyncio.Barrier(2)
        self.written = asyncio.Barrier(3)

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        found = await self._store.get(keys)
        if keys:
            await self._read.wait()
        return found

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        done = await self._store.write(writes)
        if writes:
            await self.written.wait()
        return done

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


async def test_of_two_that_have_seen_the_same_letter_one_sends_it_back(app: Carteiro, monkeypatch: pytest.MonkeyPatch):
    app.subscriber("orders", retry=ONCE)(Failing(app))
    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.advance(minutes=10)
        assert app.worker is not None
        assert app.connection.store is not None
        broker, store = app.connection.broker, Meeting(app.connection.store)
        sent: list[str] = []

        async def replay(queue: str, *, ids: Sequence[str]) -> int:
            sent.extend(ids)
            return len(ids)

        monkeypatch.setattr(broker, "replay", replay)
        routes = [msgspec.structs.replace(app.worker.routes[0], reprocess=Reprocess(every="10m", limit=3))]
        workers = [Reprocessing(routes, broker, cast(Store, store), app.clock) for _ in range(2)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        await soon(store.written.wait())
        await t.idle()
        for one in running:
            one.cancel()
        assert len(sent) == 1


@pytest.mark.parametrize(("system", "every"), [("sqlite", 0.5), ("redis", 0.5), ("rabbitmq", 2.0)])
async def test_several_workers_send_each_letter_back_no_oftener_than_the_limit(
    system: str, every: float, request: pytest.FixtureRequest, tmp_path: Path
):
    url = f"sqlite:///{tmp_path}/shop.db" if system == "sqlite" else request.getfixturevalue(f"{system}_url")
    stage = Stage(url)
    calls: Counter[str] = Counter()

    def worker() -> Carteiro:
        app = stage.app("shop", store=f"sqlite:///{tmp_path}/marks.db")

        @app.subscriber("orders", retry=ONCE, reprocess=Reprocess(every=every, limit=2))
        async def fail(message: Message) -> None:
            calls[message.id] += 1
            raise ConnectionError("the bank is away")

        return app

    workers = [worker(), worker()]
    await stage.run(*workers)
    await workers[0].publish_many("orders", list(range(20)))
    store = workers[0].connection.store
    assert store is not None

    async def all_had_their_times() -> None:
        while True:
            marks = [msgspec.json.decode(entry.value) for entry in (await store.scan("reprocess:")).values()]
            if [times for times, _ in marks] == [2] * 20:
                return

    await soon(all_had_their_times())
    await stage.until("orders", lambda of: of.dead == 20, group="shop")
    assert max(calls.values()) <= 3
    await stage.close()


async def test_the_count_outlives_the_worker(tmp_path: Path):
    stage = Stage(f"sqlite:///{tmp_path}/shop.db")
    clock = stage.hold_time()
    assert isinstance(clock, VirtualClock)
    calls: list[float] = []

    def worker() -> Carteiro:
        app = stage.app("shop")

        @app.subscriber("orders", retry=ONCE, reprocess=Reprocess(every=600, limit=2))
        async def fail(number: int) -> None:
            calls.append(clock.time())
            raise ConnectionError("the bank is away")

        @app.subscriber("done")
        async def done(number: int) -> None:
            over.set()

        return app

    first = worker()
    await stage.run(first)
    await first.publish("orders", 1)
    await stage.pass_until(stage.until("orders", lambda of: of.dead == 1 and len(calls) == 2), step=60)
    await stage.stop(first)
    over = asyncio.Event()
    second = worker()
    await stage.run(second)
    await second.publish("done", 1, delay="1d")
    await stage.pass_until(over.wait(), step=600, most=100_000)
    assert len(calls) == 3
    await stage.close()
