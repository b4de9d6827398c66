"""The embedded PostgreSQL: started when needed, shared by every process that attaches, stopped by the last of them.

Whether a server lives is never read from a pid file. It answers when a connection succeeds; it is gone when the lock on
`running` is free, which the server and all its children inherit and the kernel drops with the last of them. A file
`postmaster.pid` is removed only under that lock, so a reused pid, a zombie or a torn file cannot hold up a start, and
children that outlive a killed server cannot be overlooked.

In the data folder (`home`, see `places.py`):
    starting     held alone while starting or stopping
    attached     held shared by every attached process
    running      held by the server's own processes
    postgres/    the cluster; `initializing/` is one that initdb has not finished
    runs_es.conf our settings of the server, written at every start
    socket       text: the folder of the unix socket
    server.log   what the server says
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
from psycopg import pq

from runs_es.database import places
from runs_es.database.binaries import MAJOR, Account, account_for, environment, programs_for
from runs_es.database.errors import DatabaseUnavailable
from runs_es.database.locks import FileLock, locked, try_lock
from runs_es.database.processes import postmaster_of, processes_of

DATABASE = "runs_es"
SUPERUSER = "postgres"
PORT = 5432  # only part of the socket's name; nothing listens on TCP

_POLL_SECONDS = 0.02
_INITDB_SECONDS = 120.0
_STOP_SECONDS = 30.0
_SILENCE_SECONDS = 5.0
_LOG_BYTES = 10 * 1024 * 1024
_TAIL_BYTES = 2000

# Beside the cluster, not in it: as root we never write where the server's account could plant a link.
_CONF = """\
# Written at every start. Settings of your own: ALTER SYSTEM, which wins over this file.
include 'postgres/postgresql.conf'
max_connections = {max_connections}
shared_buffers = 128MB
max_wal_size = 2GB
wal_compression = pglz
checkpoint_completion_target = 0.9
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_min_messages = warning
log_min_error_statement = fatal
log_checkpoints = off
dynamic_shared_memory_type = {dynamic_shared_memory_type}
"""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_SHARED_MEMORY_BYTES = 128 * 1024 * 1024  # containers have 64 MiB or less, which parallel queries exceed


_SEVERE = re.compile(r"(?:FATAL|PANIC|ERROR|initdb: error):.*")


class EmbeddedPostgres:
    """One process's hold on the server of one data folder. Not to be shared between threads while starting."""

    def __init__(self, data_dir: Path, max_connections: int = 200, *, start_timeout: float = 60.0) -> None:
        self._data_dir = data_dir
        self._max_connections = max_connections
        self._start_timeout = start_timeout
        self._home: Path | None = None
        self._socket: Path | None = None
        self._attached: FileLock | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def url(self) -> str:
        """libpq URI of the database, as superuser."""
        return self._url(DATABASE)

    @property
    def home(self) -> Path:
        """The folder that holds cluster, locks and log: the data folder, unless the account cannot enter it."""
        if self._home is None:
            raise DatabaseUnavailable("The embedded server was not started")
        return self._home

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def cluster(self) -> Path:
        return self.home / "postgres"

    def start(self) -> Self:
        """Attach to the server, starting it when it does not answer. Doing it twice is doing it once."""
        if self._attached is not None:
            return self
        if sys.platform == "win32":
            raise DatabaseUnavailable("The embedded server does not run on Windows: set RUNS_ES_DATABASE_URL")
        try:
            self._home = places.home(self._data_dir)
            with locked(self.home / "starting", self._start_timeout + _INITDB_SECONDS):
                self._attach()
            self._give_back()
        except (OSError, subprocess.SubprocessError) as error:
            raise DatabaseUnavailable(
                f"The embedded server cannot use {self._data_dir} ({error}): set RUNS_ES_DATA_DIR to a folder of yours"
            ) from error
        atexit.register(self.detach)
        return self

    def detach(self) -> None:
        """Let go of the server; the last process to do so stops it. Doing it twice is doing it once."""
        if self._attached is None:
            return
        atexit.unregister(self.detach)
        attached, self._attached = self._attached, None
        try:
            with locked(self.home / "starting", self._start_timeout + _INITDB_SECONDS):
                attached.release()
                last = try_lock(self.home / "attached")
                if last is not None:
                    # Nobody can attach meanwhile: that needs `starting`.
                    self._stop()
                    last.release()
        except FileNotFoundError:  # the folder was removed under us
            return
        finally:
            attached.release()

    def _give_back(self) -> None:
        """After `sudo` in somebody's folder: what root made there is theirs, or they could not start any more."""
        owner = self.home.stat()
        if os.geteuid() == 0 != owner.st_uid:
            for entry in self.home.iterdir():
                if entry.lstat().st_uid == 0:
                    os.chown(entry, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _attach(self) -> None:
        # `attached` is only ever taken under `starting`, and taken alone only there too: this cannot fail.
        attached = try_lock(self.home / "attached", shared=True)
        if attached is None:
            raise DatabaseUnavailable(f"Somebody else holds {self.home / 'attached'}")
        try:
            deadline = time.monotonic() + self._start_timeout
            self._socket = places.recorded_socket_folder(self.home)
            running = self._silence(deadline)
            if running is not None:
                try:
                    self._bring_up(running, deadline)
                finally:
                    running.release()
            self._ensure_database(deadline)
        except BaseException:
            attached.release()
            raise
        self._attached = attached

    def _silence(self, deadline: float) -> FileLock | None:
        """None once a server answers; the lock on `running` once surely none lives."""
        heard, force = time.monotonic(), [signal.SIGINT, signal.SIGQUIT]
        while (answer := self._ping()) != pq.Ping.OK:
            running = try_lock(self.home / "running")
            if running is not None:
                # A server that an administrator started by hand does not hold our lock, so look for it too.
                if postmaster_of(self.cluster) is None:
                    return running
                running.release()
            now = time.monotonic()
            if now > deadline:
                raise self._failure(f"it lives and does not accept connections for {self._start_timeout:.0f} s")
            if answer == pq.Ping.REJECT:  # it starts, recovers or stops: let it
                heard = now
            elif now - heard > _SILENCE_SECONDS and force:
                # It lives and its socket is gone, or children outlived it. A fast shutdown first, a hard one next.
                heard = now
                self._signal(force.pop(0))
            time.sleep(_POLL_SECONDS)
        return None

    def _bring_up(self, running: FileLock, deadline: float) -> None:
        account = account_for(self.cluster)
        programs = programs_for(account)
        if not self.cluster.exists():
            self._initialize(programs, account, running)
        self._check_version()
        account.own(self.cluster)
        self._socket = places.socket_folder(self.home, account)
        self._clear_leftovers()
        self._spawn(programs, account, running)
        running.release()  # the server has its own copy now
        while self._ping() != pq.Ping.OK:
            probe = try_lock(self.home / "running")
            if probe is not None:
                probe.release()
                raise self._failure("it ended at once")
            if time.monotonic() > deadline:
                raise self._failure(f"it did not accept connections within {self._start_timeout:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _initialize(self, programs: Path, account: Account, running: FileLock) -> None:
        """initdb beside the cluster's place, then rename: a cluster either exists whole or not at all."""
        unfinished = self.home / "initializing"
        # initdb holds `running` as well, so no initdb of a killed starter still writes into what is removed here.
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        account.own(unfinished)
        command: list[str | Path] = [
            programs / "bin" / "initdb",
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            # Whoever reaches the socket has passed the 0700 folder it lies in.
            *("--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--data-checksums", "--no-instructions"),
            "--set=unix_socket_permissions=0700",
            f"--set=dynamic_shared_memory_type={dynamic_shared_memory_type()}",
        ]
        done = subprocess.run(
            command,
            cwd="/",
            env=environment(programs),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_INITDB_SECONDS,
            pass_fds=(running.descriptor,),
            check=False,
            **account.spawn_options(),
        )
        if done.returncode != 0:
            said = done.stdout + done.stderr
            with open(self.log, "a", opener=_no_link) as log:
                log.write(said)
            raise DatabaseUnavailable(f"initdb failed in {self.home}: {_cause(said)} (all of it: {self.log})")
        unfinished.rename(self.cluster)

    def _check_version(self) -> None:
        try:
            found = (self.cluster / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise DatabaseUnavailable(f"{self.cluster} is no PostgreSQL cluster ({error})") from error
        if found != str(MAJOR):
            raise DatabaseUnavailable(
                f"{self.cluster} was made by PostgreSQL {found} and this is PostgreSQL {MAJOR}: dump it with the "
                "programs of its own version and restore it, or set RUNS_ES_DATA_DIR to a new folder"
            )

    def _clear_leftovers(self) -> None:
        # Only called with `running` held and no postmaster found: these files name processes that are gone or others'.
        assert self._socket is not None
        socket = self._socket / f".s.PGSQL.{PORT}"
        for leftover in (self.cluster / "postmaster.pid", socket, socket.with_name(socket.name + ".lock")):
            leftover.unlink(missing_ok=True)

    def _configure(self) -> Path:
        conf = self.home / "runs_es.conf"
        new = conf.with_name(conf.name + ".new")
        memory = dynamic_shared_memory_type()
        new.write_text(_CONF.format(max_connections=self._max_connections, dynamic_shared_memory_type=memory))
        new.chmod(0o644)
        return new.replace(conf)

    def _spawn(self, programs: Path, account: Account, running: FileLock) -> None:
        """Start the postmaster in a session of its own, as nobody's child: no Ctrl-C, no end of ours reaches it."""
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_name("server.log.1"))
        assert self._socket is not None
        server = [programs / "bin" / "postgres", "-D", self.cluster, "-h", "", "-k", self._socket, "-p", str(PORT)]
        server += ["-c", f"config_file={self._configure()}", "-c", f"cluster_name={places.name_of(self.home)}"]
        with open(self.log, "ab", opener=_no_link) as log:
            # The shell leaves the server behind and ends at once, so nobody has to wait for it later.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *map(str, server)],
                cwd="/",
                env=environment(programs),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(running.descriptor,),
                timeout=_STOP_SECONDS,
                check=True,
                **account.spawn_options(),
            )

    def _stop(self) -> None:
        """Fast shutdown; a server that needs longer than the bound ends by itself, and the next start waits for it."""
        self._signal(signal.SIGINT)
        deadline = time.monotonic() + _STOP_SECONDS
        while (running := try_lock(self.home / "running")) is None:
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_SECONDS)
        running.release()
        if self._socket is not None and self._socket.parent != self.home:
            with suppress(OSError):  # leave nothing in the temporary folder; the next start makes it anew
                self._socket.rmdir()

    def _signal(self, number: signal.Signals) -> None:
        postmaster = postmaster_of(self.cluster)
        # Orphaned children only obey SIGQUIT; a living server passes its own signals on.
        targets = [postmaster] if postmaster is not None else processes_of(self.cluster)
        for pid in targets:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _ping(self) -> pq.Ping:
        if self._socket is None:
            return pq.Ping.NO_RESPONSE
        # Bounded: a stopped server accepts a connection and never says a word.
        return pq.Ping(pq.PGconn.ping(f"{self._url('postgres')}&connect_timeout=3".encode()))

    def _ensure_database(self, deadline: float) -> None:
        """Make our database, which also proves that a connection succeeds."""
        while True:
            try:
                with psycopg.connect(f"{self._url('postgres')}&connect_timeout=5", autocommit=True) as connection:
                    known = connection.execute("select 1 from pg_database where datname = %s", (DATABASE,))
                    if known.fetchone() is None:
                        connection.execute(f"create database {DATABASE}")
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise self._failure(str(error)) from error
                time.sleep(_POLL_SECONDS)

    def _url(self, database: str) -> str:
        if self._socket is None:
            raise DatabaseUnavailable("The embedded server was not started")
        # The port is spelled out: PGPORT in the environment would otherwise name another socket.
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(os.fsencode(self._socket), safe='')}&port={PORT}"

    def _failure(self, reason: str) -> DatabaseUnavailable:
        try:
            tail = self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            tail = ""
        return DatabaseUnavailable(f"The embedded server in {self.home} failed: {reason}. End of {self.log}:\n{tail}")


def _cause(said: str) -> str:
    """The first line that PostgreSQL calls an error, from there on; its last line when there is none."""
    found = _SEVERE.search(said)
    return found.group() if found is not None else said.strip().rpartition("\n")[2]


def dynamic_shared_memory_type() -> str:
    """Where parallel queries share memory: in files of the cluster when `/dev/shm` is missing or small."""
    if not sys.platform.startswith("linux"):
        return "posix"
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return "mmap"
    return "posix" if found.f_bavail * found.f_frsize >= _SHARED_MEMORY_BYTES else "mmap"


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
