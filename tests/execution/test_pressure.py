"""A producer that is faster than the disk."""

from __future__ import annotations

from pathlib import Path

from runs_es.settings import MIB
from tests.benchmarks.pressure import press


def test_producers_faster_than_the_disk_are_slowed_in_bounded_memory_and_lose_nothing(
    database_url: str, tmp_path: Path
) -> None:
    done = press(database_url, tmp_path, seconds=3, producers=4, disk=2 * MIB, buffer=MIB, ring=MIB)
    assert done.stored == done.frames > 0
    assert done.lost_runs == 0
    assert done.waited_share > 0.5
    assert done.grown < done.bound
