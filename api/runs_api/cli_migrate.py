"""`runs-es migrate`: the database brought to what this version needs."""

from __future__ import annotations

from runs_api.terminal import command_settings, out, where
from runs_es.database import migrate as migrations
from runs_es.database import open_database
from runs_es.database.server_check import patiently


def migrate() -> None:
    """Bring the database to what this version needs. Safe to run at any time, and twice at once."""
    settings = command_settings()
    with open_database(settings) as database:
        applied = patiently(
            lambda: migrations.migrate(database.url, settings.db_schema), settings.database_start_seconds
        )
        for name in applied:
            out.print(f"applied {name}")
        out.print(f"{where(settings)}: {f'{len(applied)} applied' if applied else 'nothing to do'}")
