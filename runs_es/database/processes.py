"""Finding the server's processes by what they are, since a number in a file may by now be anybody's.

A zombie has neither a working folder nor a command line left, so it is never found here.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from runs_es.database.places import name_of

_PROC = Path("/proc")
_LOOK_SECONDS = 10.0


def postmaster_of(cluster: Path) -> int | None:
    """The pid in `postmaster.pid`, provided that a living server of this very cluster has it."""
    try:
        pid = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):  # none, or a torn one
        return None
    return pid if pid > 1 and _serves(pid, cluster) else None


def processes_of(cluster: Path) -> list[int]:
    """Every server process that works in the cluster, where the system lets us look."""
    if not _PROC.joinpath("self", "cwd").exists():
        return []
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit() and _serves(int(entry.name), cluster)]


def _serves(pid: int, cluster: Path) -> bool:
    process = _PROC / str(pid)
    if not _PROC.joinpath("self", "cwd").exists():
        return _serves_by_ps(pid)
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        # A child calls itself "postgres: <cluster_name>: …", the first one goes by the path it was started with.
        if not words[0].startswith(b"postgres") and not words[0].endswith(b"/postgres"):
            return False
        try:
            return (process / "cwd").samefile(cluster)
        except PermissionError:  # root without CAP_SYS_PTRACE, as in most containers
            title = f"postgres: {name_of(cluster.parent)}:".encode()
            return os.fsencode(cluster) in words or words[0].startswith(title)
    except OSError:
        return False


def _serves_by_ps(pid: int) -> bool:
    """Without /proc: any server counts as ours, because removing the pid file of a living one is what must not be."""
    command = ["/bin/ps", "-p", str(pid), "-o", "state=,comm="]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LOOK_SECONDS, check=False)
    state, _, name = done.stdout.strip().partition(" ")
    return not state.startswith("Z") and os.path.basename(name.strip()).startswith("postgres")
