"""External workers: agents in any language that claim runs over HTTP and record them here, behind the same fence."""

from runs_es.execution.external.leases import Lease, Leases
from runs_es.execution.external.names import ExternalAssistants
from runs_es.execution.external.runs import ExternalRuns
from runs_es.execution.external.sweep import LeaseSweep
from runs_es.execution.external.values import Claimed, Content, Ending, Refused, Stated, Written
from runs_es.execution.external.waiting import Arrivals

__all__ = [
    "Arrivals",
    "Claimed",
    "Content",
    "Ending",
    "ExternalAssistants",
    "ExternalRuns",
    "Lease",
    "LeaseSweep",
    "Leases",
    "Refused",
    "Stated",
    "Written",
]
