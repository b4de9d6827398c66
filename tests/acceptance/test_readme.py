"""The first commands of the README work as they are printed, in a folder where `make serve` was called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.acceptance.server import Server

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "README.md").read_text().split("\n## Try it\n")[1].split("\n## ")[0]


def shell(command: str, folder: Path) -> str:
    """What the command prints, called without any setting."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNS_ES_")}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_first_commands_of_the_readme_work_as_printed(folder: Path) -> None:
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    server = Server("", env={"RUNS_ES_DATA_DIR": str(folder / ".data")})
    with server:

        def here(text: str) -> str:
            return text.replace("http://127.0.0.1:2024", server.url)

        start, rejoin = (here(each) for each in re.findall(r"^curl (?:.*\\\n)?.*$", SECTION, re.MULTILINE))
        first = shell(f"{start} --silent", folder)
        run_id = re.findall(r'"run_id": ?"([^"]+)"', first)[0]
        rest = shell(f"{rejoin.replace('RUN_ID', run_id)} --silent", folder)
        assert rest.strip()
        assert first.rstrip().endswith(rest.rstrip()), "a rejoined stream is the rest of the first"

        (script,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
        (folder / "sdk.py").write_text(here(script))
        assert "values" in shell(".venv/bin/python sdk.py", folder)

        other = re.findall(r'"run_id": ?"([^"]+)"', shell(f"{start} --silent", folder))[0]
        commands = re.findall(r"`(\.venv/bin/runs-es [^`]*(?:RUN_ID|check)[^`]*)`", SECTION)
        assert [each.split()[1] for each in commands] == ["history", "tail", "history", "diff", "diff", "check"]
        for command in commands:
            shell(command.replace("RUN_ID", run_id).replace("OTHER_ID", other), folder)
    assert sorted(each.name for each in folder.iterdir()) == [".data", ".venv", "sdk.py"]
