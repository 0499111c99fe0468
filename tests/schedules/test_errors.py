"""What cannot be scheduled is said at once, with the schedule's name; what cannot be fired keeps nothing else back."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from carteiro import Carteiro, ConfigurationError, Outgoing, Publish, Router, chain, cron, every
from carteiro.message import Message, Write
from carteiro.schedules.records import Keys
from carteiro.testing import TestApp, VirtualClock
from tests.e2e.tour.stage import Stage, soon
from tests.schedules.things import BEATS, due_of, hearing

HOURLY = every(hours=1)
LATER = datetime(2099, 1, 1, tzinfo=UTC)


def shop() -> Carteiro:
    app = Carteiro("shop")

    @app.task
    async def work(number: int = 1) -> int:
        return number

    @app.task
    async def needs(number: int) -> int:
        return number

    @app.task(result=False)
    async def silent() -> None: ...

    return app


Declare = Callable[[Any], object]

REFUSED: dict[str, tuple[Declare, str]] = {
    "a name with a space": (
        lambda app: app.schedule("my beat", HOURLY, Publish(BEATS, 1)),
        "needs a name without spaces, not 'my beat'",
    ),
    "no name": (lambda app: app.schedule("", HOURLY, Publish(BEATS, 1)), "needs a name without spaces"),
    "no time": (
        lambda app: app.schedule("beat", "5m", Publish(BEATS, 1)),
        r"schedule `beat`: '5m' is no time: write cron\(",
    ),
    "a task": (
        lambda app: app.schedule("beat", HOURLY, app.tasks.tasks["work"]),
        r"schedule `beat`: .* cannot be sent: did you mean `work.s\(\)`\?",
    ),
    "a function": (
        lambda app: app.schedule("beat", HOURLY, shop),
        r"schedule `beat`: .* cannot be sent: did you mean `shop.s\(\)`\?",
    ),
    "a value": (
        lambda app: app.schedule("beat", HOURLY, {"ok": True}),
        r"schedule `beat`: \{'ok': True\} cannot be sent: it is a call `task.s\(…\)`, a canvas, or `Publish",
    ),
    "an unknown misfire": (
        lambda app: app.schedule("beat", HOURLY, Publish(BEATS, 1), misfire="never"),
        "misfire='never' of schedule `beat`: it is 'skip', 'once', 'all'",
    ),
    "an unknown overlap": (
        lambda app: app.schedule("beat", HOURLY, app.tasks.tasks["work"].s(), overlap="wait"),
        "overlap='wait' of schedule `beat`: it is 'allow', 'skip', 'queue'",
    ),
    "an overlap of messages": (
        lambda app: app.schedule("beat", HOURLY, Publish(BEATS, 1), overlap="skip"),
        "overlap='skip' of schedule `beat`: nobody knows when a message has been handled",
    ),
    "an overlap of a task that keeps nothing": (
        lambda app: app.schedule("beat", HOURLY, app.tasks.tasks["silent"].s(), overlap="queue"),
        "overlap='queue' of schedule `beat`: task `silent` keeps nothing",
    ),
    "a max_age of nothing": (
        lambda app: app.schedule("beat", HOURLY, Publish(BEATS, 1), max_age=0),
        "max_age=0 of schedule `beat`: it must be over 0 seconds",
    ),
    "options of a publish without a topic": (
        lambda app: app.scheduled(HOURLY, key=str)(shop),
        r"schedule `shop` \(.*\) publishes nothing, since it has no to=",
    ),
    "what is no function": (lambda app: app.scheduled(HOURLY)("tick"), "decorates a function, not 'tick'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_scheduled_is_refused_where_it_is_written(what: str):
    declare, message = REFUSED[what]
    with pytest.raises(ConfigurationError, match=message):
        declare(shop())


def test_two_schedules_of_one_name_are_refused():
    app = shop()
    app.schedule("beat", HOURLY, Publish(BEATS, 1))

    with pytest.raises(ConfigurationError, match="two schedules of app `shop` are called `beat`"):
        app.schedule("beat", HOURLY, Publish(BEATS, 1))


AT_START: dict[str, tuple[Declare, type[Exception], str]] = {
    "an eta": (
        lambda app: app.schedule("beat", HOURLY, app.tasks.tasks["work"].s().set(eta=LATER)),
        ConfigurationError,
        "has an eta of its own",
    ),
    "an eta within a chain": (
        lambda app: app.schedule(
            "beat", HOURLY, chain(app.tasks.tasks["work"].s(), app.tasks.tasks["work"].s().set(eta=LATER))
        ),
        ConfigurationError,
        "has an eta of its own",
    ),
    "a missing argument of a function": (
        lambda app: app.scheduled(HOURLY, to=BEATS, name="beat")(_needs_a_city),
        TypeError,
        "city",
    ),
    "a missing argument of a task": (
        lambda app: app.schedule("beat", HOURLY, app.tasks.tasks["needs"].s()),
        TypeError,
        "number",
    ),
    "a task of another app": (
        lambda app: app.schedule("beat", HOURLY, shop().tasks.tasks["work"].s()),
        ConfigurationError,
        "is another app's",
    ),
    "a broker that the app does not have": (
        lambda app: app.schedule("beat", HOURLY, Publish(BEATS, 1, broker="events")),
        ConfigurationError,
        "`events`, which the app does not have",
    ),
    "a header that is no text": (
        lambda app: app.schedule("beat", HOURLY, Publish(BEATS, 1, headers={"x": wrong_header()})),
        Exception,
        "headers are text",
    ),
}


def wrong_header() -> Any:
    return 7


def _needs_a_city(city: str) -> str:
    return city


@pytest.mark.parametrize("what", AT_START)
async def test_what_cannot_be_sent_is_an_error_at_the_start_that_names_the_schedule(what: str):
    declare, kind, message = AT_START[what]
    app = shop()
    declare(app)

    with pytest.raises(kind, match=message) as caught:
        async with TestApp(app):
            pass

    said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "schedule `beat`" in said


async def test_what_is_added_while_running_is_refused_in_the_same_way():
    app = shop()
    async with TestApp(app) as t:
        work = app.tasks.tasks["work"]
        add: Any = app.schedules.add
        with pytest.raises(ConfigurationError, match=r"did you mean `work.s\(\)`"):
            await add("beat", HOURLY, work)
        with pytest.raises(ConfigurationError, match="has an eta of its own"):
            await add("beat", HOURLY, work.s().set(eta=LATER))
        with pytest.raises(TypeError):
            await add("beat", HOURLY, app.tasks["needs"].s())
        with pytest.raises(ConfigurationError, match="the topic of a Publish is a name"):
            await add("beat", HOURLY, Publish(wrong_topic(), 1))

        assert await app.schedules.list() == []
        assert t.messages() == []


def wrong_topic() -> Any:
    from carteiro.backends.redis import RedisList

    return RedisList("jobs")


# -- routers ---------------------------------------------------------------------------------------------------------


async def test_a_router_s_prefix_and_middleware_hold_for_its_schedules():
    seen: list[str] = []

    async def note(message: Message, call_next: Any) -> Any:
        seen.append(message.type or "")
        return await call_next(message)

    router = Router(prefix="eu.", middleware=[note])
    router.schedule("beat", HOURLY, Publish("beats", 1))

    @router.scheduled(HOURLY, to="ticks")
    def tick() -> Iterator[int]:
        yield 2

    app = Carteiro("shop")
    app.include(router, prefix="shop.")
    async with TestApp(app) as t:
        await t.advance(hours=1)

        assert t.published("shop.eu.beats") == [1]
        assert t.published("shop.eu.ticks") == [2]
    assert seen == ["tick"]


def test_a_schedule_s_topic_is_checked_with_its_prefix():
    with pytest.raises(ConfigurationError, match="eu beats"):
        Router(prefix="eu ").schedule("beat", HOURLY, Publish("beats", 1))


# -- one that cannot be fired ----------------------------------------------------------------------------------------


async def test_a_message_that_cannot_be_published_keeps_no_other_back(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()

    @app.publish_middleware
    async def refuse(message: Outgoing, call_next: Any) -> None:
        if message.topic == "refused":
            raise ValueError("no")
        await call_next(message)

    for number in range(3):
        app.schedule(f"bad{number}", every("100ms"), Publish("refused", 1))
    app.schedule("good", every("100ms"), Publish(BEATS, 1))
    await stage.run(app)

    dues = [due_of(message.id) for message in await ear.many(5)]
    assert {one.name for one in dues} == {"good"}
    assert len(set(dues)) == 5
    assert (await app.schedules.get("bad0")).count == 0
    with pytest.raises(Exception, match="bad0"):
        await app.schedules.fire("bad0")


async def test_a_schedule_for_a_broker_that_the_app_no_longer_has_keeps_no_other_back():
    clock, url = VirtualClock(), f"memory://{uuid.uuid4().hex}"
    before = Carteiro("shop", brokers={"default": url, "events": f"{url}-events"}, clock=clock)
    async with before:
        await before.schedules.add("old", every(seconds=1), Publish(BEATS, "old", broker="events"))

    after = Carteiro("shop", url, clock=clock)
    heard: asyncio.Queue[int] = asyncio.Queue()

    @after.subscriber(BEATS)
    async def hear(value: int) -> None:
        heard.put_nowait(value)

    after.schedule("new", every(seconds=1), Publish(BEATS, 1))
    running = asyncio.create_task(after.run())
    await soon(after.ready())
    for _ in range(3):
        due = clock.next_due()
        while heard.empty():
            await asyncio.sleep(0)
            if (due := clock.next_due()) is not None:
                clock.advance_to(due)
        assert heard.get_nowait() == 1
    after.stop()
    await running


@pytest.mark.parametrize("flaw", ["unreadable", "a zone that this machine does not know"])
async def test_a_record_that_cannot_be_used_here_keeps_no_other_back(flaw: str, monkeypatch: pytest.MonkeyPatch):
    app = Carteiro("shop")
    app.schedule("good", every(seconds=10), Publish(BEATS, 1))
    async with TestApp(app) as t:
        await app.schedules.add("bad", cron("*/10 * * * * *", tz="America/Sao_Paulo"), Publish(BEATS, 2))
        store, keys = app.connection.store, Keys("shop")
        assert store is not None
        entry = (await store.get([keys.record("bad")]))[keys.record("bad")]
        value = b"\xc1" if flaw == "unreadable" else entry.value.replace(b"America/Sao_Paulo", b"America/Atlantis_")
        await store.write([Write(keys.record("bad"), value)])
        await t.advance(seconds=60)

        assert t.published(BEATS) == [1] * 6
