"""Run the benchmarks, all or those named on the command line."""

from __future__ import annotations

import sys
from importlib import import_module

from runs_es.database.embedded import EmbeddedPostgres
from runs_es.database.migrate import migrate
from tests.benchmarks.figures import console, machine
from tests.conftest import SCHEMA, new_database, new_folder

# Modules with a function `measure(database_url)`.
NAMES = (
    "append",
    "streaming",
    "serving",
    "throughput",
    "scaling",
    "replay",
    "storage",
    "lists",
    "projections",
    "rebuild",
    "retention",
    "pressure",
    "cancel",
    "bounds",
)


def main() -> None:
    names = sys.argv[1:] or list(NAMES)
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    console.print(machine())
    with new_folder() as folder, EmbeddedPostgres(folder / "data") as server:
        for name in names:
            with new_database(server.url) as url:
                migrate(url, SCHEMA)
                import_module(f"tests.benchmarks.{name}").measure(url)


if __name__ == "__main__":
    main()
