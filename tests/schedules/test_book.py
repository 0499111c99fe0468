"""`app.schedules`: what is added, listed, paused, resumed, removed and fired while running; what a deploy changes."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from carteiro import Carteiro, ConfigurationError, Publish, at, cron, every
from carteiro.schedules.records import GONE_AFTER
from carteiro.schedules.specs import Spec
from carteiro.testing import TestApp, VirtualClock
from tests.e2e.tour.stage import Stage, soon
from tests.schedules.things import BEATS, due_of, hearing, names, value_of
from tests.tasks.things import once

NEVER = cron("0 0 29 2 *")
QUICK = every("100ms")


def shop(**schedules: Spec) -> Carteiro:
    app = Carteiro("shop")
    for name, spec in schedules.items():
        app.schedule(name, spec, Publish(BEATS, name))
    return app


async def deploy(stage: Stage, **schedules: tuple[Spec, Any]) -> Carteiro:
    """Start a process with this code; it fires nothing that is not due."""
    app = stage.app()
    for name, (spec, value) in schedules.items():
        app.schedule(name, spec, Publish(BEATS, value))
    async with app:
        await app.schedules.agree()
    return app


# -- adding and asking -----------------------------------------------------------------------------------------------


async def test_what_was_added_is_listed_with_all_that_is_known_of_it(stage: Stage):
    app = stage.app()
    async with app:
        added = await app.schedules.add("report", cron("0 2 * * *", tz="America/Sao_Paulo"), Publish(BEATS, 1))
        await app.schedules.add("once", at(datetime(2099, 1, 1, tzinfo=UTC)), Publish(BEATS, 2))
        await app.schedules.add("beat", every(minutes=5), Publish(BEATS, 3))

        listed = await app.schedules.list()
        found = await app.schedules.get("report")

    assert names(listed) == ["beat", "report", "once"]
    assert added == found == listed[1]
    assert (found.spec, found.what) == ("0 2 * * * America/Sao_Paulo", BEATS)
    assert (found.paused, found.in_code, found.count, found.last) == (False, False, 0, None)
    assert found.next is not None
    assert (found.next.hour, found.next.minute) == (5, 0)


async def test_upcoming_tells_the_next_due_times(stage: Stage):
    app = stage.app()
    async with app:
        await app.schedules.add("report", cron("0 2 * * *"), Publish(BEATS, 1))
        await app.schedules.add("once", at(datetime(2099, 1, 1, tzinfo=UTC)), Publish(BEATS, 2))

        times = await app.schedules.upcoming("report", 3)

        assert [(time.hour, time.minute) for time in times] == [(2, 0)] * 3
        assert [later - earlier for earlier, later in itertools.pairwise(times)] == [timedelta(days=1)] * 2
        assert await app.schedules.upcoming("once") == [datetime(2099, 1, 1, tzinfo=UTC)]


async def test_adding_the_same_again_changes_nothing(stage: Stage):
    app = stage.app()
    async with app:
        first = await app.schedules.add("beat", every(minutes=5), Publish(BEATS, 1))
        again = await app.schedules.add("beat", every(minutes=5), Publish(BEATS, 1))

        assert first == again
        assert await app.schedules.list() == [first]


async def test_adding_a_one_shot_again_after_it_has_fired_does_not_fire_it_again():
    app = shop()
    async with TestApp(app) as t:
        one = at(t.now + timedelta(minutes=1)), Publish(BEATS, "once")
        await app.schedules.add("once", *one)
        await run_for(app, t, minutes=2)
        fired = await app.schedules.get("once")

        again = await app.schedules.add("once", *one)
        await run_for(app, t, minutes=2)

        assert again == fired
        assert len(t.messages(BEATS)) == 1


async def test_adding_another_replaces_the_one_of_that_name(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule("rare", NEVER, Publish(BEATS, "rare"))
    await stage.run(app)

    await app.schedules.add("beat", NEVER, Publish(BEATS, "old"))
    await app.schedules.add("beat", QUICK, Publish(BEATS, "new"))

    assert value_of(await ear.next()) == "new"
    assert names(await app.schedules.list()) == ["beat", "rare"]


async def test_a_name_of_the_code_s_is_refused(stage: Stage):
    app = stage.app()
    app.schedule("beat", NEVER, Publish(BEATS, 1))
    async with app:
        with pytest.raises(ConfigurationError, match="`beat` is in the code of app `shop`: change it there"):
            await app.schedules.add("beat", every(minutes=5), Publish(BEATS, 1))
        with pytest.raises(ConfigurationError, match="remove it there, or pause it"):
            await app.schedules.remove("beat")


async def test_a_name_that_nobody_knows_is_an_error_that_says_which_there_are(stage: Stage):
    app = stage.app()
    async with app:
        await app.schedules.add("beat", NEVER, Publish(BEATS, 1))
        schedules = app.schedules
        for ask in (schedules.get, schedules.pause, schedules.resume, schedules.fire, schedules.upcoming):
            with pytest.raises(ConfigurationError, match="app `shop` has no schedule `heart`: it has beat"):
                await ask("heart")
        assert not await schedules.remove("heart")


async def test_two_apps_on_one_broker_have_schedules_of_their_own(stage: Stage):
    shop, store = stage.app(), stage.app("shop:eu")
    async with shop, store:
        await shop.schedules.add("beat", NEVER, Publish(BEATS, 1))
        await store.schedules.add("beat:eu", NEVER, Publish(BEATS, 2))

        assert names(await shop.schedules.list()) == ["beat"]
        assert names(await store.schedules.list()) == ["beat:eu"]


@pytest.mark.parametrize("name", ["reports.daily", "preço:€/dia~", "a" * 100])
async def test_names_may_be_any_text_without_spaces(stage: Stage, name: str):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule("rare", NEVER, Publish(BEATS, "rare"))
    await stage.run(app)

    await app.schedules.add(name, QUICK, Publish(BEATS, 1))

    assert due_of((await ear.next()).id).name == name
    assert (await app.schedules.get(name)).name == name


# -- pausing, resuming, removing, firing -----------------------------------------------------------------------------


async def run_for(app: Carteiro, t: TestApp, **units: float) -> None:
    """Fire, in a TestApp of an app that has nothing else to run."""
    running = asyncio.create_task(app.run(schedules="only")) if not app.schedules.declared else None
    await t.advance(**units)
    if running is not None:
        app.stop()
        await running


async def test_while_it_is_paused_it_is_not_fired_and_what_was_due_is_not_made_up_for():
    app = shop(beat=every(minutes=1))
    async with TestApp(app) as t:
        await t.advance(minutes=2)
        await app.schedules.pause("beat")
        paused = await app.schedules.get("beat")
        await t.advance(minutes=10)
        await app.schedules.resume("beat")
        await t.advance(minutes=2)

        start = t.now.timestamp() - 14 * 60
        sent = [due_of(message.id).due / 1000 - start for message in t.messages(BEATS)]
    assert sent == [60, 120, 780, 840]
    assert (paused.paused, paused.next) == (True, None)


async def test_a_one_shot_that_was_paused_at_its_time_fires_when_it_is_resumed():
    app = shop()
    async with TestApp(app) as t:
        app.schedule("once", at(t.now + timedelta(minutes=5)), Publish(BEATS, "once"))
        await app.schedules.agree()
        await app.schedules.pause("once")
        await run_for(app, t, minutes=10)
        assert t.messages(BEATS) == []
        running = asyncio.create_task(app.run(schedules="only"))

        await app.schedules.resume("once")
        await t.advance(minutes=1)

        assert t.published(BEATS) == ["once"]
        app.stop()
        await running


async def test_a_pause_holds_over_a_restart(stage: Stage):
    ear = await hearing(stage, BEATS)
    before = await deploy(stage, beat=(QUICK, "beat"))
    async with before:
        await before.schedules.pause("beat")

    after = stage.app()
    after.schedule("beat", QUICK, Publish(BEATS, "beat"))
    after.schedule("other", QUICK, Publish(BEATS, "other"))
    await stage.run(after)

    assert {value_of(message) for message in await ear.many(4)} == {"other"}
    assert (await after.schedules.get("beat")).paused
    await after.schedules.resume("beat")
    heard = [value_of(message) for message in await ear.many(6)]
    assert "beat" in heard


async def test_what_was_removed_is_fired_no_more(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule("rare", NEVER, Publish(BEATS, "rare"))
    await stage.run(app)
    await app.schedules.add("beat", QUICK, Publish(BEATS, "beat"))
    await ear.next()

    assert await app.schedules.remove("beat")
    await app.schedules.add("other", every("500ms"), Publish(BEATS, "other"))
    while value_of(await ear.next()) != "other":
        pass

    assert [value_of(message) for message in await ear.many(1)] == ["other"]
    assert names(await app.schedules.list()) == ["other", "rare"]


async def test_fire_sends_it_now_besides_its_times_also_while_it_is_paused(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule("beat", NEVER, Publish(BEATS, "beat"))
    await stage.run(app)
    before = await app.schedules.get("beat")

    first = await app.schedules.fire("beat")
    await app.schedules.pause("beat")
    second = await app.schedules.fire("beat")
    await app.schedules.resume("beat")

    assert {message.id for message in await ear.many(2)} == {first, second}
    after = await app.schedules.get("beat")
    assert after.last is not None
    assert (after.last.id, after.last.outcome, after.count, after.next) == (second, "sent", 2, before.next)


async def test_a_process_that_fires_nothing_can_fire_by_hand(stage: Stage):
    ear = await hearing(stage, BEATS)
    app = await deploy(stage, beat=(NEVER, "beat"))
    async with app:
        id = await app.schedules.fire("beat")

    assert (await ear.next()).id == id


# -- the past of one-shots -------------------------------------------------------------------------------------------


async def test_a_one_shot_is_forgotten_a_day_after_it_was_fired():
    app = shop(rare=NEVER)
    async with TestApp(app) as t:
        await app.schedules.add("once", at(t.now + timedelta(minutes=1)), Publish(BEATS, 1))
        await t.advance(minutes=2)
        fired = await app.schedules.get("once")
        await t.advance(GONE_AFTER - 120)
        assert names(await app.schedules.list()) == ["rare", "once"]
        await t.advance(minutes=2)

        assert (fired.next, fired.count) == (None, 1)
        assert names(await app.schedules.list()) == ["rare"]


@pytest.mark.parametrize("do", ["fire", "pause", "resume"])
async def test_it_is_so_too_when_somebody_has_touched_it_since(do: str):
    app = shop(rare=NEVER)
    async with TestApp(app) as t:
        await app.schedules.add("once", at(t.now + timedelta(minutes=1)), Publish(BEATS, 1))
        await t.advance(minutes=2)
        if do == "resume":
            await app.schedules.pause("once")
        await getattr(app.schedules, do)("once")
        await t.advance(GONE_AFTER + 120)

        assert names(await app.schedules.list()) == ["rare"]


# -- code and store agree --------------------------------------------------------------------------------------------


async def test_what_is_gone_from_the_code_is_gone_from_the_store_and_what_was_added_stays(stage: Stage):
    before = await deploy(stage, stays=(NEVER, 1), goes=(NEVER, 2))
    async with before:
        await before.schedules.add("added", NEVER, Publish(BEATS, 3))

    after = await deploy(stage, stays=(NEVER, 1), comes=(NEVER, 4))
    async with after:
        assert sorted(names(await after.schedules.list())) == ["added", "comes", "stays"]


async def test_what_has_changed_in_the_code_is_changed_and_its_past_is_kept(stage: Stage):
    before = await deploy(stage, beat=(NEVER, "old"))
    async with before:
        id = await before.schedules.fire("beat")

    ear = await hearing(stage, BEATS)
    after = await deploy(stage, beat=(every(hours=1), "new"))
    async with after:
        status = await after.schedules.get("beat")
        await after.schedules.fire("beat")

    assert status.spec == "every 1 h"
    assert (status.count, status.last and status.last.id) == (1, id)
    assert value_of(await ear.next()) == "new"


async def test_what_has_not_changed_goes_on_at_its_times():
    clock = VirtualClock()
    due: list[datetime | None] = []
    for _ in range(3):
        app = Carteiro("shop", "memory://goes-on", clock=clock)
        app.schedule("beat", every(hours=1), Publish(BEATS, 1))
        async with app:
            await app.schedules.agree()
            due.append((await app.schedules.get("beat")).next)
        clock.advance_to(clock.time() + 600)

    assert len(set(due)) == 1


async def test_one_that_was_added_and_then_is_in_the_code_is_the_code_s(stage: Stage):
    before = stage.app()
    async with before:
        await before.schedules.add("beat", NEVER, Publish(BEATS, 1))

    after = await deploy(stage, beat=(every(hours=1), 2))
    async with after:
        status = await after.schedules.get("beat")

    assert (status.in_code, status.spec) == (True, "every 1 h")


# -- what it costs ---------------------------------------------------------------------------------------------------


async def test_one_shots_that_are_far_away_cost_nothing_until_they_are_due():
    app = Carteiro("shop")
    app.schedule("beat", every(minutes=1), Publish(BEATS, 1))
    async with TestApp(app) as t:
        store = app.connection.store
        assert store is not None
        scanned: list[int] = []
        scan = store.scan

        async def counted(*args: Any, **options: Any) -> Any:
            found = await scan(*args, **options)
            scanned.append(len(found))
            return found

        await asyncio.gather(
            *(
                app.schedules.add(f"once{number}", at(t.now + timedelta(days=1, seconds=number)), Publish("far", 1))
                for number in range(10_000)
            )
        )
        await t.idle()
        store.scan = counted  # type: ignore[method-assign]
        await t.advance(minutes=60)

        assert len(t.messages(BEATS)) == 60
        assert len(scanned) <= 60 * 4
        assert max(scanned) <= 3

        await t.advance(hours=23)
        await t.advance(seconds=5)
        assert 1 <= len(t.messages("far")) <= 6


async def test_it_wakes_for_what_is_added_though_another_schedule_waits_for_the_task_before(stage: Stage):
    """What waits is the first in the index, and has been due for long."""
    ear, app = await hearing(stage, BEATS), stage.app()
    began, may_end = asyncio.Event(), asyncio.Event()

    @app.task
    async def slow() -> None:
        began.set()
        await may_end.wait()

    app.schedule("slow", QUICK, slow.s(), overlap="queue")
    await stage.run(app)
    await soon(began.wait())

    async def waits() -> bool:
        return (await app.schedules.upcoming("slow", 1))[0].timestamp() < stage.clock.time() - 0.2

    await once(waits)
    await app.schedules.add("added", every("300ms"), Publish(BEATS, "added"))

    assert value_of(await ear.next()) == "added"
    may_end.set()
