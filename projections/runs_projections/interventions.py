"""What an operator decides about a projection that stands still: try the fact again, or pass over it.

Each decision is a fact of its own in the log, with who and why, and the log is where drivers learn of it: a rebuild of
the same version passes over the same facts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.domain import SYSTEM_THREAD, Fact, ProjectionRetried, ProjectionSkipped, Provenance, now
from runs_es.log import codec
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_projections import tracking
from runs_projections.projection import AnyProjection

# Positions of facts that a projection passes over, by its name.
Skips: TypeAlias = Mapping[str, frozenset[int]]
NO_SKIPS: Skips = {}


class NotStopped(Exception):
    """The projection does not stand still, so there is nothing to try again or to pass over."""


def skips(connection: Connection[TupleRow], projections: Sequence[AnyProjection]) -> Skips:
    """What these versions of these projections are to pass over."""
    rows = connection.execute(
        "select state from events_facts where thread_id = %s and topic = %s",
        (SYSTEM_THREAD, ProjectionSkipped.topic),
        binary=True,
    ).fetchall()
    versions = {projection.name: projection.version for projection in projections}
    found: defaultdict[str, set[int]] = defaultdict(set)
    for (state,) in rows:
        fact = codec.decode(ProjectionSkipped.topic, state, SYSTEM_THREAD)
        assert isinstance(fact, ProjectionSkipped)
        if versions.get(fact.projection) == fact.version:
            found[fact.projection].add(fact.position)
    return {name: frozenset(positions) for name, positions in found.items()}


def retry(log: EventLog, projection: AnyProjection, provenance: Provenance) -> int:
    """Let every process try the fact again at which the projection stopped; its position. Raises NotStopped."""
    return _decide(log, projection, provenance, ProjectionRetried)


def skip(log: EventLog, projection: AnyProjection, provenance: Provenance) -> int:
    """Let the projection pass over the fact at which it stopped; its position. Raises NotStopped."""
    return _decide(log, projection, provenance, ProjectionSkipped)


def _decide(
    log: EventLog,
    projection: AnyProjection,
    provenance: Provenance,
    kind: type[ProjectionRetried] | type[ProjectionSkipped],
) -> int:
    with tracking.connect(log.url, log.schema, "intervention") as connection:
        row = connection.execute(
            "select failed_position from tracking where name = %s and version = %s",
            (projection.name, projection.version),
        ).fetchone()
        if row is None or row[0] is None:
            raise NotStopped(f"{projection.name} has not stopped; see `runs-es projections status`")
        position = int(row[0])
        fact: Fact = kind(
            thread_id=SYSTEM_THREAD,
            occurred_at=now(),
            projection=projection.name,
            version=projection.version,
            position=position,
        )
        # The fact first: whoever sees that it is to go on reads there what to pass over.
        Decisions(log, kept_threads=1).make(SYSTEM_THREAD, lambda *_: Decision([fact]), provenance=provenance)
        tracking.ask_again(connection, projection)
    return position
