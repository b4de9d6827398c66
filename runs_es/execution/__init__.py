"""Execution: what an executor is given, the worker that runs it, the queue that says who should work."""

from runs_es.execution.functions import FunctionExecutor
from runs_es.execution.protocol import ActiveRun, RetryableError, RunExecutor, RunOutcome

__all__ = ["ActiveRun", "FunctionExecutor", "RetryableError", "RunExecutor", "RunOutcome"]
