"""The place in a user's own code that an error comes from: what to look at first, without a whole traceback."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType

_PASSED_OVER = frozenset({"runs_es", "runs_projections", "runs_api", "importlib"})


def last_own_frame(error: BaseException, folder: Path | None = None) -> str | None:
    """The last frame outside of installed packages: `File "agent.py", line 3, in make`.

    A file below `folder` is shown relative to it. For code that does not parse it is the line that Python names.
    Without such a frame (an installed package failed) it is the last one of that package. None for
    an error that was never raised.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f'File "{_shown(error.filename, folder)}", line {error.lineno}'
    frames = list(_frames(error.__traceback__))
    own = [frame for frame in frames if not _is_installed(frame.filename)] or frames
    if not own:
        return None
    return f'File "{_shown(own[-1].filename, folder)}", line {own[-1].lineno}, in {own[-1].name}'


def _frames(trace: TracebackType | None) -> Iterator[traceback.FrameSummary]:
    for frame, line in traceback.walk_tb(trace):
        module = str(frame.f_globals.get("__name__"))
        code = frame.f_code
        if module.partition(".")[0] not in _PASSED_OVER and not code.co_filename.startswith("<"):
            yield traceback.FrameSummary(code.co_filename, line, code.co_name, lookup_line=False)


@cache
def _libraries() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _is_installed(file: str) -> bool:
    path = Path(file).resolve()
    return any(path.is_relative_to(folder) for folder in _libraries())


def _shown(file: str, folder: Path | None) -> str:
    path = Path(file)
    return str(path.relative_to(folder)) if folder is not None and path.is_relative_to(folder) else file
