"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from runs_es.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def settings_rows() -> list[str]:
    """The README's table of settings, as it must be."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "a folder of the user" if field.default is PydanticUndefined else field.default
        shown = "" if default is None else f"`{default}`" if default != "a folder of the user" else default
        rows.append(f"| `RUNS_ES_{name.upper()}` | {shown} | {field.description} |")
    return rows


def test_the_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    text = (ROOT / "README.md").read_text()
    assert re.findall(r"^\| `RUNS_ES_.*$", text, re.MULTILINE) == settings_rows()


def test_the_design_gives_a_reason_for_every_dependency() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0]
    packages = re.findall(r'^  "([a-z-]+)', project, re.MULTILINE)
    design = (ROOT / "DESIGN.md").read_text()
    reasons = design.partition("## 9. Dependencies")[2]
    assert [name for name in packages if f"`{name}" not in reasons] == []


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert [name for name in phony.split() if not re.search(rf"^{name}:.*## \w", makefile, re.MULTILINE)] == []
