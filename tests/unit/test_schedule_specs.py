"""`every`, `at` and jitter, and specs as values: `cron` has tests of its own."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carteiro.errors import ConfigurationError
from carteiro.schedules.specs import At, Cron, Every, Spec, at, cron, every, jittered

NOW = datetime(2026, 11, 22, 11, 24, 51, tzinfo=UTC).timestamp()


# -- every -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        (every(seconds=1), 1.0),
        (every(milliseconds=100), 0.1),
        (every(days=1, hours=1, minutes=1), 90060.0),
        (every("5m"), 300.0),
        (every("1h30m"), 5400.0),
        (every(0.5), 0.5),
        (every(timedelta(minutes=2)), 120.0),
    ],
)
def test_a_distance_may_be_given_as_timedelta_takes_it_or_as_one_length(spec: Every, seconds: float):
    assert spec == Every(seconds)


def test_an_every_is_due_first_one_distance_after_its_anchor():
    spec = every(seconds=10)
    assert spec.after(NOW, NOW) == NOW + 10
    assert spec.after(NOW + 9.999, NOW) == NOW + 10
    assert spec.after(NOW + 10, NOW) == NOW + 20
    assert spec.after(NOW - 3600, NOW) == NOW + 10, "also for a process whose clock is behind"


def test_an_every_has_not_drifted_after_a_year():
    spec, due = every(milliseconds=100), NOW + 365 * 86400
    for _ in range(1000):
        due = spec.after(due, NOW)
    assert due == NOW + (365 * 864000 + 1000) * 0.1


@given(
    seconds=st.floats(0.1, 1e7),
    anchor=st.floats(1e9, 2e9),
    passed=st.floats(-1e6, 1e9),
)
def test_every_due_time_is_the_next_and_all_who_ask_find_the_same(seconds: float, anchor: float, passed: float):
    spec = Every(seconds)
    moment = anchor + passed
    due = spec.after(moment, anchor)
    assert moment < due <= max(moment, anchor) + seconds * 1.001
    assert spec.after((moment + due) / 2, anchor) in (due, spec.after(due, anchor))
    assert spec.after(due, anchor) == pytest.approx(due + seconds, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "given", "named", "says"),
    [
        (every, [], {}, "give one length"),
        (every, ["5m"], {"seconds": 1}, "give one length"),
        (every, [], {"milliseconds": 99}, "the least is 0.1 seconds"),
        (every, [timedelta(seconds=-5)], {}, "the least is 0.1 seconds"),
        (every, [float("inf")], {}, "the least is 0.1 seconds"),
        (every, ["often"], {}, "`often` is no length of time"),
        (every, [5], {"jitter": "10s"}, "give a jitter of at most 5"),
        (cron, ["@daily"], {"jitter": timedelta(seconds=-1)}, "by which a firing may be late"),
        (at, [datetime(2027, 1, 1)], {}, "give a datetime with a time zone"),  # noqa: DTZ001 - that is the mistake
        (at, [date(2027, 1, 1)], {}, "give a datetime with a time zone"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_what_cannot_be_is_refused_with_the_way_out(
    make: Callable[..., Spec], given: list[Any], named: dict[str, Any], says: str
):
    with pytest.raises(ConfigurationError, match=says):
        make(*given, **named)


# -- at ----------------------------------------------------------------------------------------------------------


def test_an_at_is_due_once():
    spec = at(datetime(2026, 11, 22, 9, tzinfo=ZoneInfo("America/Sao_Paulo")))
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
    assert spec.after(NOW, 0.0) == noon
    assert spec.after(noon, 0.0) is None


# -- jitter ------------------------------------------------------------------------------------------------------


def test_jitter_is_spread_over_its_length_and_is_the_same_for_all():
    spec = every(minutes=5, jitter="10s")
    late = [jittered(spec, f"schedule-{number}", NOW) - NOW for number in range(1000)]
    assert all(0 <= seconds < 10 for seconds in late)
    assert 4 < sum(late) / len(late) < 6
    assert len(set(late)) > 990
    assert jittered(spec, "a", NOW) != jittered(spec, "a", NOW + 300)
    asked = (
        "from carteiro.schedules.specs import *; "
        f"print(repr(jittered(every(minutes=5, jitter='10s'), 'schedule-7', {NOW!r}) - {NOW!r}))"
    )
    other = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert float(other.stdout) == late[7]


def test_jitter_is_the_same_once_the_due_time_has_been_in_the_store():
    spec = cron("0 2 * * *", jitter="10s")
    due = spec.after(NOW, NOW)
    assert due is not None
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(due), type=float)
    assert jittered(spec, "cleanup", due) == jittered(spec, "cleanup", stored)


def test_without_jitter_a_firing_goes_when_it_is_due():
    assert jittered(every(seconds=1), "beat", NOW) == NOW


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        (cron("0 2  * * *", tz="America/Sao_Paulo"), "0 2 * * * America/Sao_Paulo"),
        (cron("@daily", jitter="1m"), "@daily UTC, jitter 1 min"),
        (every(seconds=1), "every 1 s"),
        (every("100ms"), "every 100 ms"),
        (every(1.5), "every 1.5 s"),
        (every(seconds=200), "every 200 s"),
        (every(minutes=90), "every 90 min"),
        (every(days=7, jitter=0.5), "every 7 d, jitter 500 ms"),
        (at(datetime(2026, 11, 22, 5, tzinfo=UTC)), "at 2026-11-22T05:00:00Z"),
    ],
)
def test_a_spec_says_what_it_is_and_comes_back_from_a_record(spec: Spec, shown: str):
    assert str(spec) == shown
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=Cron | Every | At) == spec


def test_what_cron_needs_is_loaded_when_a_cron_is_used():
    probe = (
        "import sys, carteiro; from carteiro.schedules.specs import cron, every; every(1); "
        "assert not {'cronsim', 'zoneinfo'} & set(sys.modules); cron('@daily'); assert 'cronsim' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
