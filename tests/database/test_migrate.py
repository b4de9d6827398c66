"""Migrations: order, checksums, one lock for all processes, and the tables that procrastinate and LangGraph own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from procrastinate.schema import SchemaManager
from psycopg import conninfo

from runs_es.database import DatabaseUnavailable, MigrationFailed, SchemaMismatch
from runs_es.database.migrate import migrate, pending, steps

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "store"
FIRST = "create table things (id bigint primary key);"
SECOND = "alter table things add column name text; insert into things values (1, '100%s');"

CHILD = """
import sys
from pathlib import Path
from runs_es.database.migrate import migrate
print("ready", flush=True)
sys.stdin.readline()
print(*migrate(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
"""


@pytest.fixture
def url(empty_database_url: str) -> str:
    return empty_database_url


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with two steps."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_things.sql").write_text(FIRST)
    (folder / "0002_names.sql").write_text(SECOND)
    return folder


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_steps_are_applied_once_in_order_and_recorded_in_their_schema(url: str, own: Path) -> None:
    before = pending(url, SCHEMA, own)
    applied = migrate(url, SCHEMA, own)
    assert applied[:3] == ["0001_things.sql", "0002_names.sql", "procrastinate/schema.sql"]
    assert applied[3].startswith("langgraph/")
    assert before == applied
    assert migrate(url, SCHEMA, own) == []
    assert pending(url, SCHEMA, own) == []
    assert rows(url, "select * from store.things") == [(1, "100%s")]
    recorded = rows(url, "select name, sha256 from store.schema_versions where package is null order by name")
    assert recorded == [(step.name, step.sha256) for step in steps(own)]


def test_foreign_tables_lie_in_schemas_of_their_own(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    places = rows(url, "select distinct schemaname, split_part(tablename, '_', 1) from pg_tables order by 1, 2")
    ours = {place for place in places if place[0] not in ("pg_catalog", "information_schema")}
    assert ours == {
        ("store", "things"),
        ("store", "schema"),
        ("store_queue", "procrastinate"),
        ("store_checkpoints", "checkpoint"),
        ("store_checkpoints", "checkpoints"),
    }


def test_two_stores_share_a_database(url: str, own: Path) -> None:
    assert migrate(url, "one", own) == migrate(url, "two", own)
    assert pending(url, "one", own) == []


def test_a_new_step_is_applied_alone(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    (own / "0003_more.sql").write_text("create table more ();")
    assert pending(url, SCHEMA, own) == ["0003_more.sql"]
    assert migrate(url, SCHEMA, own) == ["0003_more.sql"]


def test_a_failing_step_leaves_nothing_behind_and_the_ones_before_it_stay(url: str, own: Path) -> None:
    (own / "0002_names.sql").write_text("create table half (); select no_such_function();")
    with pytest.raises(MigrationFailed, match=r"0002_names\.sql.*no_such_function"):
        migrate(url, SCHEMA, own)
    assert rows(url, "select tablename from pg_tables where schemaname = 'store' order by 1") == [
        ("schema_versions",),
        ("things",),
    ]
    assert pending(url, SCHEMA, own)[0] == "0002_names.sql"
    (own / "0002_names.sql").write_text(SECOND)
    assert migrate(url, SCHEMA, own)[0] == "0002_names.sql"


def test_an_edited_step_is_refused_by_name(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    (own / "0001_things.sql").write_text(FIRST + " -- edited")
    for refusing in (migrate, pending):
        with pytest.raises(SchemaMismatch, match=r"0001_things\.sql was applied with another content"):
            refusing(url, SCHEMA, own)


def test_other_line_ends_are_no_edit(url: str, own: Path) -> None:
    (own / "0001_things.sql").write_bytes(b"create table things\n(id bigint);\n")
    migrate(url, SCHEMA, own)
    (own / "0001_things.sql").write_bytes(b"create table things\r\n(id bigint);\r\n")
    assert migrate(url, SCHEMA, own) == []


def test_a_database_of_newer_code_is_refused(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    (own / "0002_names.sql").unlink()
    for refusing in (migrate, pending):
        with pytest.raises(SchemaMismatch, match=r"newer than this code.*0002_names\.sql"):
            refusing(url, SCHEMA, own)


@pytest.mark.parametrize("name", ["2_short.sql", "0002_Upper.sql", "0001_twice.sql"])
def test_a_misnamed_step_is_refused(own: Path, name: str) -> None:
    (own / name).write_text("select 1;")
    with pytest.raises(SchemaMismatch, match="each number once"):
        steps(own)


def test_the_steps_of_this_checkout_are_found() -> None:
    assert [step.name for step in steps()] == sorted(file.name for file in (ROOT / "migrations").glob("*.sql"))


def test_two_processes_that_migrate_at_once_both_succeed(url: str, own: Path) -> None:
    command = [sys.executable, "-c", CHILD, url, SCHEMA, str(own)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        outputs = sorted(process.communicate(timeout=60)[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == "\n"
    assert outputs[1].startswith("0001_things.sql 0002_names.sql procrastinate/schema.sql langgraph/")


def test_a_transaction_left_open_elsewhere_does_not_hold_up_a_migrated_database(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    with psycopg.connect(url) as idle:
        idle.execute("select count(*) from store.things")
        assert migrate(url, SCHEMA, own) == []


@pytest.fixture
def role(url: str) -> Iterator[str]:
    """The conninfo of a role without rights, named like the database."""
    name = str(conninfo.conninfo_to_dict(url)["dbname"])
    run(url, f"create role {name}", f"grant {name} to current_user")
    yield conninfo.make_conninfo(url, options=f"-c role={name}")
    run(url, f"drop owned by {name}", f"drop role {name}")


def test_a_role_that_may_not_create_is_told_what_it_needs(url: str, own: Path, role: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"CREATE on the database.*store_queue"):
        migrate(role, SCHEMA, own)


def test_a_role_without_create_can_use_schemas_made_for_it(url: str, own: Path, role: str) -> None:
    name = conninfo.conninfo_to_dict(url)["dbname"]
    schemas = ("store", "store_queue", "store_checkpoints")
    run(url, *(f"create schema {schema} authorization {name}" for schema in schemas))
    assert len(migrate(role, SCHEMA, own)) == 4
    assert pending(role, SCHEMA, own) == []


def test_a_role_that_may_not_look_is_told_so(url: str, own: Path, role: str) -> None:
    migrate(url, SCHEMA, own)
    with pytest.raises(DatabaseUnavailable, match="permission denied"):
        pending(role, SCHEMA, own)


def test_tables_of_procrastinate_of_unknown_origin_are_refused(url: str, own: Path) -> None:
    run(url, "create schema store_queue", "create table store_queue.procrastinate_jobs ()")
    with pytest.raises(SchemaMismatch, match="store_queue holds tables of procrastinate"):
        migrate(url, SCHEMA, own)


def scripts_of_the_queue() -> list[Path]:
    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


def functions_of_the_queue(url: str) -> list[tuple[Any, ...]]:
    return rows(
        url,
        "select p.oid::regprocedure::text from pg_proc p where pronamespace = 'store_queue'::regnamespace order by 1",
    )


def test_an_older_queue_is_brought_forward_by_procrastinates_own_scripts(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    fresh = functions_of_the_queue(url)
    scripts = scripts_of_the_queue()
    known = next(n for n, script in enumerate(scripts) if script.name.startswith("03."))
    run(url, "drop schema store_queue cascade", "create schema store_queue")
    old = conninfo.make_conninfo(url, options="-c search_path=store_queue")
    for script in scripts[:known]:
        run(old, script.read_text())
    newer = [f"procrastinate/{script.name}" for script in scripts[known:]]
    with psycopg.connect(url) as connection:
        connection.execute("delete from store.schema_versions where name = any(%s)", (newer,))

    assert pending(url, SCHEMA, own) == newer
    assert migrate(url, SCHEMA, own) == newer
    assert functions_of_the_queue(url) == fresh


def test_a_queue_of_a_newer_procrastinate_is_refused(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    run(url, "insert into store.schema_versions (name, sha256) values ('procrastinate/99.00.00_01_later.sql', '')")
    with pytest.raises(SchemaMismatch, match=r"newer than the installed procrastinate .*99\.00\.00_01_later"):
        migrate(url, SCHEMA, own)


def test_an_index_that_an_interrupted_setup_left_invalid_is_built_again(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    state = "select indisvalid from pg_index where indexrelid = 'store_checkpoints.checkpoints_thread_id_idx'::regclass"
    run(
        url,
        "update pg_index set indisvalid = false"
        " where indexrelid = 'store_checkpoints.checkpoints_thread_id_idx'::regclass",
        "delete from store_checkpoints.checkpoint_migrations where v >= 6",
    )
    assert rows(url, state) == [(False,)]
    assert len(migrate(url, SCHEMA, own)) == 1
    assert rows(url, state) == [(True,)]


def test_an_unreachable_database_is_a_clear_error(own: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        migrate(f"postgresql://somebody@/nothing?host={tmp_path}", SCHEMA, own)


def test_a_lock_that_another_session_keeps_is_waited_for_with_a_bound(url: str, own: Path) -> None:
    migrate(url, SCHEMA, own)
    (own / "0003_alter.sql").write_text("set local lock_timeout = '50ms'; alter table things add column more text;")
    with psycopg.connect(url) as other:
        other.execute("select count(*) from store.things")
        with pytest.raises(MigrationFailed, match=r"0003_alter\.sql.*lock timeout"):
            migrate(url, SCHEMA, own)
    assert migrate(url, SCHEMA, own) == ["0003_alter.sql"]
