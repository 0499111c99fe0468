"""Part 6: how much at once, how fast, in batches, in order, and where."""

import asyncio
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from time import sleep
from types import ModuleType
from typing import Any

import pytest

from carteiro import Batch, BatchFailed, Carteiro, ConfigurationError, Message, Reject, Retry, constant
from carteiro.ports.features import Capability
from tests.e2e.tour import processes
from tests.e2e.tour.stage import Stage, follow, soon

# -- the tour's own file ---------------------------------------------------------------------------------------------


async def test_the_tours_handlers_each_go_at_their_own_pace(stage: Stage, part: Callable[[str], ModuleType]):
    await stage.needs(Capability.ORDERED)
    pace = part("pace")
    handled = follow(pace.app)
    await stage.run(pace.app)

    for amount in (10, -3, 5):
        await pace.app.publish("accounts", {"account": "Ana", "amount": amount}, key="Ana")
    await pace.app.publish("events", {"name": "opened"})
    await pace.app.publish("thumbnails", "/a.png")
    await pace.app.publish_many("clicks", [{"x": x, "y": 0} for x in (1, -1, 2)])
    ended = await handled.many(8)

    assert Counter(one.message.topic for one in ended) == {"accounts": 3, "events": 1, "thumbnails": 1, "clicks": 3}
    assert pace.balances == {"Ana": 12}
    assert [one.message.body for one in ended if one.error is not None] == [b'{"x":-1,"y":0}']


# -- how much at once ------------------------------------------------------------------------------------------------


async def test_no_more_run_at_once_than_the_concurrency_and_no_more_are_held_than_the_prefetch_adds(stage: Stage):
    app = stage.app()
    running = 0
    started: asyncio.Queue[int] = asyncio.Queue()
    go = asyncio.Semaphore(0)

    @app.subscriber("work", concurrency=3, prefetch=4)
    async def work(number: int) -> None:
        nonlocal running
        running += 1
        started.put_nowait(running)
        await go.acquire()
        running -= 1

    async with app:
        await app.publish_many("work", range(30))
    await stage.run(app)

    most = 0
    for _ in range(30):
        most = max(most, await soon(started.get()))
        if started.qsize() == 0 and running == 3:
            assert ((await stage.group("work")).in_flight or 0) <= 7
        if running == 3:
            go.release()
    for _ in range(3):
        go.release()
    await stage.settled("work")
    assert most == 3


async def test_run_can_set_the_concurrency_of_those_that_have_none_of_their_own(stage: Stage):
    app = stage.app()

    @app.subscriber("free")
    async def free(number: int) -> None: ...

    @app.subscriber("own", concurrency=7)
    async def own(number: int) -> None: ...

    await stage.run(app, concurrency=3)

    assert app.worker is not None
    assert {route.subscription.topic: route.concurrency for route in app.worker.routes} == {"free": 3, "own": 7}


# -- how fast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "per", "count"), [("5/10s", 10, 5), ("40/s", 1, 40)])
async def test_a_rate_limit_holds_in_every_window_across_two_workers(stage: Stage, limit: str, per: float, count: int):
    clock = stage.hold_time()
    apps = [stage.app(), stage.app()]
    starts: list[float] = []
    all_there = asyncio.Event()
    total = count * 3
    for app in apps:

        @app.subscriber("work", rate_limit=limit, concurrency=10, prefetch=50)
        async def work(number: int) -> None:
            starts.append(clock.time())
            if len(starts) == total:
                all_there.set()

    async with stage.app("publisher"), apps[0]:
        await apps[0].publish_many("work", range(total))
    await stage.run(*apps)

    await soon(stage.pass_until(all_there.wait(), step=per / count / 2))

    # On SQLite the clock may go a few steps on between a permit and the start that it is for.
    window = per - (1e-6 if stage.url.startswith("memory") else per / count)
    for start in starts:
        assert sum(start <= other < start + window for other in starts) <= count
    assert starts[-1] - starts[0] <= per * 3 * 1.5  # and it is not much slower than permitted
    await stage.settled("work")


async def test_permits_do_not_pile_up_while_handlers_are_slow(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()
    starts: list[float] = []
    slow, all_there = asyncio.Event(), asyncio.Event()

    @app.subscriber("work", rate_limit="1/s", concurrency=1, prefetch=50)
    async def work(number: int) -> None:
        starts.append(clock.time())
        if len(starts) == 10:
            all_there.set()
        await slow.wait()

    await stage.run(app)
    await app.publish_many("work", range(10))
    await stage.pass_until(clock.sleep(15), step=0.5)
    slow.set()
    await soon(stage.pass_until(all_there.wait(), step=0.25))

    for start in starts:
        assert sum(start <= other < start + 1 - 1e-6 for other in starts) == 1


# -- in batches ------------------------------------------------------------------------------------------------------


def batches_of(app: Carteiro, batch: Batch, **options: Any) -> asyncio.Queue[list[int]]:
    taken: asyncio.Queue[list[int]] = asyncio.Queue()

    @app.subscriber("clicks", batch=batch, **options)
    async def bulk(clicks: list[int], messages: list[Message]) -> None:
        taken.put_nowait(clicks)
        refused = {
            index: ValueError(f"no {click}")
            for index, click in enumerate(clicks)
            if click < 0 and messages[index].attempt < 3
        }
        if refused:
            raise BatchFailed(refused)

    return taken


async def test_what_waits_is_handled_in_batches_of_at_most_the_size(stage: Stage):
    app = stage.app()
    taken = batches_of(app, Batch(size=10, wait=0))
    async with app:
        await app.publish_many("clicks", range(35))
    await stage.run(app)

    batches: list[list[int]] = []
    while sum(map(len, batches)) < 35:
        batches.append(await soon(taken.get()))

    assert sorted(chain(*batches)) == list(range(35))
    assert max(map(len, batches)) == 10
    await stage.settled("clicks")


async def test_a_batch_that_is_not_full_is_handled_after_its_wait(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()
    taken = batches_of(app, Batch(size=10, wait=60))
    await stage.run(app)
    start = clock.time()

    await app.publish_many("clicks", range(3))
    batch = await soon(stage.pass_until(taken.get()))

    assert batch == [0, 1, 2]
    assert clock.time() >= start + 60


async def test_a_batch_that_is_full_waits_for_nothing(stage: Stage):
    stage.hold_time()
    app = stage.app()
    taken = batches_of(app, Batch(size=10, wait=3600))
    await stage.run(app)

    await app.publish_many("clicks", range(10))

    assert await soon(taken.get()) == list(range(10))


async def test_only_those_that_a_batch_names_fail_and_they_come_again(stage: Stage):
    app = stage.app()
    taken = batches_of(app, Batch(size=10, wait=0), retry=Retry(attempts=3, backoff=constant(0)))
    async with app:
        await app.publish_many("clicks", [1, -2, 3, -4])
    await stage.run(app)

    assert await soon(taken.get()) == [1, -2, 3, -4]
    await stage.settled("clicks")
    rest: list[int] = []
    while not taken.empty():
        rest += taken.get_nowait()
    assert Counter(rest) == {-2: 2, -4: 2}
    assert await stage.dead() == []


async def test_what_cannot_be_decoded_or_fails_for_good_is_dead_alone(stage: Stage):
    app = stage.app()
    taken = batches_of(app, Batch(size=10, wait=0), retry=Retry(attempts=1))
    async with app:
        await app.publish_many("clicks", [1, "two", -3, 4])
    await stage.run(app)

    assert await soon(taken.get()) == [1, -3, 4]
    await stage.settled("clicks")
    reasons = {letter.message.body: letter.reason for letter in await stage.dead("dlq_clicks")}
    assert set(reasons) == {b'"two"', b"-3"}
    assert reasons[b"-3"] == "ValueError: no -3"
    assert "int" in reasons[b'"two"']


async def test_a_batch_that_raises_anything_else_fails_as_a_whole(stage: Stage):
    app = stage.app()

    @app.subscriber("clicks", batch=Batch(size=10, wait=0), retry=Retry(attempts=1))
    async def bulk(clicks: list[int]) -> None:
        raise ConnectionError("no database")

    async with app:
        await app.publish_many("clicks", range(3))
    await stage.run(app)
    await stage.settled("clicks")

    assert [letter.reason for letter in await stage.dead()] == ["ConnectionError: no database"] * 3


async def test_requests_to_a_batch_are_all_answered(stage: Stage):
    app = stage.app()

    @app.subscriber("clicks", batch=Batch(size=3, wait=3600), retry=Retry(attempts=1))
    async def bulk(clicks: list[int]) -> int:
        if 0 in clicks:
            raise BatchFailed({clicks.index(0): Reject("no zero")})
        return sum(clicks)

    await stage.run(app)

    assert await soon(asyncio.gather(*(app.request("clicks", number) for number in (1, 2, 3)))) == [6, 6, 6]
    asked = asyncio.gather(*(app.request("clicks", number) for number in (0, 1, 2)), return_exceptions=True)
    failed, *others = await soon(asked)
    assert "no zero" in str(failed)
    assert others == [None, None]


# -- in order --------------------------------------------------------------------------------------------------------


async def test_the_order_of_each_key_holds_across_workers_and_retries(stage: Stage):
    await stage.needs(Capability.ORDERED)
    apps = [stage.app(), stage.app()]
    handled: defaultdict[str, list[int]] = defaultdict(list)
    at_once: Counter[str] = Counter()
    for app in apps:

        @app.subscriber("accounts", ordered=True, retry=Retry(attempts=3, backoff=constant(0.01)))
        async def apply(change: int, message: Message) -> None:
            assert message.key is not None
            at_once[message.key] += 1
            assert at_once[message.key] == 1, "two of one key at the same time"
            await asyncio.sleep(0)
            at_once[message.key] -= 1
            if change % 5 == 0 and message.attempt < 3:
                raise ConnectionError("not yet")
            handled[message.key].append(change)

    await stage.run(*apps)

    keys = [f"k{number}" for number in range(8)]
    for change in range(20):
        await asyncio.gather(*(apps[0].publish("accounts", change, key=key) for key in keys))
    await stage.settled("accounts")

    assert dict(handled) == {key: list(range(20)) for key in keys}
    assert await stage.dead() == []


async def test_what_follows_a_dead_message_of_its_key_goes_on(stage: Stage):
    await stage.needs(Capability.ORDERED)
    app = stage.app()

    @app.subscriber("accounts", ordered=True, retry=Retry(attempts=1))
    async def apply(change: int) -> int:
        if change == 1:
            raise Reject("no")
        return change

    handled = follow(app)
    async with app:
        await app.publish_many("accounts", [1, 2, 3], key=lambda change: "k")
    await stage.run(app)

    assert [one.result for one in await handled.many(3)] == [None, 2, 3]


async def test_what_waits_behind_a_failed_message_of_its_key_does_not_keep_other_keys_waiting(stage: Stage):
    await stage.needs(Capability.ORDERED)
    stage.hold_time()
    app = stage.app()

    @app.subscriber("accounts", ordered=True, retry=Retry(attempts=2, backoff=constant(3600)))
    async def apply(message: Message) -> str:
        if message.body == b"1" and message.attempt == 1:
            raise ConnectionError("not yet")
        return f"{message.key}{message.body.decode()}"

    handled = follow(app)
    await stage.run(app)

    await app.publish_many("accounts", [1, 2], key=lambda change: "a")
    assert (await handled.next()).error is not None
    await app.publish("accounts", 3, key="b")
    assert (await handled.next()).result == "b3"
    assert handled.silent
    assert [one.result for one in await soon(stage.pass_until(handled.many(2), step=60))] == ["a1", "a2"]


# -- where -----------------------------------------------------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread_and_an_async_one_on_the_loop(stage: Stage):
    app = stage.app()

    @app.subscriber("plain")
    def plain(number: int) -> int:
        return threading.get_ident()

    @app.subscriber("loop")
    async def on_loop(number: int) -> int:
        return threading.get_ident()

    @app.subscriber("plain.on.loop", runs_in="loop")
    def plain_on_loop(number: int) -> int:
        return threading.get_ident()

    await stage.run(app)

    here = threading.get_ident()
    assert await soon(app.request("plain", 1)) != here
    assert await soon(app.request("loop", 1)) == here
    assert await soon(app.request("plain.on.loop", 1)) == here


async def test_a_handler_in_a_process_runs_there_and_answers(stage: Stage):
    app = stage.app()
    app.subscriber("thumbnails", runs_in="process", concurrency=1)(processes.pid)
    await stage.run(app)

    first = await soon(app.request("thumbnails", "/a.png"))

    assert first != os.getpid()
    assert await soon(app.request("thumbnails", "/b.png")) == first


async def test_a_timeout_really_stops_a_handler_in_a_process(stage: Stage, tmp_path: Path):
    stage.hold_time()
    app = stage.app()
    app.subscriber("thumbnails", runs_in="process", concurrency=1, timeout=30, retry=Retry(attempts=1))(processes.spin)
    handled = follow(app)
    await stage.run(app)
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)

    await app.publish("thumbnails", str(fifo))
    pid = int(await soon(asyncio.to_thread(fifo.read_text)))
    ended = await soon(stage.pass_until(handled.next(), step=31))

    assert ended.error is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await stage.settled("thumbnails")
    (letter,) = await stage.dead("dlq_thumbnails")
    assert letter.reason == "HandlerTimeout: ran longer than its timeout of 30 s"


async def test_a_handler_that_blocks_the_loop_is_named(stage: Stage, caplog: pytest.LogCaptureFixture):
    app = stage.app()

    @app.subscriber("work")
    async def greedy(number: int) -> None:
        sleep(0.11)  # noqa: ASYNC251 (that is what it is warned of)

    @app.subscriber("work", group="other")
    async def modest(number: int) -> None:
        await asyncio.sleep(0)

    handled = follow(app)
    await stage.run(app)
    await app.publish("work", 1)
    await handled.many(2)
    await stage.settled("work")

    (warning,) = [record.getMessage() for record in caplog.records if "held the event loop" in record.getMessage()]
    assert "greedy (" in warning
    assert "test_tour_6_pace.py:" in warning
    assert "make it a plain `def`" in warning


async def test_an_async_handler_in_threads_or_processes_is_refused_at_start(stage: Stage):
    for runs_in in ("thread", "process"):
        app = stage.app()

        @app.subscriber("work", runs_in=runs_in)
        async def work(number: int) -> None: ...

        with pytest.raises(ConfigurationError, match=r"`.*work` \(test_tour_6_pace\.py:\d+\).* is async"):
            await stage.run(app)
