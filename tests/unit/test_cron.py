"""Cron expressions, and what becomes of them when real clocks are moved, in both hemispheres."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from carteiro.errors import ConfigurationError
from carteiro.schedules import cron as reading
from carteiro.schedules.specs import cron


def dues(expression: str, tz: str, start: str, end: str) -> list[str]:
    """All that is due after `start` and until `end`, as the clock in the zone shows it."""
    spec, found, last = cron(expression, tz=tz), [], datetime.fromisoformat(end).timestamp()
    due = spec.after(datetime.fromisoformat(start).timestamp(), 0.0)
    while due is not None and due <= last:
        found.append(datetime.fromtimestamp(due, ZoneInfo(tz)).isoformat(timespec="minutes"))
        due = spec.after(due, 0.0)
    return found


# -- what can be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("30 9 * * *", "2026-11-23T09:30:00"),
        ("*/20 * * * *", "2026-11-22T11:40:00"),
        ("30 */5 * * * *", "2026-11-22T11:25:30"),  # six fields: the seconds stand first
        ("0 9 * * mon-fri", "2026-11-23T09:00:00"),
        ("0 9 * * 7", "2026-11-29T09:00:00"),
        ("0 0 1 JAN,jul *", "2027-01-01T00:00:00"),
        ("0 0 L * *", "2026-11-30T00:00:00"),
        ("0 0 L 2 *", "2027-02-28T00:00:00"),
        ("0 0 LW * *", "2026-11-30T00:00:00"),
        ("0 0 LW 2 *", "2027-02-26T00:00:00"),
        ("0 0 * * 5L", "2026-11-27T00:00:00"),
        ("0 0 * * MON#1", "2026-12-07T00:00:00"),
        ("0 0 * * 1#5", "2026-11-30T00:00:00"),
        ("0 0 13 * FRI", "2026-11-27T00:00:00"),  # either day, as both are given
        ("0 0 */13 * FRI", "2026-11-27T00:00:00"),  # both days, as one begins with a star: 1, 14 and 27
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("0 0 29 2 */7", "2032-02-29T00:00:00"),
        ("0 0 * 2 MON#5", "2044-02-29T00:00:00"),
        ("@yearly", "2027-01-01T00:00:00"),
        ("@annually", "2027-01-01T00:00:00"),
        ("@monthly", "2026-12-01T00:00:00"),
        ("@weekly", "2026-11-29T00:00:00"),
        ("@daily", "2026-11-23T00:00:00"),
        ("@midnight", "2026-11-23T00:00:00"),
        ("@Hourly", "2026-11-22T12:00:00"),
    ],
)
def test_an_expression_is_due_first_at(expression: str, first: str):
    sunday = datetime(2026, 11, 22, 11, 24, 51, tzinfo=UTC).timestamp()
    due = cron(expression).after(sunday, 0.0)
    assert due is not None
    assert datetime.fromtimestamp(due, UTC).replace(tzinfo=None).isoformat() == first


def test_a_due_time_is_after_the_moment_and_never_it():
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
    hourly = cron("0 * * * *")
    assert hourly.after(noon - 0.001, 0.0) == noon
    assert hourly.after(noon, 0.0) == hourly.after(noon + 0.5, 0.0) == noon + 3600


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("0 25 * * *", "`25` is no hour: give 0-23"),
        ("61 * * * * *", "`61` is no second"),
        ("x * * * *", "`X` is no minute"),
        ("0 0 0 * *", "`0` is no day of the month"),
        ("0 0 * 13 *", "`13` is no month: give 1-12 or JAN-DEC"),
        ("0 0 * * FRI-SUN", "`FRI-SUN` is no day of the week"),
        ("0 0 * * MON#6", "`MON#6` is no day of the week"),
        ("0 0 ? * *", "`?` is no day of the month"),
        ("*/0 * * * *", "`*/0` is no minute"),
        ("", "0 fields"),
        ("0 2 * *", "4 fields, where there are five"),
        ("0 0 2 * * * 2026", "7 fields"),
        ("@reboot", "`@reboot` is none of @yearly"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("* * */20 * 1L", "never comes"),  # the 1st or 21st, and the last Monday
    ],
)
def test_what_is_no_expression_or_never_comes_is_refused_where_it_is_written(expression: str, says: str):
    with pytest.raises(ConfigurationError) as caught:
        cron(expression)
    assert str(caught.value).startswith(f'cron("{expression}"): ')
    assert says in str(caught.value)


# -- zones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tz", "says"),
    [
        ("Berlin", '"Europe/Berlin"'),
        ("America", "is no time zone"),
        ("../etc/passwd", "is no time zone"),
        ("", "is no time zone"),
        ("UTC+03:00", "is no time zone"),
    ],
)
def test_an_unknown_zone_is_refused_with_a_name_that_would_do(tz: str, says: str):
    with pytest.raises(ConfigurationError, match=says):
        cron("@daily", tz=tz)


def test_a_zone_may_be_given_as_an_object_and_without_one_it_is_utc():
    assert cron("@daily", tz=ZoneInfo("Europe/Berlin")) == cron("@daily", tz="Europe/Berlin")
    assert cron("@daily", tz=UTC) == cron("@daily")


def test_without_a_time_zone_database_utc_works_and_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def none_found(name: str) -> ZoneInfo:
        raise KeyError(name)

    monkeypatch.setattr(reading, "ZoneInfo", none_found)
    monkeypatch.setattr(reading, "available_timezones", set[str])
    reading.zone.cache_clear()
    assert cron("@daily").after(0.0, 0.0) == 86400
    with pytest.raises(ConfigurationError, match="pip install tzdata"):
        cron("@daily", tz="Asia/Tokyo")


# -- the clock is moved forward ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tz", "expression", "start", "end", "expected"),
    [
        # 02:00 -> 03:00
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00+01:00", "2026-03-30T12:00+02:00",
         ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("Europe/Berlin", "0,30 2-3 * * *", "2026-03-29T00:00+01:00", "2026-03-29T12:00+02:00",
         ["2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00"]),
        ("Europe/Berlin", "15 30 2 * * *", "2026-03-29T00:00+01:00", "2026-03-29T12:00+02:00",
         ["2026-03-29T03:00+02:00"]),
        ("Europe/Berlin", "*/30 2 * * *", "2026-03-29T00:00+01:00", "2026-03-30T02:00+02:00",
         ["2026-03-30T02:00+02:00"]),
        ("Europe/Berlin", "30 * * * *", "2026-03-29T00:30+01:00", "2026-03-29T03:30+02:00",
         ["2026-03-29T01:30+01:00", "2026-03-29T03:30+02:00"]),
        ("America/New_York", "30 2 8 3 *", "2026-01-01T00:00-05:00", "2027-01-01T00:00-05:00",
         ["2026-03-08T03:00-04:00"]),
        # 00:00 -> 01:00
        ("America/Sao_Paulo", "@daily", "2018-11-03T12:00-03:00", "2018-11-05T12:00-02:00",
         ["2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"]),
        ("America/Sao_Paulo", "*/30 0 * * *", "2018-11-03T12:00-03:00", "2018-11-05T00:00-02:00",
         ["2018-11-05T00:00-02:00"]),
        # 02:00 -> 02:30
        ("Australia/Lord_Howe", "15 2 * * *", "2025-10-04T12:00+10:30", "2025-10-06T12:00+11:00",
         ["2025-10-05T02:30+11:00", "2025-10-06T02:15+11:00"]),
        ("Australia/Lord_Howe", "*/15 2-3 * * *", "2025-10-05T00:00+10:30", "2025-10-05T03:15+11:00",
         ["2025-10-05T02:30+11:00", "2025-10-05T02:45+11:00", "2025-10-05T03:00+11:00", "2025-10-05T03:15+11:00"]),
        # 02:00 -> 03:00, after Ramadan
        ("Africa/Casablanca", "0 2 * * *", "2025-04-05T12:00+00:00", "2025-04-07T12:00+01:00",
         ["2025-04-06T03:00+01:00", "2025-04-07T02:00+01:00"]),
        # 30 December was left out: 24 hours are no summer time
        ("Pacific/Apia", "0 9 * * *", "2011-12-29T00:00-10:00", "2011-12-31T12:00+14:00",
         ["2011-12-29T09:00-10:00", "2011-12-31T09:00+14:00"]),
        ("Pacific/Apia", "*/30 23 30,31 12 *", "2011-12-01T00:00-10:00", "2011-12-31T23:30+14:00",
         ["2011-12-31T23:00+14:00", "2011-12-31T23:30+14:00"]),
    ],
)  # fmt: skip
def test_fixed_times_in_a_gap_are_due_right_after_it_and_others_follow_the_clock(
    tz: str, expression: str, start: str, end: str, expected: list[str]
):
    assert dues(expression, tz, start, end) == expected


# -- the clock is put back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tz", "expression", "start", "end", "expected"),
    [
        # 03:00 -> 02:00
        ("Europe/Berlin", "30 2 * * *", "2026-10-25T00:00+02:00", "2026-10-26T12:00+01:00",
         ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("Europe/Berlin", "30 2,3 * * *", "2026-10-25T02:10+01:00", "2026-10-25T12:00+01:00",
         ["2026-10-25T03:30+01:00"]),  # as seen from within the repeated hour
        ("Europe/Berlin", "*/30 2 * * *", "2026-10-25T00:00+02:00", "2026-10-25T12:00+01:00",
         ["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00", "2026-10-25T02:30+01:00"]),
        ("Europe/Berlin", "@hourly", "2026-10-25T01:00+02:00", "2026-10-25T03:00+01:00",
         ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
        ("America/New_York", "0,30 1 * * *", "2026-11-01T00:00-04:00", "2026-11-01T12:00-05:00",
         ["2026-11-01T01:00-04:00", "2026-11-01T01:30-04:00"]),
        # 00:00 -> 23:00 of the day before
        ("America/Sao_Paulo", "30 23 * * SAT", "2018-02-17T12:00-02:00", "2018-02-18T12:00-03:00",
         ["2018-02-17T23:30-02:00"]),
        ("America/Sao_Paulo", "@daily", "2018-02-17T12:00-02:00", "2018-02-18T12:00-03:00",
         ["2018-02-18T00:00-03:00"]),
        ("America/Sao_Paulo", "*/40 23 * * *", "2018-02-17T12:00-02:00", "2018-02-18T12:00-03:00",
         ["2018-02-17T23:00-02:00", "2018-02-17T23:40-02:00", "2018-02-17T23:00-03:00", "2018-02-17T23:40-03:00"]),
        # 02:00 -> 01:30
        ("Australia/Lord_Howe", "15,45 1 * * *", "2026-04-05T00:00+11:00", "2026-04-05T12:00+10:30",
         ["2026-04-05T01:15+11:00", "2026-04-05T01:45+11:00"]),
        ("Australia/Lord_Howe", "*/15 1 * * *", "2026-04-05T01:15+11:00", "2026-04-05T12:00+10:30",
         ["2026-04-05T01:30+11:00", "2026-04-05T01:45+11:00", "2026-04-05T01:30+10:30", "2026-04-05T01:45+10:30"]),
        # 03:00 -> 02:00, for Ramadan
        ("Africa/Casablanca", "30 2 * * *", "2025-02-22T12:00+01:00", "2025-02-24T12:00+00:00",
         ["2025-02-23T02:30+01:00", "2025-02-24T02:30+00:00"]),
        # 02:00 -> 23:00 of the day before: three hours are no summer time
        ("Antarctica/Casey", "30 0 * * *", "2010-03-04T12:00+11:00", "2010-03-05T12:00+08:00",
         ["2010-03-05T00:30+11:00", "2010-03-05T00:30+08:00"]),
    ],
)  # fmt: skip
def test_fixed_times_that_come_twice_are_due_once_and_others_follow_the_clock(
    tz: str, expression: str, start: str, end: str, expected: list[str]
):
    assert dues(expression, tz, start, end) == expected
