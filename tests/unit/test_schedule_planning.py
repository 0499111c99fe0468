"""Which due times are fired now: on time, late, missed or too old, however long nothing ran."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carteiro.engine.composing import Draft
from carteiro.schedules.planning import AT_ONCE, GRACE, Plan, planned
from carteiro.schedules.records import Definition, Keys, Misfire, Overlap, Schedule, What
from carteiro.schedules.specs import At, Spec, at, cron, every, jittered

START = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
WHAT = What("message", Draft("beats", b"1"), "beats")
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

MISFIRES: tuple[Misfire, ...] = ("skip", "once", "all")


def schedule(
    spec: Spec, *, name: str = "beat", anchor: float = START, queued: bool = False, **options: Any
) -> Schedule:
    """One that was declared at `anchor` and has not fired yet."""
    due = spec.after(anchor, anchor)
    return Schedule(name, "t0ken", Definition(spec, WHAT, **options), True, anchor, due, queued=due if queued else None)


def moved(one: Schedule, plan: Plan) -> Schedule:
    return msgspec.structs.replace(one, due=plan.next)


def is_due(one: Schedule, now: float) -> bool:
    return one.fires_at is not None and one.fires_at <= now


# -- on time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misfire", MISFIRES)
def test_what_is_due_now_is_fired_and_the_next_one_waits(misfire: Misfire):
    one = schedule(every(minutes=5), misfire=misfire)

    assert planned(one, START + 300) == Plan((START + 300,), START + 600)


@pytest.mark.parametrize("misfire", MISFIRES)
def test_what_is_late_by_less_than_a_minute_is_fired_whatever_misfire_says(misfire: Misfire):
    one = schedule(every(seconds=20), misfire=misfire)

    assert planned(one, START + 20 + GRACE) == Plan(tuple(START + 20 * n for n in (1, 2, 3, 4)), START + 100)


@pytest.mark.parametrize("misfire", MISFIRES)
@pytest.mark.parametrize("jitter", [30, 240])
def test_a_jitter_is_no_lateness(misfire: Misfire, jitter: float):
    one = schedule(every(minutes=5, jitter=jitter), misfire=misfire)
    for _ in range(20):
        assert one.due is not None
        assert one.fires_at is not None

        plan = planned(one, one.fires_at)

        assert plan == Plan((one.due,), one.due + 300)
        one = moved(one, plan)


def test_a_jitter_does_not_make_it_too_old():
    one = schedule(every(minutes=5, jitter="4m"), max_age=1.0)
    for _ in range(20):
        assert one.due is not None
        assert one.fires_at is not None
        plan = planned(one, one.fires_at + 0.5)
        assert plan.dues == (one.due,)
        one = moved(one, plan)


def test_what_is_due_by_the_index_is_fired_though_its_time_comes_a_moment_later():
    """The index has whole milliseconds. A time of day is a float, whose own rounding can be over the next of these."""
    one, keys = schedule(At(START + 0.0740001)), Keys("shop")
    hint = keys.due(one)
    assert hint is not None
    now, _ = keys.read(hint)
    assert one.due is not None
    assert now < one.due

    assert planned(one, now) == Plan((one.due,), None)


# -- missed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misfire", "minutes"),
    [
        pytest.param("skip", [], id="skip"),
        pytest.param("once", [25], id="once"),
        pytest.param("all", [5, 10, 15, 20, 25], id="all"),
    ],
)
def test_of_what_was_missed_is_fired_what_misfire_says(misfire: Misfire, minutes: list[int]):
    one = schedule(every(minutes=5), misfire=misfire)

    plan = planned(one, START + 27 * MINUTE)

    assert plan == Plan(tuple(START + MINUTE * minute for minute in minutes), START + 30 * MINUTE)


def test_skip_fires_the_last_of_those_missed_if_that_one_is_only_late():
    one = schedule(every(minutes=5), misfire="skip")

    assert planned(one, START + 25 * MINUTE + GRACE).dues == (START + 25 * MINUTE,)
    assert planned(one, START + 25 * MINUTE + GRACE + 0.001).dues == ()


@pytest.mark.parametrize(("misfire", "fires"), [("skip", False), ("once", True), ("all", True)])
def test_a_missed_one_shot_is_fired_unless_it_is_to_be_skipped(misfire: Misfire, fires: bool):
    when = datetime.fromtimestamp(START + HOUR, UTC)
    one = schedule(at(when), misfire=misfire)

    assert planned(one, START + DAY) == Plan((START + HOUR,) if fires else (), None)


@pytest.mark.parametrize(
    ("misfire", "minutes"),
    [
        pytest.param("skip", [], id="skip"),
        pytest.param("once", [25], id="once"),
        pytest.param("all", [20, 25], id="all"),
    ],
)
def test_what_is_older_than_max_age_is_never_fired(misfire: Misfire, minutes: list[int]):
    one = schedule(every(minutes=5), misfire=misfire, max_age=10 * MINUTE)

    plan = planned(one, START + 27 * MINUTE)

    assert plan == Plan(tuple(START + MINUTE * minute for minute in minutes), START + 30 * MINUTE)


@pytest.mark.parametrize("misfire", MISFIRES)
def test_when_all_are_older_than_max_age_only_the_next_one_is_left(misfire: Misfire):
    one = schedule(every(minutes=5), misfire=misfire, max_age=30.0)

    assert planned(one, START + 27 * MINUTE) == Plan((), START + 30 * MINUTE)


@pytest.mark.parametrize("misfire", MISFIRES)
def test_a_one_shot_that_is_too_old_never_fires(misfire: Misfire):
    one = schedule(at(datetime.fromtimestamp(START + HOUR, UTC)), misfire=misfire, max_age=10.0)

    assert planned(one, START + DAY) == Plan((), None)


def test_what_has_waited_for_the_one_before_is_fired_in_its_turn_however_late():
    one = schedule(every(minutes=5), misfire="skip", overlap="queue", queued=True)

    assert planned(one, START + 27 * MINUTE) == Plan((START + 5 * MINUTE,), START + 10 * MINUTE)


def test_what_has_waited_for_the_one_before_for_too_long_is_not_fired():
    one = schedule(every(minutes=5), overlap="queue", max_age=10 * MINUTE, queued=True)

    plan = planned(one, START + 27 * MINUTE)

    assert plan.dues == (START + 20 * MINUTE,)


# -- a long time -----------------------------------------------------------------------------------------------------


class Counted:
    """How often its next time was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        after = Schedule.after

        def counted(one: Schedule, moment: float) -> float | None:
            self.asked += 1
            return after(one, moment)

        monkeypatch.setattr(Schedule, "after", counted)


@pytest.mark.parametrize("misfire", MISFIRES)
@pytest.mark.parametrize(
    "spec", [every(0.1), every(1), cron("* * * * * *"), cron("* * * * *"), cron("@daily")], ids=str
)
def test_years_of_backlog_take_no_longer_than_minutes(spec: Spec, misfire: Misfire, monkeypatch: pytest.MonkeyPatch):
    counted = Counted(monkeypatch)

    planned(schedule(spec, misfire=misfire), START + 10 * 365 * DAY)

    assert counted.asked < 2000


def test_after_ten_years_once_fires_the_latest():
    now = START + 10 * 365 * DAY + 0.25

    assert planned(schedule(every(0.5)), now).dues == (now - 0.25,)
    assert planned(schedule(cron("0 0 29 2 *")), now).dues == (datetime(2032, 2, 29, tzinfo=UTC).timestamp(),)


def test_with_all_no_more_are_fired_in_one_step_than_fit():
    plan = planned(schedule(every(1), misfire="all"), START + DAY)

    assert plan == Plan(tuple(START + n for n in range(1, AT_ONCE + 1)), START + AT_ONCE + 1)


# -- whatever happens ------------------------------------------------------------------------------------------------

specs = st.one_of(
    st.builds(every, st.sampled_from([0.1, 0.25, 1.0, 7.0, 60.0, 3601.5])),
    st.builds(
        lambda length, part: every(length, jitter=length * part),
        st.sampled_from([1.0, 7.0, 300.0]),
        st.sampled_from([0.1, 0.5, 1.0]),
    ),
    st.sampled_from([cron("*/5 * * * *"), cron("* * * * * */20"), cron("@hourly", tz="America/Sao_Paulo")]),
    st.builds(lambda after: at(datetime.fromtimestamp(START, UTC) + timedelta(seconds=after)), st.integers(1, 5000)),
)
steps = st.lists(st.floats(0.001, 2000.0), min_size=1, max_size=20)


def fired_in(one: Schedule, steps: list[float]) -> tuple[list[float], Schedule, float]:
    """What is fired while time goes on in these steps, by someone who looks each time until nothing is due."""
    now, fired = START, list[float]()
    for step in steps:
        now += step
        while is_due(one, now):
            plan = planned(one, now)
            assert plan.dues or plan.next != one.due, "it would look at this for ever"
            fired += plan.dues
            one = moved(one, plan)
    return fired, one, now


def all_due(one: Schedule, now: float) -> list[float]:
    found = list[float]()
    while one.due is not None and jittered(one.definition.spec, one.name, one.due) <= now:
        found.append(one.due)
        one = msgspec.structs.replace(one, due=one.after(one.due))
    return found


@given(spec=specs, steps=steps, anchor=st.floats(0, 1))
def test_with_all_each_due_time_is_fired_once_and_in_order_whatever_the_steps(
    spec: Spec, steps: list[float], anchor: float
):
    one = schedule(spec, misfire="all", anchor=START - anchor)

    fired, _, now = fired_in(one, steps)

    assert fired == all_due(one, now)


@given(
    spec=specs,
    steps=steps,
    misfire=st.sampled_from(MISFIRES),
    overlap=st.sampled_from(["allow", "skip", "queue"]),
    max_age=st.none() | st.floats(0.5, 5000),
)
def test_nothing_is_fired_twice_out_of_order_too_early_or_too_late(
    spec: Spec, steps: list[float], misfire: Misfire, overlap: Overlap, max_age: float | None
):
    one = schedule(spec, misfire=misfire, max_age=max_age, overlap=overlap)
    now = START
    for step in steps:
        now += step
        while is_due(one, now):
            plan = planned(one, now)
            assert sorted(set(plan.dues)) == list(plan.dues)
            for due in plan.dues:
                assert one.due is not None
                assert due >= one.due, "it was fired before"
                fires_at = jittered(spec, one.name, due)
                assert fires_at <= now, "it was fired before its time"
                assert max_age is None or now - fires_at <= max_age, "it is too old"
            assert plan.next is None or not plan.dues or plan.next > plan.dues[-1]
            one = moved(one, plan)


@given(
    spec=specs, steps=st.lists(st.floats(0.001, GRACE / 2), min_size=1, max_size=30), misfire=st.sampled_from(MISFIRES)
)
def test_while_somebody_looks_at_least_once_a_minute_nothing_is_missed(
    spec: Spec, steps: list[float], misfire: Misfire
):
    one = schedule(spec, misfire=misfire)

    fired, _, now = fired_in(one, steps)

    assert fired == all_due(one, now)
