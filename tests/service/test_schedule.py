"""When a schedule is due: by cron's rules, by the clock of a time zone, and the same whoever asks from wherever."""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs_es.service.schedule import Schedule

NEW_YORK = ZoneInfo("America/New_York")
# Days on which clocks change, in zones of whole and half hours on both halves of the earth.
CHANGES = [
    datetime(2026, month, day, tzinfo=UTC) for month, day in ((3, 7), (3, 28), (4, 4), (10, 3), (10, 24), (10, 31))
]
ZONES = ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago", None]
MINUTES = ["0", "30", "*/15", "15,45", "*", "10-20/5"]
HOURS = ["*", "1", "2", "3", "1-3", "*/2", "0,2", "0-5", "23"]


def local(schedule: str, since: datetime, count: int) -> list[str]:
    """The ticks after a moment in New York, as its clock shows them."""
    ticks = islice(Schedule(schedule, "America/New_York").ticks(since), count)
    return [f"{tick.astimezone(NEW_YORK):%d %H:%M %Z}" for tick in ticks]


def test_a_time_that_a_jump_of_the_clock_leaves_out_comes_right_after_it() -> None:
    before = datetime(2026, 3, 7, 12, tzinfo=NEW_YORK)
    assert local("30 2 * * *", before, 3) == ["08 03:00 EDT", "09 02:30 EDT", "10 02:30 EDT"]


def test_a_time_that_comes_twice_runs_once() -> None:
    before = datetime(2026, 10, 31, 12, tzinfo=NEW_YORK)
    assert local("30 1 * * *", before, 2) == ["01 01:30 EDT", "02 01:30 EST"]


def test_a_moment_in_the_second_of_two_hours_is_not_taken_for_one_in_the_first() -> None:
    second_time = datetime(2026, 11, 1, 1, 15, fold=1, tzinfo=NEW_YORK)
    assert local("30 1 * * *", second_time, 1) == ["02 01:30 EST"]


def test_every_quarter_of_an_hour_is_one_whatever_clocks_do() -> None:
    for before in (datetime(2026, 3, 8, 1, tzinfo=NEW_YORK), datetime(2026, 11, 1, 0, 30, tzinfo=NEW_YORK)):
        ticks = list(islice(Schedule("*/15 * * * *", "America/New_York").ticks(before), 12))
        assert {b - a for a, b in pairwise(ticks)} == {timedelta(minutes=15)}


@pytest.mark.parametrize("seed", range(8))
def test_the_ticks_are_the_same_from_whatever_moment_they_are_asked_for(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(40):
        text = f"{dice.choice(MINUTES)} {dice.choice(HOURS)} * * *"
        if dice.random() < 0.2:
            text = f"{dice.choice(['0', '*/20', '15,30'])} {text}"
        schedule = Schedule(text, dice.choice(ZONES))
        begin = dice.choice(CHANGES)
        ticks = list(islice(schedule.ticks(begin), 150))
        assert ticks == sorted(set(ticks))
        moment = begin + (ticks[-1] - begin) * dice.random()
        told = f"{text} {moment}"
        assert schedule.after(moment) == next(tick for tick in ticks if tick > moment), told
        passed = [tick for tick in ticks if tick <= moment]
        if passed:
            assert schedule.latest(moment) == passed[-1], told
        one = dice.choice(ticks[:-1])
        assert (schedule.latest(one), schedule.after(one)) == (one, ticks[ticks.index(one) + 1]), told


@pytest.mark.parametrize(
    ("text", "zone", "moment", "latest"),
    [
        ("30 0-5 * * *", "Europe/Berlin", "2026-10-25T01:00:56", "2026-10-25T00:30:00"),
        ("* 1 * * *", "Australia/Lord_Howe", "2026-10-03T23:09:21", "2026-10-03T15:29:00"),
    ],
)
def test_the_latest_tick_is_one_that_came_also_on_days_on_which_clocks_change(
    text: str, zone: str, moment: str, latest: str
) -> None:
    schedule, asked, expected = Schedule(text, zone), f"{moment}+00:00", f"{latest}+00:00"
    assert schedule.latest(datetime.fromisoformat(asked)) == datetime.fromisoformat(expected)


def test_six_fields_begin_with_seconds_and_words_stand_for_the_usual_ones() -> None:
    since = datetime(2026, 6, 1, 12, 0, 5, tzinfo=UTC)
    assert Schedule("*/20 * * * * *").after(since) == datetime(2026, 6, 1, 12, 0, 20, tzinfo=UTC)
    assert Schedule("@hourly").after(since) == datetime(2026, 6, 1, 13, tzinfo=UTC)
    assert Schedule("@Weekly").after(since) == datetime(2026, 6, 7, tzinfo=UTC)
    assert Schedule("0 9 * * MON-fri", "Europe/Berlin").after(since) == datetime(2026, 6, 2, 7, tzinfo=UTC)


def test_the_shortest_time_between_ticks_is_known() -> None:
    now = datetime.now(UTC)
    assert Schedule("0,7 * * * * *").shortest_gap(now) == timedelta(seconds=7)
    assert Schedule("59 23 31 12 *").shortest_gap(now) >= timedelta(days=365)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("61 * * * *", "bad minute"),
        ("* 24 * * *", "bad hour"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("* * * *", "wrong number of fields"),
        ("* * * * * * *", "wrong number of fields"),
        ("R R * * *", "bad minute"),
        ("@reboot", "wrong number of fields"),
        ("", "wrong number of fields"),
        ("ı * * * *", "not ASCII"),
    ],
)
def test_what_is_no_schedule_is_refused_with_what_is_wrong_with_it(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^schedule: .*{problem}.*; it has five fields"):
        Schedule(text)


@pytest.mark.parametrize("name", ["Europe/Atlantis", "", "../../etc/passwd", "UTC+02:00", "Europe", "\x00"])
def test_a_time_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^timezone: .* is no IANA time zone"):
        Schedule("@daily", name)


@given(st.text(alphabet="0123456789*/,-#LWRH@ monfridaily?", max_size=40))
def test_any_text_is_a_schedule_or_refused_and_either_at_once(text: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with suppress(ValueError):
        schedule = Schedule(text)
        tick = schedule.after(now)
        assert tick is None or schedule.latest(tick) == tick
