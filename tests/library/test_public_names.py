"""`import runs_es` as its users see it: at run time, in a completion, and with a type checker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import runs_es
import runs_es.domain

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(?:<!-- example: (\S+) -->\n)?```python\n(.*?)```", re.DOTALL)
# LangGraph's own packages are of no concern here, and take most of the time.
_MYPY = """[mypy]
strict = true
namespace_packages = false
[mypy-langgraph.*,langchain_core.*]
follow_imports = skip
"""
# What a store offers is what the ports say.
_PORTS = """
from runs_es import (
    ActiveRun, FunctionExecutor, RunEventLog, RunExecutionHandle, RunExecutionScheduler, RunExecutor, RunRepository,
    RunStreamBroker, RunSupervisor, Store,
)

class Own:
    async def execute(self, run: ActiveRun) -> None: ...

async def check(store: Store) -> None:
    repository: RunRepository = store.repository
    log: RunEventLog = store.event_log
    broker: RunStreamBroker = store.broker
    scheduler: RunExecutionScheduler = store.scheduler
    supervisor: RunSupervisor = store.supervisor
    handle: RunExecutionHandle = await scheduler.start("r")
    executors: list[RunExecutor] = [Own(), FunctionExecutor({})]
"""
PAGES = ("README.md", "projections/README.md", "runs_es/execution/README.md")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    """What a new interpreter says to this."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_every_public_name_can_be_had_and_is_listed() -> None:
    assert len(set(runs_es.__all__)) == len(runs_es.__all__)
    assert set(runs_es.domain.__all__) <= set(runs_es.__all__)
    assert set(runs_es.__all__) <= set(dir(runs_es))
    for name in runs_es.__all__:
        assert getattr(runs_es, name) is not None, name


def test_the_star_brings_them_all() -> None:
    ran = fresh("from runs_es import *; import runs_es; print([n for n in runs_es.__all__ if n not in globals()])")
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_name_that_there_is_not_is_an_error_that_names_it() -> None:
    ran = fresh("from runs_es import Sttings")
    assert "ImportError: cannot import name 'Sttings' from 'runs_es'" in ran.stderr


def test_the_domain_is_had_without_anything_else() -> None:
    ran = fresh(
        "import runs_es.domain, sys; print([n for n in sys.modules if n.split('.')[0] in ('pydantic', 'psycopg')])"
    )
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `mypy --strict`, without any plugin, says of all Python of the documents, and of two mistakes."""
    folder = tmp_path_factory.mktemp("documents")
    for page in PAGES:
        for number, (name, text) in enumerate(_BLOCK.findall((ROOT / page).read_text())):
            path = folder / (name or f"{page.replace('/', '_').removesuffix('.md').lower()}_{number}.py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (folder / "my_read_models" / "__init__.py").touch()
    (folder / "own_executor.py").write_text((ROOT / "tests" / "examples" / "own_executor.py").read_text())
    (folder / "mistakes.py").write_text(
        "from runs_es import Settings, Sttings\n\nSettings(databse_url='x')\nSettings(concurrency=3)\n"
    )
    (folder / "ports.py").write_text(_PORTS)
    (folder / "mypy.ini").write_text(_MYPY)
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not ran.stderr, ran.stderr
    return ran.stdout


@pytest.mark.timeout(310)  # it checks all that the documents import
def test_the_documents_python_and_the_stores_ports_have_no_type_errors(checked: str) -> None:
    assert [line for line in checked.splitlines() if not line.startswith("mistakes.py")] == []


@pytest.mark.timeout(310)
def test_a_misspelt_name_or_setting_is_a_type_error(checked: str) -> None:
    mistakes = [line for line in checked.splitlines() if line.startswith("mistakes.py")]
    assert len(mistakes) == 2
    assert 'Module "runs_es" has no attribute "Sttings"' in mistakes[0]
    assert 'Unexpected keyword argument "databse_url" for "Settings"' in mistakes[1]
