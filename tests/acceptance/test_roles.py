"""Least privilege as the README has it: one role owns the tables and migrates, another serves and works."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import conninfo, sql

from runs_api import cli
from runs_es.database import grants
from runs_es.database.errors import SchemaMismatch
from runs_es.log.event_log import EventLog
from runs_es.log.retention import RetentionTimer
from runs_es.settings import Settings
from runs_projections.wiring import open_store
from tests.acceptance.server import Server, read_stream
from tests.conftest import url_of
from tests.streams.test_streams import Recording
from tests.webhooks.receiver import LOOPBACK, Receiver

HELLO = {"messages": [{"role": "user", "content": "hello"}], "tokens": 5, "delay": 0}
ENV = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1.5",
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_CRON_MIN_SECONDS": "1",
    "RUNS_ES_EXTERNAL_ASSISTANTS": "parrot",
    "RUNS_ES_WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
}
# A segment with anything in it is to be followed by a new one.
RETAINED = {"RUNS_ES_KEEP_STREAMS_DAYS": "1", "RUNS_ES_SEGMENT_BYTES": "1"}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Roles:
    """A database that `owner` owns, and a role `app` that owns nothing. Neither is a superuser."""

    def __init__(self, url: str, name: str) -> None:
        self.owner, self.app = f"{name}_owner", f"{name}_app"
        self.owner_url = conninfo.make_conninfo(url_of(url, name), user=self.owner)
        self.app_url = conninfo.make_conninfo(url_of(url, name), user=self.app)

    def cli(self, url: str, *arguments: str) -> Result:
        """The command, as the shell would call it, in this process."""
        out, err = StringIO(), StringIO()
        code: Any = 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in {**ENV, **RETAINED, "RUNS_ES_DATABASE_URL": url}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["runs-es", *arguments])
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code or 0
        return Result(code, out.getvalue(), err.getvalue())

    def must(self, url: str, *arguments: str) -> str:
        done = self.cli(url, *arguments)
        assert done.code == 0, done.err
        return done.out


@contextmanager
def two_roles(url: str) -> Iterator[Roles]:
    roles = Roles(url, f"test_{uuid.uuid4().hex[:12]}")
    name = roles.owner.removesuffix("_owner")
    with psycopg.connect(url, autocommit=True) as connection:
        for role in (roles.owner, roles.app):
            connection.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        create = sql.SQL("create database {} owner {} template template0")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(roles.owner)))
        try:
            yield roles
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
            for role in (roles.owner, roles.app):
                connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


@pytest.fixture
def roles(postgres_url: str) -> Iterator[Roles]:
    with two_roles(postgres_url) as made:
        yield made


def eventually(condition: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.05)
    return answer


@pytest.fixture
def set_up(roles: Roles) -> Roles:
    roles.must(roles.owner_url, "migrate")
    roles.must(roles.owner_url, "grants", roles.app, "--apply")
    return roles


def test_a_role_that_owns_nothing_serves_and_works(set_up: Roles) -> None:
    with Receiver() as receiver, Server(set_up.app_url, env=ENV) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            thread_id = client.post("/threads", json={}).json()["thread_id"]
            body = {"assistant_id": "agent", "input": HELLO, "stream_mode": ["values", "messages"]}
            stream = read_stream(client, "POST", f"/threads/{thread_id}/runs/stream", json=body)
            assert stream.events[-1][1].startswith(b"event: end")
            hooked = client.post(f"/threads/{thread_id}/runs/wait", json={**body, "webhook": receiver.url()})
            assert hooked.status_code == 200, hooked.text
            assert eventually(lambda: receiver.requests)[0].json["thread_id"] == thread_id
            assert len(client.get(f"/threads/{thread_id}/runs").json()) == 2
            assert client.get(f"/threads/{thread_id}/messages").json()
            assert client.get(f"/threads/{thread_id}/state").json()["values"]["messages"]
            assert client.post("/threads/search", json={}).json()
            rolled_back(client, thread_id)
            external(client, thread_id)
            crons(client)
            assert client.get("/ok?check_db=true").status_code == 200
            assert client.delete(f"/threads/{thread_id}").status_code < 300
        assert "permission denied" not in server.output, server.output


def test_what_is_the_owners_is_refused_in_clear_words_and_left_whole(
    set_up: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(database_url=set_up.app_url, keep_streams_days=1, segment_bytes=1, external_assistants="parrot")
    with EventLog(set_up.app_url) as log:
        recording = Recording(log)
        recording.publish(3)
        recording.finish()
        timer = RetentionTimer(log, settings, interval=0.01)
        timer.start()
        eventually(lambda: "let the owner of the tables run `runs-es retain`" in caplog.text)
        timer.close()
    assert caplog.text.count("let the owner") == 1  # once, not each round
    assert "Traceback" not in caplog.text
    for refused in (["rebuild"], ["retain"], ["erase", recording.thread_id, "--reason", "asked", "--yes"], ["migrate"]):
        done = set_up.cli(set_up.app_url, *refused)
        assert done.code == 1, (refused, done)
        assert "own" in done.err, done.err
    with psycopg.connect(set_up.owner_url) as connection:
        erased = connection.execute("select count(*) from runs_es.events where topic = 'thread.erased'").fetchone()
        assert erased == (0,)  # not even begun
    for allowed in (["retain"], ["rebuild"], ["erase", recording.thread_id, "--reason", "asked", "--yes"]):
        set_up.must(set_up.owner_url, *allowed)
    set_up.must(set_up.owner_url, "grants", set_up.app, "--apply")  # again, after what the owner has made
    assert "all is well" in set_up.must(set_up.app_url, "check")


def test_a_role_that_may_change_no_table_starts_once_the_schema_is_current(roles: Roles) -> None:
    early = roles.cli(roles.app_url, "serve", "--port", "0")
    assert early.code == 1
    assert "this role may not change it" in early.err
    assert "run `runs-es migrate` as the owner" in early.err
    roles.must(roles.owner_url, "migrate")
    without = roles.cli(roles.app_url, "serve", "--port", "0")
    assert "runs-es grants ROLE --apply" in without.err
    roles.must(roles.owner_url, "grants", roles.app, "--apply")
    with open_store(Settings(database_url=roles.app_url), executor=None, work=False) as store:
        assert store.migrated == []


def rolled_back(client: httpx.Client, thread_id: str) -> None:
    slow = {"assistant_id": "agent", "input": {**HELLO, "tokens": 1000, "delay": 0.05}}
    run_id = client.post(f"/threads/{thread_id}/runs", json=slow).json()["run_id"]
    eventually(lambda: client.get(f"/threads/{thread_id}/runs/{run_id}").json()["status"] == "running")
    client.post(f"/threads/{thread_id}/runs/{run_id}/cancel?action=rollback&wait=true").raise_for_status()
    assert client.get(f"/threads/{thread_id}/runs/{run_id}").status_code == 404


def external(client: httpx.Client, thread_id: str) -> None:
    run = client.post(f"/threads/{thread_id}/runs", json={"assistant_id": "parrot", "input": {}}).json()
    ask = {"worker_id": "w", "wait_seconds": 20, "lease_seconds": 60}
    claim = client.post("/workers/claim", json=ask).json()
    known = {name: claim[name] for name in ("claim_id", "fence", "frames")}
    end = {**known, "outcome": "success", "values": {"n": 1}}
    assert client.post(f"/workers/runs/{run['run_id']}/finish", json=end).json()["status"] == "success"


def crons(client: httpx.Client) -> None:
    body = {"assistant_id": "agent", "schedule": "* * * * * *", "input": HELLO, "on_run_completed": "keep"}
    cron = client.post("/runs/crons", json=body).json()
    assert "cron_id" in cron, cron
    made = {"metadata": {"cron_id": cron["cron_id"]}}
    eventually(lambda: client.post("/threads/search", json=made).json() or client.get("/runs").json())
    client.delete(f"/runs/crons/{cron['cron_id']}").raise_for_status()


def test_a_role_that_only_reads_has_no_right_to_write(roles: Roles) -> None:
    roles.must(roles.owner_url, "migrate")
    printed = roles.must(roles.owner_url, "grants", roles.app, "--read-only")
    statements = [line for line in printed.splitlines() if line]
    assert f'grant select on table "runs_es"."heads" to "{roles.app}";' in statements
    assert all(line.startswith(("grant usage on schema", "grant select on ")) for line in statements)
    with psycopg.connect(roles.owner_url) as connection:
        connection.execute(printed.encode())  # what is printed is what is to be run
    assert "all is well" in roles.must(roles.app_url, "check")
    with psycopg.connect(roles.app_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("update runs_es.heads set head = head")


def test_every_table_and_sequence_has_a_declared_right_and_another_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        wanted = grants.grants(connection, "runs_es")
        named = {each.name[-1] for each in wanted if each.kind != "schema"}
        declared = {*grants.LOG, *grants.READ_MODELS, *grants.QUEUE, *grants.CHECKPOINTS}
        assert named == declared  # none is missing, and none is declared in vain
        log = {each.name[-1]: each.rights for each in wanted if each.name[0] == "runs_es" and each.kind == "table"}
        assert log["events"] == log["events_facts"] == ("select", "insert")
        connection.execute("create table runs_es.new_table (n int)")
        with pytest.raises(SchemaMismatch, match=r"no rights are declared for runs_es\.new_table"):
            grants.grants(connection, "runs_es")


def test_the_owner_is_not_robbed_of_rights_and_a_role_must_exist(roles: Roles) -> None:
    roles.must(roles.owner_url, "migrate")
    own = roles.cli(roles.owner_url, "grants", roles.owner, "--apply")
    assert "owns the tables" in own.err
    nobody = roles.cli(roles.owner_url, "grants", "nobody_of_that_name", "--apply")
    assert "there is no role nobody_of_that_name" in nobody.err
    by_app = roles.cli(roles.app_url, "grants", roles.app, "--apply")
    assert by_app.code == 1
    assert "Traceback" not in by_app.err
