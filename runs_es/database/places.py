"""Where the cluster and its socket lie.

A unix socket path may have 107 bytes, and libpq and the server both split lists of folders at commas; a folder that
does not fit is replaced by a private one below the temporary folder. For root, a data folder that the server's account
cannot enter (below a private home) only points to the cluster, which then lies in /var/lib/runs-es.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from runs_es.database import binaries
from runs_es.database.binaries import Account, account_for
from runs_es.database.errors import DatabaseUnavailable

_SOCKET_FOLDER_BYTES = 90  # of 107: the socket's own name and its lock's take the rest
_POINTER = "relocated"
_RECORD = "socket"
_INSIDE = "s"

log = logging.getLogger(__name__)


def home(data_dir: Path) -> Path:
    """The folder that holds everything of the server, made when missing."""
    data_dir = _made(data_dir)
    pointer = data_dir / _POINTER
    if pointer.exists():
        return _relocated(pointer)
    account = account_for(data_dir / "postgres")
    if account.can_enter(data_dir):
        return data_dir
    if (data_dir / "postgres").exists():
        raise DatabaseUnavailable(
            f"The account {account.name}, which runs the server, can no longer enter {data_dir}: "
            "allow it to (chmod o+x on the folders above), or move the folder and set RUNS_ES_DATA_DIR"
        )
    return _relocate(data_dir, account)


def has_cluster(data_dir: Path) -> bool:
    """Whether a database was made for this folder. Makes nothing; raises DatabaseUnavailable when it has gone since."""
    data_dir = data_dir.expanduser().absolute()
    pointer = data_dir / _POINTER
    try:
        return ((_relocated(pointer) if pointer.exists() else data_dir) / "postgres").exists()
    except PermissionError as error:
        raise DatabaseUnavailable(f"{data_dir} is somebody else's ({error.strerror}): set RUNS_ES_DATA_DIR") from error


def _made(data_dir: Path) -> Path:
    data_dir = data_dir.expanduser().absolute()
    if not data_dir.exists():
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            data_dir.mkdir(mode=0o700)
            if os.geteuid() == 0:
                data_dir.chmod(0o711)  # the account passes through to the cluster and sees nothing else
        except FileExistsError:  # another process was quicker
            pass
    if not data_dir.is_dir():
        raise NotADirectoryError(f"{data_dir} is no folder")
    return data_dir.resolve()


def _relocate(data_dir: Path, account: Account) -> Path:
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    place = binaries.SHARED / digest
    try:
        binaries.shared_folder()
        place.mkdir(mode=0o711, exist_ok=True)
        place.chmod(0o711)
        new = data_dir / f"{_POINTER}.{os.getpid()}"
        new.write_bytes(os.fsencode(place))
        new.replace(data_dir / _POINTER)
    except OSError as error:
        raise DatabaseUnavailable(
            f"The account {account.name}, which runs the server, cannot enter {data_dir}, and {place} cannot be used "
            f"instead ({error}): set RUNS_ES_DATA_DIR to a folder outside private ones"
        ) from error
    log.warning("The account %s cannot enter %s: the database lies in %s", account.name, data_dir, place)
    return place


def _relocated(pointer: Path) -> Path:
    place = Path(os.fsdecode(pointer.read_bytes()))
    if not place.is_dir():
        # A new empty database here would hide that the old one is gone.
        raise DatabaseUnavailable(
            f"{pointer} says that the database lies in {place}, which is gone: restore it, or "
            f"remove {pointer} to begin anew"
        )
    return place


def recorded_socket_folder(home: Path) -> Path | None:
    """The folder that the last start chose: another process may have another TMPDIR."""
    try:
        place = home / os.fsdecode((home / _RECORD).read_bytes())
    except FileNotFoundError:
        return None
    # A copy of a data folder brings the record of the original, whose server is not to be taken for the copy's.
    return place if place in (home / _INSIDE, place.with_name(name_of(home))) else None


def socket_folder(home: Path, account: Account) -> Path:
    """Choose, make and record the folder of the socket; private to `account`."""
    name = name_of(home)
    for place in (home / _INSIDE, Path(tempfile.gettempdir()).resolve() / name, Path("/tmp") / name):  # noqa: S108
        if _fits(place) and account.can_enter(place.parent):
            _make_private(place, account)
            new = home / f"{_RECORD}.new"
            new.write_bytes(os.fsencode(_INSIDE if place.parent == home else place))
            new.replace(home / _RECORD)
            return place
    raise DatabaseUnavailable(f"No folder for the server's socket: {home} and the temporary folder are both unsuitable")


def name_of(home: Path) -> str:
    """A name for the server of this folder that no other has: of its socket folder, and in its processes' titles."""
    return f"runs-es-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"


def _fits(folder: Path) -> bool:
    path = os.fsencode(folder)
    return len(path) <= _SOCKET_FOLDER_BYTES and b"," not in path and b'"' not in path


def _make_private(folder: Path, account: Account) -> None:
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if account.is_another and stat.S_ISDIR(found.st_mode) and found.st_uid == 0:  # new, or copied as root
        account.own(folder)
        found = folder.lstat()
    # The temporary folder is everybody's, so what lies there under our name need not be ours. Nothing is repaired: as
    # root, a chmod here could be led to another file between the look and the deed.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or found.st_mode & 0o077:
        raise DatabaseUnavailable(
            f"{folder} should be the private folder of the server's socket, and is not: remove it"
        )
