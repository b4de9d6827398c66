"""runs-es: an event-sourced run store for agent platforms.

Names are loaded when they are first asked for, so that `import runs_es.domain` loads the standard library alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runs_es.domain import *  # noqa: F403
    from runs_es.service.application import RunsApplicationService as RunsApplicationService
    from runs_es.service.commands import CancelRunCommand as CancelRunCommand
    from runs_es.service.commands import CreateRunCommand as CreateRunCommand
    from runs_es.service.commands import GetRunQuery as GetRunQuery
    from runs_es.service.commands import JoinRunStreamCommand as JoinRunStreamCommand
    from runs_es.service.commands import ListRunMessagesQuery as ListRunMessagesQuery
    from runs_es.service.commands import ListRunsQuery as ListRunsQuery
    from runs_es.service.ports import RunEventLog as RunEventLog
    from runs_es.service.ports import RunExecutionHandle as RunExecutionHandle
    from runs_es.service.ports import RunExecutionScheduler as RunExecutionScheduler
    from runs_es.service.ports import RunRepository as RunRepository
    from runs_es.service.ports import RunStreamBroker as RunStreamBroker
    from runs_es.service.ports import RunSupervisor as RunSupervisor
    from runs_es.service.views import RunMessageView as RunMessageView
    from runs_es.service.views import RunSnapshot as RunSnapshot
    from runs_es.service.views import RunStreamHandle as RunStreamHandle
    from runs_es.service.views import StoredRunEvent as StoredRunEvent
    from runs_es.settings import Settings as Settings
    from runs_es.streams.broker import RunStreamEvent as RunStreamEvent

_COMMANDS = (
    "CancelRunCommand",
    "CreateRunCommand",
    "GetRunQuery",
    "JoinRunStreamCommand",
    "ListRunMessagesQuery",
    "ListRunsQuery",
)
_PORTS = (
    "RunEventLog",
    "RunExecutionHandle",
    "RunExecutionScheduler",
    "RunRepository",
    "RunStreamBroker",
    "RunSupervisor",
)
_VIEWS = ("RunMessageView", "RunSnapshot", "RunStreamHandle", "StoredRunEvent")
_WHERE = {
    "RunsApplicationService": "runs_es.service.application",
    "RunExecutor": "runs_es.execution.protocol",
    "RunStreamEvent": "runs_es.streams.broker",
    "Settings": "runs_es.settings",
    **dict.fromkeys(_COMMANDS, "runs_es.service.commands"),
    **dict.fromkeys(_PORTS, "runs_es.service.ports"),
    **dict.fromkeys(_VIEWS, "runs_es.service.views"),
}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    module = _WHERE.get(name, "runs_es.domain")
    try:
        return getattr(import_module(module), name)
    except AttributeError:
        raise AttributeError(f"module 'runs_es' has no attribute {name!r}") from None
