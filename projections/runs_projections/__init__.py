"""Read models: projections of the log, the drivers that keep them up to date, and the readers that lists come from."""

from runs_projections.freshness import Counted, Listed
from runs_projections.live import Failure, LiveProjector
from runs_projections.loading import PROJECTIONS, ProjectionLoadError, load_projections
from runs_projections.projection import (
    BIGINT,
    BOOL,
    FLOAT,
    INT,
    JSON,
    JSONB,
    TEXT,
    TIME,
    Column,
    Key,
    Kind,
    Projection,
    Scope,
    Table,
    fold,
)
from runs_projections.readers import ProjectedEvents, ProjectedRuns, ProjectedThreads
from runs_projections.rebuild import Difference, RebuildReport, rebuild
from runs_projections.rows import ProjectedRows
from runs_projections.wiring import Store, open_store

__all__ = [
    "BIGINT",
    "BOOL",
    "FLOAT",
    "INT",
    "JSON",
    "JSONB",
    "PROJECTIONS",
    "TEXT",
    "TIME",
    "Column",
    "Counted",
    "Difference",
    "Failure",
    "Key",
    "Kind",
    "Listed",
    "LiveProjector",
    "ProjectedEvents",
    "ProjectedRows",
    "ProjectedRuns",
    "ProjectedThreads",
    "Projection",
    "ProjectionLoadError",
    "RebuildReport",
    "Scope",
    "Store",
    "Table",
    "fold",
    "load_projections",
    "open_store",
    "rebuild",
]
