"""Read models: projections of the log, the drivers that keep them up to date, and the readers that lists come from."""

from runs_projections.freshness import Counted, Listed
from runs_projections.live import Failure, LiveProjector
from runs_projections.loading import PROJECTIONS, ProjectionLoadError, load_projections
from runs_projections.projection import Projection, Table, fold
from runs_projections.readers import ProjectedEvents, ProjectedRuns, ProjectedThreads
from runs_projections.rebuild import Difference, RebuildReport, rebuild
from runs_projections.wiring import Store, open_store

__all__ = [
    "PROJECTIONS",
    "Counted",
    "Difference",
    "Failure",
    "Listed",
    "LiveProjector",
    "ProjectedEvents",
    "ProjectedRuns",
    "ProjectedThreads",
    "Projection",
    "ProjectionLoadError",
    "RebuildReport",
    "Store",
    "Table",
    "fold",
    "load_projections",
    "open_store",
    "rebuild",
]
