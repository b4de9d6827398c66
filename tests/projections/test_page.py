"""The page on projections of one's own: what it shows works, pasted as it is into an empty package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from runs_es.log.event_log import EventLog
from runs_es.settings import Settings
from runs_projections import PROJECTIONS, ProjectionLoadError, load_projections
from tests.projections.test_rebuild import many_runs

PAGE = Path(__file__).resolve().parents[2] / "projections" / "README.md"
_EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```python\n(.*?)```", re.DOTALL)


def paste(folder: Path) -> list[str]:
    """Write the page's examples where it says that they go; their names."""
    examples = dict(_EXAMPLE.findall(PAGE.read_text()))
    for name, text in examples.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (folder / "my_read_models" / "__init__.py").touch()
    return list(examples)


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's package, importable."""
    paste(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_pages_example_works_live_and_rebuilt(log: EventLog, package: Path) -> None:
    many_runs(log, 20)
    environment = {
        "RUNS_ES_DATABASE_URL": log.url,
        "RUNS_ES_PROJECTIONS": "my_read_models.durations:DURATIONS",
        "RUNS_ES_LIST_WAIT_SECONDS": "20",
    }

    asked = python(package, "ask.py", **environment)
    rebuilt = python(package, "-m", "runs_api.cli", "rebuild", "durations", "--version", "1", **environment)
    again = python(package, "ask.py", **environment)

    assert asked.returncode == 0, asked.stderr
    lines = asked.stdout.splitlines()
    assert len(lines) > 10
    assert all(line.startswith("agent t") for line in lines[:-1])
    assert lines[-1] == f"as of position {log.reader.last_position()} "
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert again.stdout == asked.stdout
    with psycopg.connect(log.url) as connection:
        (rows,) = connection.execute("select count(*) from runs_es.durations_v1").fetchone() or (0,)
    assert rows == len(lines) - 1


def test_the_pages_test_passes(package: Path) -> None:
    ran = python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_durations.py")
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


BROKEN = "raise RuntimeError('not today')"
MANY = "from my_read_models.durations import DURATIONS\nBOTH = [DURATIONS, DURATIONS]\n"
RENAMED = (
    "from dataclasses import replace\nfrom my_read_models.durations import DURATIONS\n"
    "OTHER = replace(DURATIONS, name='other', table=replace(DURATIONS.table, name='other'))\n"
)


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("my_read_models.durations", "it must be written as module:object"),
        ("nowhere:IT", "ModuleNotFoundError: No module named 'nowhere'"),
        ("my_read_models.durations:NOTHING", "has no attribute 'NOTHING'"),
        ("my_read_models.durations:evolve", "is no Projection but of type function"),
        ("my_read_models.broken:IT", "RuntimeError: not today (File "),
        ("my_read_models.broken:IT", 'broken.py", line 1, in <module>)'),
        ("my_read_models.exits:IT", "cannot be loaded: SystemExit: 3 (File "),
        ("my_read_models.many:BOTH", "there is another projection called durations over durations_v1"),
        ("my_read_models.renamed:OTHER", "its table must be called <name>_v1, not other"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_the_reason(package: Path, named: str, problem: str) -> None:
    for name, text in (("broken", BROKEN), ("exits", "raise SystemExit(3)"), ("many", MANY), ("renamed", RENAMED)):
        (package / "my_read_models" / f"{name}.py").write_text(text)

    with pytest.raises(ProjectionLoadError) as raised:
        load_projections(Settings(projections=named))

    assert f"projection '{named}' (RUNS_ES_PROJECTIONS)" in str(raised.value)
    assert problem in str(raised.value)


def test_an_installed_package_offers_its_own_by_entry_point(package: Path) -> None:
    metadata = package / "my_read_models-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-read-models\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[runs_es.projections]\ndurations = my_read_models.durations:DURATIONS\n"
    )

    names = [projection.name for projection in load_projections(Settings())]

    assert names == [*(projection.name for projection in PROJECTIONS), "durations"]


def test_the_command_line_says_what_cannot_be_loaded(log: EventLog, package: Path) -> None:
    refused = python(
        package,
        "-m",
        "runs_api.cli",
        "projections",
        "list",
        RUNS_ES_DATABASE_URL=log.url,
        RUNS_ES_PROJECTIONS="nowhere:IT",
    )
    assert refused.returncode == 1
    assert "error: projection 'nowhere:IT' (RUNS_ES_PROJECTIONS) cannot be loaded" in refused.stderr
    assert "Traceback" not in refused.stderr
