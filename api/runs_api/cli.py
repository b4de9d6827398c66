"""The command line: `serve | work | migrate | grants | restored | not-lost | rebuild | projections | webhooks | check |
history | diff | tail`, and `retain | erase`.

What can be expected to go wrong is answered with one sentence that says what to do, and exit code 1 (2 for a wrong
command line); a traceback here is a mistake of ours.
"""

from __future__ import annotations

import os
import sys

import psycopg
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.text import Text

from runs_api import (
    cli_check,
    cli_diff,
    cli_grants,
    cli_history,
    cli_projections,
    cli_rebuild,
    cli_restored,
    cli_retention,
    cli_serve,
    cli_tail,
    cli_webhooks,
)
from runs_api.terminal import Refused, err, out
from runs_es.database import (
    DatabaseUnavailable,
    MigrationFailed,
    SchemaMismatch,
    open_database,
)
from runs_es.database import migrate as migrations
from runs_es.domain import StoreUnavailable, UnknownTopic
from runs_es.execution.langgraph.graphs import GraphLoadError
from runs_es.settings import Settings
from runs_projections.loading import ProjectionLoadError

app = typer.Typer(
    name="runs-es",
    help="An event-sourced run store with LangGraph Platform's HTTP API. Settings come from RUNS_ES_* variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """The entry point: commands, and their expected failures in words."""
    try:
        app()
    except Refused as error:
        _fail(str(error), error.code)
    except ValidationError as error:
        problems = (
            f"RUNS_ES_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}" if each["loc"] else each["msg"]
            for each in error.errors()
        )
        _fail("; ".join(problems), 2)
    except (
        DatabaseUnavailable,
        MigrationFailed,
        SchemaMismatch,
        GraphLoadError,
        ProjectionLoadError,
        StoreUnavailable,
    ) as error:
        _fail(str(error))
    except UnknownTopic as error:
        _fail(f"{error}: a newer version wrote this log; run that one, or upgrade")
    except psycopg.errors.InsufficientPrivilege as error:
        _fail(f"{str(error).splitlines()[0].strip()}: run this as the role that owns the tables")
    except psycopg.Error as error:
        _fail(f"The database failed: {str(error).strip()}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("langgraph", "langchain_core"):
            raise
        _fail(f'LangGraph is missing ({error}). Install it with `pip install "runs-es[langgraph]"`')
    except SettingsError as error:
        _fail(f"{error}; it must be JSON, as in RUNS_ES_CORS_ORIGINS='[\"https://example.org\"]'", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing to say to it
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, code: int = 1) -> None:
    err.print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(code)


app.command()(cli_serve.serve)
app.command()(cli_serve.work)


# --- the database ---


@app.command()
def migrate() -> None:
    """Bring the database to what this version needs. Safe to run at any time, and twice at once."""
    settings = Settings()
    with open_database(settings) as database:
        applied = migrations.migrate(database.url, settings.db_schema)
        for name in applied:
            out.print(f"applied {name}")
        where = cli_serve.where(database, settings)
        out.print(f"{where}: {f'{len(applied)} applied' if applied else 'nothing to do'}")


app.command()(cli_rebuild.rebuild)
app.add_typer(cli_projections.app, name="projections")
app.add_typer(cli_webhooks.app, name="webhooks")
app.command()(cli_grants.grants)
app.command()(cli_restored.restored)
app.command(name="not-lost")(cli_restored.not_lost)
app.command()(cli_retention.retain)
app.command()(cli_retention.erase)


app.command()(cli_check.check)
app.command()(cli_history.history)
app.command()(cli_diff.diff)
app.command()(cli_tail.tail)


if __name__ == "__main__":
    main()
