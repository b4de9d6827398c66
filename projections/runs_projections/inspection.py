"""Whether read models can be true: each follows the log, and none has passed its end."""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.log.inspection import Finding, Findings
from runs_projections import PROJECTIONS


def inspect_tracking(connection: Connection[TupleRow], findings: Findings) -> list[str]:
    """Compare how far each projection says it has come with how far the log goes.

    Returns those that no process has begun to fill, as after a migration: the next server does, so nothing is wrong.
    """
    # Read before the log's end, which only moves on.
    rows = connection.execute("select name, version, position from tracking order by name, version").fetchall()
    row = connection.execute("select coalesce(max(position), 0) from events_facts").fetchone()
    assert row is not None
    for name, version, position in rows:
        if position > row[0]:
            detail = f"stands at position {position}, the log ends at {row[0]}; `runs-es rebuild {name}`"
            findings.add(Finding("read models follow the log", f"projection {name} version {version}", detail))
    known = {(name, version) for name, version, _ in rows}
    return [
        f"{projection.name} version {projection.version}"
        for projection in (PROJECTIONS if row[0] else ())
        if (projection.name, projection.version) not in known
    ]
