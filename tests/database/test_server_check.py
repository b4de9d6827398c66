"""Which servers a store is refused on, each with one clear line."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import conninfo, sql

from runs_es.database import DatabaseUnavailable, open_database
from runs_es.database.server_check import Facts, check_server, facts_of, refusal
from runs_es.settings import Settings

VERSION = "PostgreSQL 17.2 on x86_64-pc-linux-gnu, compiled by gcc"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (Facts("CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu)", 13, "UTF8"), "is CockroachDB, not PostgreSQL"),
        (Facts("Materialize v0.100", 9, "UTF8"), "is Materialize, not PostgreSQL"),
        (Facts("PostgreSQL 11.2-YB-2.20 on x86_64", 11, "UTF8"), "is PostgreSQL 11; 14 or newer"),
        (Facts("PostgreSQL 15.2-YB-2.25 on x86_64", 15, "UTF8", locks_exclude=False), "the same advisory lock"),
        (Facts(VERSION, 17, "UTF8", locks_exclude=False, keeps_sessions=False), "pool_mode = session"),
        (Facts(VERSION, 17, "SQL_ASCII"), "is encoded SQL_ASCII, and must be UTF8"),
        (Facts(VERSION, 17, "LATIN1"), "createdb --encoding=UTF8"),
    ],
)
def test_a_server_that_cannot_hold_a_store_is_refused_in_words(facts: Facts, told: str) -> None:
    assert told in (refusal(facts) or "")


def test_a_real_server_is_found_to_be_one(database_url: str) -> None:
    facts = facts_of(database_url)
    assert (facts.encoding, facts.locks_exclude, facts.keeps_sessions) == ("UTF8", True, True)
    assert refusal(facts) is None


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused_before_anything_is_made(postgres_url: str, encoding: str) -> None:
    name = f"test_{encoding.lower()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        made = sql.SQL("create database {} encoding {} lc_collate 'C' lc_ctype 'C' {} template template0")
        provider = sql.SQL("locale_provider libc" if connection.info.server_version >= 150000 else "")
        connection.execute(made.format(sql.Identifier(name), sql.Literal(encoding), provider))
        try:
            url = conninfo.make_conninfo(postgres_url, dbname=name)
            with pytest.raises(DatabaseUnavailable, match=f"encoded {encoding}, and must be UTF8"):
                open_database(Settings(database_url=url))
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_what_the_check_locks_it_lets_go(database_url: str) -> None:
    check_server(database_url, 0)
    with psycopg.connect(database_url) as connection:
        held = connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone()
    assert held == (0,)
