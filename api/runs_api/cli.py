"""The command line: `serve | work | migrate | rebuild | projections | webhooks | check | history | diff | tail`, and
`retain | erase`.

What can be expected to go wrong is answered with one sentence that says what to do, and exit code 1 (2 for a wrong
command line); a traceback here is a mistake of ours. Nothing is imported here that a list of commands can do without.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated, ClassVar

import typer
from rich.text import Text

from runs_api.lazy_commands import LazyCommands, stand_in
from runs_api.terminal import Refused, err, out

# Each with its place, and the first sentence of its help.
COMMANDS = {
    "serve": (
        "runs_api.cli_serve:serve",
        "Run the HTTP server: migrates the database, serves the API, and executes runs unless told not to.",
    ),
    "work": (
        "runs_api.cli_serve:work",
        "Execute runs in this process, without an HTTP server, until SIGTERM or Ctrl+C.",
    ),
    "migrate": ("runs_api.cli_migrate:migrate", "Bring the database to what this version needs."),
    "rebuild": (
        "runs_api.cli_rebuild:rebuild",
        "Make read models again from the log, while the service runs; or verify that they are what the log says.",
    ),
    "projections": (
        "runs_api.cli_projections:app",
        "How read models stand, and what to do about one that stopped.",
    ),
    "webhooks": ("runs_api.cli_webhooks:app", "How webhooks stand, and trying again."),
    "retain": (
        "runs_api.cli_retention:retain",
        "Drop streamed frames that are no longer to be kept (RUNS_ES_KEEP_STREAMS_*); what happened stays on record.",
    ),
    "erase": ("runs_api.cli_retention:erase", "Delete a thread for good: runs, messages, frames."),
    "check": (
        "runs_api.cli_check:check",
        "Check settings, database, schema, every thread of the log, and read models; exit 0 only where all is well.",
    ),
    "history": (
        "runs_api.cli_history:history",
        "Show what happened to a run: every fact, when, who did it, and why; also of a deleted run.",
    ),
    "diff": (
        "runs_api.cli_diff:diff",
        "Show what changed in a run between two seqs, or what two runs differ in: fields, messages and state.",
    ),
    "tail": ("runs_api.cli_tail:tail", "Follow a run's stream until its end."),
}


class _Commands(LazyCommands):
    places: ClassVar = {name: place for name, (place, _) in COMMANDS.items()}


app = typer.Typer(
    name="runs-es",
    help="An event-sourced run store with LangGraph Platform's HTTP API. Settings come from RUNS_ES_* variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=_Commands,
)
for _name, (_, _line) in COMMANDS.items():
    stand_in(app, _name, _line)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"runs-es {importlib.metadata.version('runs-es')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point: commands, and their expected failures in words."""
    try:
        app()
    except Refused as error:
        _fail(str(error), error.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing to say to it
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from runs_api import cli_failures

        told = cli_failures.in_words(error)
        if told is None:
            raise
        _fail(*told)


def _fail(message: str, code: int = 1) -> None:
    err.print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(code)


if __name__ == "__main__":
    main()
