"""The end of a worker: what it finishes, what it hands back, and what is not counted against a message."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from carteiro import Carteiro, Message, NotConnected
from carteiro.message import Join, Write
from carteiro.ports.broker import Check
from carteiro.ports.registry import open_backend
from carteiro.ports.store import Entry, Store
from tests.e2e.tour.stage import Stage, follow, soon


class Held:
    """An app whose handler says what it has begun, and ends when it may."""

    def __init__(self, app: Carteiro, **options: int) -> None:
        self.app = app
        self.begun: asyncio.Queue[int] = asyncio.Queue()
        self.may_end = asyncio.Event()
        self.ended = 0

        @app.subscriber("work", **options)  # type: ignore[arg-type]
        async def work(message: Message) -> int:
            self.begun.put_nowait(message.attempt)
            await self.may_end.wait()
            self.ended += 1
            return message.attempt

    async def stopping(self) -> None:
        """Return once its worker has begun to stop."""
        worker = self.app.worker
        while worker is not None and not any(lane.stopping for lane in worker.lanes.values()):  # noqa: ASYNC110
            await asyncio.sleep(0)  # a worker tells nobody


async def test_a_stop_lets_what_runs_end_and_settles_it(stage: Stage):
    held = Held(stage.app())
    await stage.run(held.app)
    await held.app.publish_many("work", range(3))
    for _ in range(3):
        await soon(held.begun.get())

    stopping = asyncio.create_task(stage.stop(held.app))
    await held.stopping()
    held.may_end.set()
    await soon(stopping)

    assert held.ended == 3
    status = await stage.group("work")
    assert (status.waiting, status.in_flight) == (0, 0)


async def test_what_was_prefetched_is_handed_back_and_is_no_attempt(stage: Stage):
    held = Held(stage.app(), concurrency=1, prefetch=10)
    async with held.app:
        await held.app.publish_many("work", range(5))
    await stage.run(held.app)
    await soon(held.begun.get())
    assert (await stage.group("work")).in_flight == 5

    stopping = asyncio.create_task(stage.stop(held.app))
    await held.stopping()
    held.may_end.set()
    await soon(stopping)
    assert (await stage.group("work")).waiting == 4

    other = Held(stage.app())
    other.may_end.set()
    await stage.run(other.app)
    assert [await soon(other.begun.get()) for _ in range(4)] == [1] * 4


async def test_an_attempt_that_the_end_of_the_grace_interrupts_is_not_counted(stage: Stage):
    held = Held(stage.app(grace=0))
    await stage.run(held.app)
    await held.app.publish("work", 1)
    await soon(held.begun.get())

    await stage.stop(held.app)

    other = Held(stage.app())
    await stage.run(other.app)
    assert await soon(other.begun.get()) == 1
    assert held.ended == 0
    other.may_end.set()


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_asked_a_second_time_it_skips_the_grace(stage: Stage, how: str):
    held = Held(stage.app(grace="1h"))
    running = asyncio.create_task(held.app.run())
    await soon(held.app.ready())
    await held.app.publish("work", 1)
    await soon(held.begun.get())
    ask = held.app.stop if how == "stop" else running.cancel

    ask()
    await held.stopping()
    ask()

    await soon(asyncio.wait([running]))
    assert held.ended == 0
    status = await stage.group("work")
    assert (status.waiting, status.in_flight) == (1, 0)


async def test_a_handler_that_outlives_its_lease_many_times_runs_once(stage: Stage):
    clock = stage.hold_time()
    held = Held(stage.app(lease=30))
    other = Held(stage.app(lease=30))
    await stage.run(held.app, other.app)
    await held.app.publish("work", 1)

    await soon(stage.pass_until(clock.sleep(200), step=5))
    held.may_end.set()
    other.may_end.set()
    await stage.settled("work")

    assert held.begun.qsize() + other.begun.qsize() == 1
    assert held.ended + other.ended == 1


class SlowStore:
    """A store that answers nothing between `hold` and `may_answer`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def hold(self) -> None:
        self.asked.clear()
        self.may_answer.clear()

    async def connect(self) -> None:
        await self._store.connect()

    async def close(self) -> None:
        await self._store.close()

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        self.asked.set()
        await self.may_answer.wait()
        return await self._store.get(keys)

    async def scan(self, prefix: str, *, before: str | None = None, limit: int | None = None) -> Mapping[str, Entry]:
        return await self._store.scan(prefix, before=before, limit=limit)

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        return await self._store.write(writes)

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        return await self._store.join(joins)

    async def changed(self, versions: Mapping[str, int]) -> Mapping[str, Entry | None]:
        return await self._store.changed(versions)


class SlowlyStored:
    """A backend with such a store."""

    def __init__(self, stage: Stage) -> None:
        inner = open_backend(stage.url, clock=stage.clock)
        store = inner.store or open_backend(stage.store, clock=stage.clock).store
        assert store is not None
        self.broker = inner.broker
        self.store = SlowStore(store)

    async def doctor(self) -> Sequence[Check]:
        return []


async def test_a_stop_while_the_rate_limit_is_asked_is_no_attempt(stage: Stage):
    backend = SlowlyStored(stage)
    app = Carteiro("shop", backend)

    @app.subscriber("work", rate_limit="100/s")
    async def work(message: Message) -> int:
        return message.attempt

    await stage.run(app)
    backend.store.hold()
    await app.publish_many("work", range(3))
    await soon(backend.store.asked.wait())

    await stage.stop(app)

    status = await stage.group("work")
    assert (status.waiting, status.in_flight, status.retrying) == (3, 0, 0)
    backend.store.may_answer.set()
    handled = follow(app)
    await stage.run(app)
    assert [one.result for one in await handled.many(3)] == [1, 1, 1]


async def test_a_stopped_app_says_that_it_is_not_connected(stage: Stage):
    held = Held(stage.app())
    await stage.run(held.app)
    await stage.stop(held.app)

    with pytest.raises(NotConnected):
        await held.app.publish("work", 1)


async def test_run_takes_only_the_groups_or_topics_that_it_is_told_to(stage: Stage):
    app = stage.app()

    @app.subscriber("orders.placed", group="stock")
    @app.subscriber("orders.placed", group="payment")
    @app.subscriber("logs.*")
    async def take(message: Message) -> None: ...

    for only, expected in (
        (["stock"], {("orders.placed", "stock")}),
        (["orders.placed"], {("orders.placed", "stock"), ("orders.placed", "payment")}),
        (["logs.error"], {("logs.*", "shop")}),
        (["payment", "shop"], {("orders.placed", "payment"), ("logs.*", "shop")}),
    ):
        await stage.run(app, only=only)
        assert app.worker is not None
        assert {(one.topic, one.group) for one in app.worker.lanes} == expected
        await stage.stop(app)
