"""runs-es: an event-sourced run store for agent platforms.

Names are loaded when they are first asked for, so that `import runs_es.domain` loads the standard library alone. A type
checker reads the imports, Python the table below them; a test holds both, `__all__` and the domain's names together.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runs_es.domain import *  # noqa: F403
    from runs_es.execution import ActiveRun, FunctionExecutor, RetryableError, RunExecutor, RunOutcome
    from runs_es.service.application import RunsApplicationService
    from runs_es.service.commands import (
        CancelRunCommand,
        CancelRunsCommand,
        CreateRunCommand,
        FindRunsQuery,
        GetRunQuery,
        JoinRunStreamCommand,
        ListRunMessagesQuery,
        ListRunsQuery,
    )
    from runs_es.service.ports import (
        RunEventLog,
        RunExecutionHandle,
        RunExecutionScheduler,
        RunRepository,
        RunStreamBroker,
        RunSupervisor,
    )
    from runs_es.service.views import RunMessageView, RunSnapshot, RunStreamHandle, StoredRunEvent, ThreadSnapshot
    from runs_es.settings import Settings
    from runs_es.streams.broker import RunStreamEvent
    from runs_projections.wiring import Store, open_store, open_store_async

# Where names are that are not the domain's.
_MODULES = {
    "runs_es.execution": ("ActiveRun", "FunctionExecutor", "RetryableError", "RunExecutor", "RunOutcome"),
    "runs_es.service.application": ("RunsApplicationService",),
    "runs_es.service.commands": (
        "CancelRunCommand",
        "CancelRunsCommand",
        "CreateRunCommand",
        "FindRunsQuery",
        "GetRunQuery",
        "JoinRunStreamCommand",
        "ListRunMessagesQuery",
        "ListRunsQuery",
    ),
    "runs_es.service.ports": (
        "RunEventLog",
        "RunExecutionHandle",
        "RunExecutionScheduler",
        "RunRepository",
        "RunStreamBroker",
        "RunSupervisor",
    ),
    "runs_es.service.views": ("RunMessageView", "RunSnapshot", "RunStreamHandle", "StoredRunEvent", "ThreadSnapshot"),
    "runs_es.settings": ("Settings",),
    "runs_es.streams.broker": ("RunStreamEvent",),
    "runs_projections.wiring": ("Store", "open_store", "open_store_async"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "FACT_TYPES",
    "MAX_PRIORITY",
    "SYSTEM_THREAD",
    "TERMINAL_FACTS",
    "TERMINAL_RUN_STATUSES",
    "TERMINAL_TOPICS",
    "ActiveRun",
    "AssistantId",
    "AssistantNotFound",
    "BadSequence",
    "CancelAction",
    "CancelPolicy",
    "CancelRunCommand",
    "CancelRunsCommand",
    "ConflictError",
    "CreateRunCommand",
    "CronCreated",
    "CronDeleted",
    "CronFact",
    "CronFired",
    "CronNotFound",
    "CronSkipped",
    "CronUpdated",
    "CursorLost",
    "DisconnectMode",
    "EventCategory",
    "EventRecorded",
    "EventSeq",
    "Fact",
    "FindRunsQuery",
    "FramesGone",
    "FunctionExecutor",
    "GetRunQuery",
    "InvalidRunTransition",
    "JoinRunStreamCommand",
    "LeaseLost",
    "LimitExceeded",
    "ListRunMessagesQuery",
    "ListRunsQuery",
    "MessageRecorded",
    "MessageRemoved",
    "MultitaskDecision",
    "MultitaskPolicy",
    "MultitaskStrategy",
    "ProjectionFact",
    "ProjectionRetried",
    "ProjectionSkipped",
    "Provenance",
    "Recorded",
    "RequeueCause",
    "RetryableError",
    "Run",
    "RunCancelRequested",
    "RunCancelled",
    "RunClaimed",
    "RunCompleted",
    "RunCreated",
    "RunDeleted",
    "RunDomainError",
    "RunEnded",
    "RunEvent",
    "RunEventLog",
    "RunExecutionHandle",
    "RunExecutionScheduler",
    "RunExecutor",
    "RunFact",
    "RunFailed",
    "RunId",
    "RunMessageView",
    "RunNotFound",
    "RunOutcome",
    "RunRepository",
    "RunRequeued",
    "RunScope",
    "RunSnapshot",
    "RunStarted",
    "RunStatus",
    "RunStreamBroker",
    "RunStreamEvent",
    "RunStreamHandle",
    "RunSupervisor",
    "RunsApplicationService",
    "Settings",
    "Store",
    "StoreUnavailable",
    "StoredRunEvent",
    "Thread",
    "ThreadCreated",
    "ThreadDeleted",
    "ThreadErased",
    "ThreadExists",
    "ThreadId",
    "ThreadNotFound",
    "ThreadRestored",
    "ThreadSnapshot",
    "ThreadStatus",
    "ThreadUpdated",
    "Timeouts",
    "UnknownTopic",
    "UnsupportedStrategyError",
    "UserId",
    "WriteConflict",
    "checked_id",
    "cron_thread",
    "is_terminal_status",
    "now",
    "open_store",
    "open_store_async",
    "priority_of",
    "recorded_priority",
    "status_after",
]

if not TYPE_CHECKING:  # or a checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module 'runs_es' has no attribute {name!r}")
        found = getattr(import_module(_WHERE.get(name, "runs_es.domain")), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
