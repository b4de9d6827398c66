"""Whatever legally happens: live, rebuilt and folded in memory come out the same, and as the domain says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.log.event_log import EventLog
from runs_projections import PROJECTIONS, LiveProjector, filling, fold, rebuild, step, tracking
from runs_projections.projection import AnyProjection, Key
from tests.projections.comparing import all_facts, assert_tells_the_story, folded, stored
from tests.projections.histories import Teller, append, tell_all


class Names:
    """Examples share a database, so each has threads of its own."""

    def __init__(self) -> None:
        self.used = 0

    def fresh(self) -> str:
        self.used += 1
        return f"thread-{self.used}"


EXAMPLES = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
# How many, always and in the long run.
NUMBERS = pytest.mark.parametrize(
    "examples", [6, pytest.param(40, marks=[pytest.mark.faults, pytest.mark.timeout(600)])]
)


@NUMBERS
def test_live_rebuilt_and_folded_read_models_are_the_same(
    log: EventLog, projector: LiveProjector, examples: int
) -> None:
    names = Names()

    @given(data=st.data())
    @settings(EXAMPLES, max_examples=examples)
    def check(data: st.DataObject) -> None:
        tellers = drawn_stories(data, names, 30)
        position = append(log, tellers, random.Random(data.draw(st.integers(0, 9))))

        assert projector.wait_for(position, 30)
        live = stored(log)
        assert live == folded(log)
        assert_tells_the_story(live, tellers)
        assert projector.failures == {}

    check()


@NUMBERS
def test_at_every_prefix_live_rebuilt_and_folded_are_the_same(log: EventLog, examples: int) -> None:
    names = Names()

    @given(data=st.data())
    @settings(EXAMPLES, max_examples=examples // 2)
    def check(data: st.DataObject) -> None:
        append(log, drawn_stories(data, names, 25), random.Random(data.draw(st.integers(0, 9))))
        facts = all_facts(log)
        with tracking.connect(log.url, log.schema, "test") as connection:
            tracking.ensure(connection, log.schema, PROJECTIONS)
            # Not behind the facts of the examples before: one that drew too much was given up half-way.
            position = tracking.positions(connection, PROJECTIONS)["runs"]
            while (done := sum(fact.position <= position for fact in facts)) < len(facts):
                portion = facts[done : done + data.draw(st.integers(1, 4))]
                assert step.advance(connection, PROJECTIONS, position, portion)
                position = portion[-1].position

                in_memory = {each.name: fold(each, facts[: done + len(portion)]) for each in PROJECTIONS}
                assert stored(log) == in_memory
                assert {each.name: filled(connection, each, position) for each in PROJECTIONS} == in_memory

    check()


def drawn_stories(data: st.DataObject, names: Names, most_steps: int) -> list[Teller]:
    def choose(options: Sequence[Any]) -> Any:
        return options[data.draw(st.integers(0, len(options) - 1))]

    tellers = [Teller(names.fresh(), choose) for _ in range(data.draw(st.integers(1, 3)))]
    tell_all(tellers, data.draw(st.integers(1, most_steps)), choose)
    return tellers


def filled(connection: Connection[TupleRow], projection: AnyProjection, position: int) -> dict[Key, Any]:
    """The rows that a rebuild makes of the facts up to a position."""
    portions = filling.threads(connection, projection, "", position, frozenset(), batch=3, max_bytes=2**20)
    return {projection.table.key_of(row): row for portion in portions for row in portion.rows}


def test_a_rebuild_of_many_random_stories_changes_nothing(log: EventLog, projector: LiveProjector) -> None:
    dice = random.Random(7)
    tellers = [Teller(f"t{number}", dice.choice) for number in range(40)]
    tell_all(tellers, 2000, dice.choice)
    assert projector.wait_for(append(log, tellers, dice), 30)
    live = stored(log)

    report = rebuild(log, batch=97)

    assert stored(log) == live == folded(log)
    assert_tells_the_story(live, tellers)
    wanted = [[fact for fact in all_facts(log) if projection.wants(fact)] for projection in PROJECTIONS]
    assert report.facts == sum(map(len, wanted))
    assert len(live["usage"]) > 5
    assert report.rows == {name: len(rows) for name, rows in live.items()}
    assert rebuild(log, verify=True).differences == ()
