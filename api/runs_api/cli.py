"""The command line: `serve | work | migrate | rebuild | projections | webhooks | check | history | diff | tail`, and
`retain | erase`.

What can be expected to go wrong is answered with one sentence that says what to do, and exit code 1 (2 for a wrong
command line); a traceback here is a mistake of ours.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.text import Text

from runs_api import (
    cli_check,
    cli_diff,
    cli_history,
    cli_projections,
    cli_rebuild,
    cli_retention,
    cli_tail,
    cli_webhooks,
)
from runs_api.meta import version_of
from runs_api.terminal import Refused, err, out
from runs_es.database import (
    Database,
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

if TYPE_CHECKING:
    from runs_projections.wiring import Store

app = typer.Typer(
    name="runs-es",
    help="An event-sourced run store with LangGraph Platform's HTTP API. Settings come from RUNS_ES_* variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Config = Annotated[
    Path | None,
    typer.Option("--config", help="A langgraph.json that names your graphs; without it, the demo agent."),
]
Level = Annotated[LogLevel, typer.Option("--log-level", help="What to log, to standard error.")]


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


# --- serve and work ---


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 2024,
    config: Config = None,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Execute runs in this process too, or leave it to `work`.")
    ] = True,
    log_level: Level = LogLevel.WARNING,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request.")] = False,
) -> None:
    """Run the HTTP server: migrates the database, serves the API, and executes runs unless told not to."""
    from runs_api.app import create_app
    from runs_api.cron_runs import cron_runs
    from runs_api.server import run_server
    from runs_projections.wiring import open_store

    settings = Settings()
    _log_to_stderr(LogLevel.INFO if access_log and log_level is LogLevel.WARNING else log_level)
    with (
        _ended_by_sigterm(),  # until the server is up and takes it itself
        _listener(host, port) as listener,
        open_store(settings, config=config, work=worker) as store,
    ):
        url = _url(host, listener.getsockname()[1])
        service = create_app(store, settings)
        store.fire_crons(cron_runs(store.registry))
        _settle_memory()
        healthy = run_server(
            service,
            listener,
            on_start=lambda: _greet(url, store, settings),
            on_stop=lambda: _stop(store),
            is_healthy=lambda: store.worker is None or store.worker.is_alive,
            log_level="info" if access_log else log_level.value,
            access_log=access_log,
            drain_seconds=settings.drain_seconds,
        )
    if not healthy:
        raise Refused("the worker stopped unexpectedly; see the log above, and start again")
    out.print("stopped")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def work(config: Config = None, log_level: Level = LogLevel.WARNING) -> None:
    """Execute runs in this process, without an HTTP server, until SIGTERM or Ctrl+C."""
    from runs_api.cron_runs import cron_runs
    from runs_projections.wiring import open_store

    settings = Settings()
    _log_to_stderr(log_level)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with open_store(settings, config=config, work=True) as store:
        assert store.worker is not None
        store.fire_crons(cron_runs(store.registry))
        _settle_memory()
        out.print(f"runs-es worker: up to {settings.concurrency} runs at once, on {_where(store.database, settings)}")
        out.print("Ctrl+C stops it.")
        while not stopping.wait(1.0) and store.worker.is_alive:
            pass
        healthy = store.worker.is_alive
        if healthy:
            out.print(f"stopping: runs have {settings.drain_seconds:g} s to finish")
    if not healthy:
        raise Refused("the worker stopped unexpectedly; see the log above, and start again")
    out.print("stopped")


def _log_to_stderr(level: LogLevel) -> None:
    logging.basicConfig(level=level.value.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    """The address, taken before anything slow is begun."""
    from runs_api.server import bound_socket

    try:
        listener = bound_socket(host, port)
    except OSError as error:
        raise Refused(
            f"cannot listen on {host}:{port} ({error.strerror or error}); stop what does, or choose another --port"
        ) from error
    with listener:
        yield listener


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


def _settle_memory() -> None:
    """Spare the garbage collector what was loaded at the start and lives as long as the process, and let it look for
    cycles less often: each of its passes over everything stopped all streams for a tenth to a quarter of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _greet(url: str, store: Store, settings: Settings) -> None:
    names = store.registry.names if store.registry is not None else []
    executes = f"in this process, {settings.concurrency} runs at once" if store.worker else "none; start `runs-es work`"
    lines = (
        ("API", f"{url}  (described at {url}/docs)"),
        ("graphs", ", ".join(names)),
        ("data", _where(store.database, settings)),
        ("worker", executes),
    )
    out.print(Text(f"runs-es {version_of('runs-es')}", "bold"))
    for name, value in lines:
        out.print(Text.assemble((f"  {name:<8}", "cyan"), value))
    if store.migrated:
        out.print(Text.assemble(("  migrated", "cyan"), " ", ", ".join(store.migrated)))
    if names:
        out.print(Text("\nTry it:", "bold"))
        out.print(Text(_example(url, names[0])))
    out.print("\nCtrl+C stops it.")


def _example(url: str, graph: str) -> str:
    body = {
        "assistant_id": graph,
        "input": {"messages": [{"role": "user", "content": "hello"}]},
        "stream_mode": ["messages"],
    }
    return f"  curl -N {url}/runs/stream -H 'Content-Type: application/json' -d '{orjson.dumps(body).decode()}'"


def _stop(store: Store) -> None:
    out.print("stopping: streams are cut, to be joined again elsewhere; runs are finished or handed over")
    store.stop_waiting()
    if store.worker is not None:
        store.worker.drain()  # while requests under way are answered, not after them


def _where(database: Database, settings: Settings) -> str:
    """The database in words, without its password."""
    if settings.database_url is None:
        return f"{settings.data_dir} (embedded PostgreSQL)"
    parts = conninfo_to_dict(database.url)
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{parts.get('host') or 'localhost'}{port}/{parts.get('dbname') or ''}, schema {settings.db_schema}"


# --- the database ---


@app.command()
def migrate() -> None:
    """Bring the database to what this version needs. Safe to run at any time, and twice at once."""
    settings = Settings()
    with open_database(settings) as database:
        applied = migrations.migrate(database.url, settings.db_schema)
        for name in applied:
            out.print(f"applied {name}")
        where = _where(database, settings)
        out.print(f"{where}: {f'{len(applied)} applied' if applied else 'nothing to do'}")


app.command()(cli_rebuild.rebuild)
app.add_typer(cli_projections.app, name="projections")
app.add_typer(cli_webhooks.app, name="webhooks")
app.command()(cli_retention.retain)
app.command()(cli_retention.erase)


app.command()(cli_check.check)
app.command()(cli_history.history)
app.command()(cli_diff.diff)
app.command()(cli_tail.tail)


if __name__ == "__main__":
    main()
