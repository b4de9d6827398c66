"""Run the benchmarks, all or those named on the command line."""

from __future__ import annotations

import sys

from runs_es.database.embedded import EmbeddedPostgres
from runs_es.database.migrate import migrate
from tests.benchmarks import append, replay, serving, storage
from tests.benchmarks.figures import console, machine
from tests.conftest import SCHEMA, new_database, new_folder

BENCHMARKS = {
    "append": append.measure,
    "replay": replay.measure,
    "serving": serving.measure,
    "storage": storage.measure,
}


def main() -> None:
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    console.print(machine())
    with new_folder() as folder, EmbeddedPostgres(folder / "data") as server:
        for name in names:
            with new_database(server.url) as url:
                migrate(url, SCHEMA)
                BENCHMARKS[name](url)


if __name__ == "__main__":
    main()
