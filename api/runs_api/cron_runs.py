"""From a cron to the command that starts one of its runs: the request is read as a client's would be."""

from __future__ import annotations

from dataclasses import replace

from runs_api.caller import Caller
from runs_api.creation import stateful, stateless
from runs_api.errors import ApiError
from runs_api.requests import RunBody, StatelessRunBody
from runs_api.store import Graphs
from runs_es.domain import Provenance
from runs_es.service.commands import CreateRunCommand
from runs_es.service.crons import CronSnapshot, Launch


def cron_runs(graphs: Graphs | None) -> Launch:
    """What makes the run of a cron on a thread, in a server with these graphs."""

    def launch(cron: CronSnapshot, thread_id: str) -> CreateRunCommand:
        try:
            return run_of(cron, thread_id, graphs)
        except ApiError as refused:
            raise ValueError(refused.detail) from refused

    return launch


def run_of(cron: CronSnapshot, thread_id: str, graphs: Graphs | None) -> CreateRunCommand:
    """The run of `cron` on this thread. Its metadata, and those of a thread of its own, name the cron.

    Raises ApiError, AssistantNotFound, and ValueError for a request that is none (any more).
    """
    told = {"cron_id": cron.cron_id}
    request = {**cron.payload, "assistant_id": cron.assistant_id, "metadata": {**cron.metadata, **told}}
    caller = Caller(cron.user_id, Provenance())
    if cron.run_thread_id is not None:
        return stateful(RunBody.model_validate(request), caller, graphs, thread_id)
    request["on_completion"] = cron.on_run_completed or "delete"
    command = stateless(StatelessRunBody.model_validate(request), caller, graphs, thread_id)
    return replace(command, thread_metadata={**command.thread_metadata, **told})
