"""A PostgreSQL for the whole session, and for each test that asks a database of its own, cloned from a migrated one."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from runs_es.database.migrate import migrate
from runs_es.settings import Settings
from tests.acceptance.oracle import SEED, Ledger, Tally

SCHEMA = "runs_es"


def url_of(url: str, database: str) -> str:
    """The same server, another database."""
    return conninfo.make_conninfo(url, dbname=database)


@contextmanager
def new_database(url: str, template: str = "template0") -> Iterator[str]:
    """The conninfo of a new database, a clone of `template`; dropped at the end whoever is still connected."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    with psycopg.connect(url, autocommit=True) as connection:
        create = sql.SQL("create database {} template {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield url_of(url, name)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@contextmanager
def new_folder() -> Iterator[Path]:
    """A temporary folder with a short path that the server's account may enter when the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="runs-es-")).resolve()
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server: `RUNS_ES_TEST_DATABASE_URL`, else an embedded one of this session. The role may create databases."""
    given = os.environ.get("RUNS_ES_TEST_DATABASE_URL")
    if given:
        yield given
        return
    from runs_es.database.embedded import EmbeddedPostgres

    with new_folder() as folder, EmbeddedPostgres(folder / "data") as server:
        yield server.url


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database that tests clone; nobody stays connected to it."""
    with new_database(postgres_url) as url:
        migrate(url, SCHEMA)
        yield str(conninfo.conninfo_to_dict(url)["dbname"])


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database of this test's own without any table."""
    with new_database(postgres_url) as url:
        yield url


@pytest.fixture
def folder() -> Iterator[Path]:
    """Like tmp_path, but with a short path and open to the account that runs a server."""
    with new_folder() as made:
        yield made


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    with new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings that point at this test's database; change single ones with `model_copy(update=…)`."""
    return Settings(database_url=database_url, data_dir=tmp_path, db_schema=SCHEMA)


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A migrated database that the tests of one module share."""
    with new_database(postgres_url, template_database) as url:
        yield url


_LEDGER = Ledger()


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """What faults were made, and what was found; shown at the end."""
    return _LEDGER


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Clean what a test logged: a lone surrogate in it cannot go from a process of pytest-xdist to the first one."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands its tallies over."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tallies"] = [{**asdict(tally), "faults": dict(tally.faults)} for tally in _LEDGER.tallies]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of pytest-xdist's processes has finished."""
    for tally in getattr(node, "workeroutput", {}).get("tallies", ()):
        _LEDGER.tallies.append(Tally(**{**tally, "faults": Counter(tally["faults"])}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The long part shows each scenario and how to repeat it; any other run the sum alone."""
    if not _LEDGER.tallies:
        return
    terminalreporter.section("faults")
    if config.option.markexpr == "faults":
        for tally in _LEDGER.tallies:
            terminalreporter.write_line(str(tally))
        terminalreporter.write_line(f"repeat with: make faults SEED={SEED}")
    terminalreporter.write_line(f"in all: {_LEDGER.total}")
