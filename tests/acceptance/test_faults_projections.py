"""Projectors and rebuilds that are killed, many times at random points: rows are always those of a fresh fold."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from runs_es.log.event_log import EventLog
from runs_projections import PROJECTIONS, LiveProjector, fold
from runs_projections.freshness import TrackingPoll
from tests.projections.comparing import all_facts, folded, positions, stored
from tests.projections.following import following
from tests.projections.histories import random_stories
from tests.projections.test_rebuild import until

KILLS = 50
REBUILD_KILLS = 12
COMMAND = str(Path(sys.executable).parent / "runs-es")


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as opened:
        yield opened


def assert_rows_are_those_of_a_fresh_fold(log: EventLog) -> dict[str, int]:
    """Of the facts up to where each projection stands."""
    stand, rows, facts = positions(log), stored(log), all_facts(log)
    for projection in PROJECTIONS:
        until_there = [fact for fact in facts if fact.position <= stand[projection.name]]
        assert rows[projection.name] == fold(projection, until_there), f"{projection.name} at {stand}"
    return stand


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_projectors_killed_at_fifty_random_points_one_and_two_at_once(log: EventLog) -> None:
    dice = random.Random(50)
    poll = TrackingPoll(log.reader)
    points = set()
    for kill in range(KILLS):
        random_stories(log, kill, threads=4, steps=dice.randint(20, 120), prefix=f"k{kill}-")
        last, reached = log.reader.last_position(), min(positions(log).values(), default=0)
        with ExitStack() as stack:
            # Two at once, each second time; only one of them is killed before the rows are looked at.
            processes = [
                stack.enter_context(following(log.url, batch=dice.choice((1, 2, 5, 17)))) for _ in range(1 + kill % 2)
            ]
            poll.wait_for(dice.randint(reached, last), 30)
            for process in processes:
                process.kill()
                process.wait(10)
        until(lambda: _sessions(log) == 0)  # the server finishes, or rolls back, what they had sent
        points.add(max(assert_rows_are_those_of_a_fresh_fold(log).values()))

    assert len(points) > KILLS / 2
    with LiveProjector(log) as projector:
        assert projector.wait_for(log.reader.last_position(), 60)
    assert stored(log) == folded(log)


@pytest.mark.faults
def test_a_process_that_is_frozen_while_it_leads_the_read_models_stops_nobody_for_long(log: EventLog) -> None:
    with following(log.url) as frozen:
        random_stories(log, 1, threads=2, steps=20, prefix="before-")
        assert TrackingPoll(log.reader).wait_for(log.reader.last_position(), 30)
        frozen.send_signal(signal.SIGSTOP)
        with LiveProjector(log) as projector:
            random_stories(log, 2, threads=2, steps=20, prefix="after-")
            assert not projector.wait_for(log.reader.last_position(), 2), "it led nothing"
            assert projector.wait_for(log.reader.last_position(), 20)
            frozen.send_signal(signal.SIGCONT)
            random_stories(log, 3, threads=2, steps=20, prefix="later-")
            assert projector.wait_for(log.reader.last_position(), 20)
            assert frozen.poll() is None
    assert stored(log) == folded(log)


def _sessions(log: EventLog) -> int:
    with psycopg.connect(log.url) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and application_name = 'runs-es projector'"
        ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_rebuilds_killed_at_random_points_go_on_and_never_show(log: EventLog) -> None:
    dice = random.Random(12)
    for number in range(40):
        random_stories(log, number, threads=20, steps=600, prefix=f"s{number}-")
    environment = {**os.environ, "RUNS_ES_DATABASE_URL": log.url}
    with LiveProjector(log) as projector:
        assert projector.wait_for(log.reader.last_position(), 60)
        survived = 0
        for _ in range(REBUILD_KILLS):
            process = subprocess.Popen([COMMAND, "rebuild"], env=environment, stdout=subprocess.DEVNULL)
            try:
                process.wait(dice.uniform(0.8, 3.0))
                survived += 1
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait(10)
            random_stories(log, dice.randrange(10**6), threads=2, steps=30, prefix=f"during{dice.random()}-")
            assert projector.wait_for(log.reader.last_position(), 30)
            assert stored(log) == folded(log)
        assert survived < REBUILD_KILLS
        assert subprocess.run([COMMAND, "rebuild"], env=environment, check=False).returncode == 0
        assert stored(log) == folded(log)
    assert subprocess.run([COMMAND, "rebuild", "--verify"], env=environment, check=False).returncode == 0
