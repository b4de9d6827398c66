"""What `make` installs, and with what."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
import install  # noqa: E402  (a script, in no package)

# A build backend of a few lines, so that nothing is asked of a registry.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "runs-es"
version = "0.1.0"
optional-dependencies = { embedded = [], langgraph = [] }
"""
BACKEND = """
import zipfile

def build_editable(folder, settings=None, metadata=None):
    name = "runs_es-0.1.0-py3-none-any.whl"
    facts = {
        "METADATA": "Metadata-Version: 2.1\\nName: runs-es\\nVersion: 0.1.0\\n"
        "Provides-Extra: embedded\\nProvides-Extra: langgraph\\n",
        "WHEEL": "Wheel-Version: 1.0\\nGenerator: backend\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("installed_by_test.py", "")
        for file, text in facts.items():
            wheel.writestr(f"runs_es-0.1.0.dist-info/{file}", text)
    return name
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a package that needs nothing, and the project's own Makefile and installer."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "install.py", tmp_path / ".ci" / "install.py")
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    return tmp_path


def plan(checkout: Path, target: str) -> str:
    """The commands that `make` would run."""
    done = subprocess.run(["make", "-n", target], cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout


def stamp(checkout: Path, *names: str) -> None:
    (checkout / ".venv").mkdir(exist_ok=True)
    for name in names:
        (checkout / ".venv" / f".{name}").touch()


def test_serving_installs_no_tools_and_the_tests_add_theirs(checkout: Path) -> None:
    assert "install.py serve" in plan(checkout, "serve")
    assert install.GROUPS["serve"] == []
    stamp(checkout, "serve")
    assert "install.py" not in plan(checkout, "serve")
    assert "install.py test" in plan(checkout, "test")
    stamp(checkout, "test")
    assert "install.py" not in plan(checkout, "test") + plan(checkout, "check")


def test_the_options_of_pip_are_told_to_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    # As pip 25 prints them; an environment that uv has made has no pip to ask.
    printed = (
        "global.extra-index-url='\\nhttp://127.0.0.1:1/two\\nhttp://127.0.0.1:1/three'\n"
        "global.find-links='/wheels'\nglobal.index-url='http://127.0.0.1:1/one'\n"
        ":env:.config-file='/somewhere/pip.conf'\n:env:.find-links='/a /b'\n"
    )
    monkeypatch.setattr(install, "run", lambda *command: subprocess.CompletedProcess(command, 0, printed, ""))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    told = install.indexes(install.pip_options(sys.executable))
    assert told["UV_DEFAULT_INDEX"] == "http://127.0.0.1:1/one"
    assert told["UV_INDEX"] == "http://127.0.0.1:1/two http://127.0.0.1:1/three"
    assert told["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert told["UV_FIND_LINKS"] == "/a,/b"  # the variable wins over the file, as it does for pip


@pytest.mark.faults  # making an environment with a pip of its own takes seconds
def test_pip_installs_when_uv_cannot(checkout: Path) -> None:
    folder = checkout / "bin"
    folder.mkdir()
    uv = folder / "uv"
    uv.write_text("#!/bin/sh\necho 'error: no route' >&2\nexit 2\n")
    uv.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        ["make", ".venv/.serve", f"PYTHON={sys.executable}"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "uv could not: error: no route" in done.stdout
    (found,) = (checkout / ".venv").glob("lib/python*/site-packages/installed_by_test.py")
    assert found.exists()
    assert (checkout / ".venv" / ".serve").exists()
    assert not (checkout / ".venv" / ".test").exists()
