"""What the command line does before any command: its list, its completion, and the database that it means."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runs_api import cli, terminal
from runs_api.lazy_commands import loaded
from tests.api.test_cli import COMMAND, Result
from tests.api.test_cli import run as run  # the fixture

HEAVY = ("psycopg", "pydantic", "fastapi", "procrastinate", "langgraph", "eventsourcing", "runs_es.database")


def command(*arguments: str, folder: Path | None = None, **environment: str) -> Result:
    """Run the installed command, with no settings but these."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("RUNS_ES_")}
    done = subprocess.run(
        [COMMAND, *arguments], cwd=folder, env={**others, **environment}, capture_output=True, text=True, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_the_list_of_commands_imports_nothing_that_only_a_command_needs():
    code = (
        "import sys\nfrom runs_api.cli import main\nsys.argv = ['runs-es', '--help']\n"
        f"try:\n    main()\nfinally:\n    print('imported:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "history" in done.stdout
    assert "imported: []" in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_listed_with_the_beginning_of_its_own_help(name: str):
    place, line = cli.COMMANDS[name]
    told = " ".join((loaded(name, place).help or "").split())
    assert told.startswith(line)


def test_the_version_is_that_of_the_package(run):
    result = run("--version")
    assert (result.code, re.fullmatch(r"runs-es \d+\.\d+\.\d+\n", result.out) is not None) == (0, True)


def test_a_shell_completes_commands_and_those_of_a_group():
    for words, expected in (("runs-es his", "history"), ("runs-es projections st", "status")):
        asked = {"_RUNS_ES_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert command(**asked).out.split() == [expected]


def test_every_command_takes_its_settings_from_one_place():
    for module in Path(cli.__file__).parent.glob("cli_*.py"):
        assert "= Settings()" not in module.read_text(), f"{module.name}: command_settings() finds .data too"


@pytest.mark.parametrize(
    "arguments",
    [
        ["history", "R"], ["diff", "R"], ["tail", "R"], ["check"], ["rebuild"], ["retain"],
        ["erase", "T", "--reason", "x"], ["projections", "list"], ["projections", "status"],
        ["webhooks", "list"],
    ],
)  # fmt: skip
def test_a_command_that_needs_a_database_makes_none_and_names_the_one_it_looked_for(
    run, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    result = run(*arguments, RUNS_ES_DATA_DIR=str(data), RUNS_ES_DATABASE_URL="")
    assert result.code == 1
    assert f"There is no database in {data}" in result.err
    assert "RUNS_ES_DATABASE_URL" in result.err
    assert list(tmp_path.iterdir()) == []


def data_of_make_serve(folder: Path) -> Path:
    data = folder / ".data"
    (data / "postgres").mkdir(parents=True)
    data.chmod(0o711)
    return data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and no setting that names a database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNS_ES_DATA_DIR", raising=False)
    monkeypatch.delenv("RUNS_ES_DATABASE_URL", raising=False)
    return tmp_path


def test_the_database_of_make_serve_is_found_and_named(here: Path, capsys: pytest.CaptureFixture[str]):
    data = data_of_make_serve(here)
    assert terminal.command_settings().data_dir == data.resolve()
    assert f"using the database in {data.resolve()}" in capsys.readouterr().err


def test_a_database_that_is_named_wins_over_one_that_lies_here(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    data_of_make_serve(here)
    monkeypatch.setenv("RUNS_ES_DATA_DIR", "/elsewhere")
    assert terminal.command_settings().data_dir == Path("/elsewhere")
    monkeypatch.delenv("RUNS_ES_DATA_DIR")
    monkeypatch.setenv("RUNS_ES_DATABASE_URL", "postgresql://127.0.0.1:1/x")
    assert terminal.command_settings().data_dir != here / ".data"
    assert capsys.readouterr().err == ""


def test_a_folder_that_others_can_write_or_that_holds_no_database_is_not_started(here: Path):
    data = data_of_make_serve(here)
    data.chmod(0o777)
    assert terminal.command_settings().data_dir != data.resolve()
    data.chmod(0o711)
    (data / "postgres").rmdir()
    assert terminal.command_settings().data_dir != data.resolve()
