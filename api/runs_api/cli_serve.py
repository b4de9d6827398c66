"""The commands `serve` and `work`."""

from __future__ import annotations

import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from runs_api.meta import version_of
from runs_api.stopping import AGAIN, Interrupts
from runs_api.terminal import Refused, command_settings, out, where
from runs_es.domain import StoreUnavailable
from runs_es.execution.routes import Routes
from runs_es.process_log import configure
from runs_es.settings import Settings

if TYPE_CHECKING:
    from runs_api.browser_access import BrowserRules
    from runs_es.execution.supervisor import WorkerSupervisor
    from runs_projections.wiring import Store

_LOOK_SECONDS = 0.2  # between two looks at what is left


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Config = Annotated[
    Path | None,
    typer.Option("--config", help="A langgraph.json that names your graphs; without it, the demo agent."),
]
Level = Annotated[
    LogLevel | None,
    typer.Option(
        "--log-level", case_sensitive=False, help="What to log, to standard error; without it RUNS_ES_LOG_LEVEL."
    ),
]
HIDDEN = "errors of agents are hidden from clients; RUNS_ES_SHOW_ERRORS=always shows them"
Concurrency = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Runs executed at once; without it RUNS_ES_CONCURRENCY."),
]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 2024,
    config: Config = None,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Execute runs in this process too, or leave it to `work`.")
    ] = True,
    concurrency: Concurrency = None,
    log_level: Level = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request.")] = False,
) -> None:
    """Run the HTTP server: migrates the database, serves the API, and executes runs unless told not to."""
    from runs_api.app import create_app
    from runs_api.browser_access import BrowserRules
    from runs_api.cron_runs import cron_runs
    from runs_api.server import run_server
    from runs_projections.wiring import open_store

    settings = _settings(concurrency)
    _log_to_stderr(settings, log_level, access_log=access_log)
    with (
        _ended_by_signals() as interrupts,  # until the server is up and takes them itself
        _listener(host, port) as listener,
        open_store(settings := _served_on(listener, settings), config=config, work=worker) as store,
    ):
        address, port = listener.getsockname()[:2]
        url = _url(host, port)
        is_local = ip_address(address).is_loopback
        service = create_app(store, settings, is_local=is_local)
        store.fire_crons(cron_runs(store.registry))
        _settle_memory()
        healthy = run_server(
            service,
            listener,
            on_start=lambda: _greet(url, store, settings, BrowserRules(settings, is_local=is_local)),
            on_stop=lambda: _stop(store, interrupts),
            is_healthy=lambda: store.worker is None or store.worker.is_alive,
            access_log=access_log,
            settings=settings,
        )
    if not healthy:
        raise Refused("the worker stopped unexpectedly; see the log above, and start again")
    out.print("stopped")


@contextmanager
def _ended_by_signals() -> Iterator[Interrupts]:
    interrupts = Interrupts(_interrupt)
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt


def work(
    config: Config = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(help="Take runs of this queue only; may be given several times. Without it: of all queues."),
    ] = None,
    concurrency: Concurrency = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when no due run of these queues is left.")] = False,
    log_level: Level = None,
) -> None:
    """Execute runs in this process, without an HTTP server, until SIGTERM or Ctrl+C."""
    from runs_api.cron_runs import cron_runs
    from runs_projections.wiring import open_store

    settings = _without_texts_of_errors(_settings(concurrency))
    queues = _known(queue or [], settings)
    _log_to_stderr(settings, log_level)
    stopping = threading.Event()
    interrupts = Interrupts(stopping.set)
    signal.signal(signal.SIGINT, interrupts)
    signal.signal(signal.SIGTERM, lambda *_: _stop_working(interrupts, stopping))
    with open_store(settings, config=config, work=True, queues=queues) as store:
        assert store.worker is not None
        if not drain:
            store.fire_crons(cron_runs(store.registry))
        _settle_memory()
        taken = f" of {', '.join(queues)}" if queues else ""
        out.print(f"runs-es worker: up to {settings.concurrency} runs{taken} at once, on {where(settings)}")
        if settings.show_errors == "never":
            out.print(HIDDEN)
        if drain:
            _work_until_empty(store, store.worker, queues, stopping)
        else:
            out.print("Ctrl+C stops it.")
            while not stopping.wait(1.0) and store.worker.is_alive:
                pass
        healthy = store.worker.is_alive
        if healthy and stopping.is_set():
            out.print(f"stopping: runs have {settings.drain_seconds:g} s to finish; {AGAIN}")
    if not healthy:
        raise Refused("the worker stopped unexpectedly; see the log above, and start again")
    out.print("stopped")


def _stop_working(interrupts: Interrupts, stopping: Event) -> None:
    interrupts.stopping = True
    stopping.set()


def _work_until_empty(store: Store, worker: WorkerSupervisor, queues: Collection[str], stopping: Event) -> None:
    """Return when the log holds no due run of the queues any more, whoever executes it. Delayed ones are not due."""
    wanted = frozenset(queues) or store.routes.queues
    most = done = 0
    with Progress(TextColumn("draining"), BarColumn(), MofNCompleteColumn(), console=out, transient=True) as progress:
        task = progress.add_task("", total=None)
        while worker.is_alive and not stopping.is_set():
            left = _left(store, wanted, lambda: worker.is_alive and not stopping.wait(_LOOK_SECONDS))
            if left is None:
                break
            most = max(most, done + left)
            done = most - left
            progress.update(task, total=most, completed=done)
            if not left:
                break
            stopping.wait(_LOOK_SECONDS)
    out.print(f"drained: {done} runs have ended" if not stopping.is_set() else f"{most - done} runs are left")


def _left(store: Store, queues: Collection[str], goes_on: Callable[[], bool]) -> int | None:
    """Due runs of the queues that workers of this store may execute: not those of external ones. None where that is not
    known before it `goes_on` no longer: a read model that stands still may do so for ever.
    """
    external = store.external.assistants.ids
    while True:
        with suppress(StoreUnavailable):  # the read model is behind
            return sum(
                count
                for (assistant_id, graph_id), count in store.runs.due().items()
                if assistant_id not in external
                and store.routes.serves(assistant_id, graph_id)
                and store.routes.queue_of(assistant_id, graph_id) in queues
            )
        if not goes_on():
            return None


def _settings(concurrency: int | None) -> Settings:
    settings = command_settings()
    return settings if concurrency is None else settings.model_copy(update={"concurrency": concurrency})


def _known(queues: Sequence[str], settings: Settings) -> Sequence[str]:
    """The queues asked for. Raises Refused for one that no run can be in."""
    known = sorted(Routes(settings.queues).queues)
    for queue in queues:
        if queue not in known:
            raise Refused(f"no queue {queue}: RUNS_ES_QUEUES knows {', '.join(known)}", 2)
    return queues


def _served_on(listener: socket.socket, settings: Settings) -> Settings:
    """The settings of a server bound to this address: who can reach it only from this machine sees what agents say."""
    address = ip_address(listener.getsockname()[0].partition("%")[0])
    if settings.show_errors != "auto":
        return settings
    return settings.model_copy(update={"show_errors": "always" if address.is_loopback else "never"})


def _without_texts_of_errors(settings: Settings) -> Settings:
    """The settings of a worker: it is bound to no address, and does not know who reads what it writes."""
    return settings.model_copy(update={"show_errors": "never"}) if settings.show_errors == "auto" else settings


def _log_to_stderr(settings: Settings, level: LogLevel | None, *, access_log: bool = False) -> None:
    levels = {"uvicorn.access": "INFO"} if access_log else {}
    configure(
        level=level.value.upper() if level is not None else settings.log_level,
        levels={**levels, **settings.log_levels},
        form=settings.log_format,
    )


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


def _greet(url: str, store: Store, settings: Settings, rules: BrowserRules) -> None:
    broken = store.registry.broken if store.registry is not None else {}
    names = [name for name in store.registry.names if name not in broken] if store.registry is not None else []
    executes = f"in this process, {settings.concurrency} runs at once" if store.worker else "none; start `runs-es work`"
    lines = (
        ("API", f"{url}  (described at {url}/docs)"),
        ("graphs", ", ".join(names)),
        ("data", where(settings)),
        ("worker", executes),
        ("open to", str(rules)),
    )
    out.print(Text(f"runs-es {version_of('runs-es')}", "bold"))
    for name, value in lines:
        out.print(Text.assemble((f"  {name:<8}", "cyan"), value))
    if settings.show_errors == "never":
        out.print(Text.assemble(("  errors  ", "cyan"), " hidden from clients; RUNS_ES_SHOW_ERRORS=always shows them"))
    for name, error in broken.items():
        out.print(Text.assemble(("  broken  ", "bold red"), f"{name}: {error.problem}"))
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


def _stop(store: Store, interrupts: Interrupts) -> None:
    interrupts.stopping = True  # a Ctrl+C that finds it closing the store is not the first
    out.print(f"stopping: streams are cut, to be joined again elsewhere; runs are finished or handed over; {AGAIN}")
    store.stop_waiting()
    if store.worker is not None:
        store.worker.drain()  # while requests under way are answered, not after them
