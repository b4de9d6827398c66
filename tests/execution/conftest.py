"""A user's project in a folder of its own."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Project = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Writes a user's project and gives the path of its langgraph.json; what importing it changed is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)

    def write(config: Any, files: dict[str, str] | None = None) -> Path:
        for name, text in (files or {}).items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        path = tmp_path / "langgraph.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return path

    yield write
    for name in set(sys.modules) - modules:
        del sys.modules[name]
