"""`runs-es grants`: what a role needs that serves and works, and owns nothing."""

from __future__ import annotations

from typing import Annotated

import psycopg
import typer

from runs_api.terminal import Refused, command_settings, migrated_database, out
from runs_es.database import grants as rights
from runs_es.database import sessions


def grants(
    role: Annotated[str, typer.Argument(help="The role of `serve` and `work`; it must exist.")],
    apply: Annotated[bool, typer.Option("--apply", help="Grant, rather than print what to run.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Only what reading needs.")] = False,
) -> None:
    """Print, as SQL, exactly what ROLE needs to serve and work; with --apply, grant it as the tables' owner.

    Run it again after each `runs-es migrate`. Rights that the role has beyond these are taken from it by --apply alone.
    """
    from runs_projections.loading import load_projections

    settings = command_settings()
    own = {each.table.name for each in load_projections(settings) if not each.table.migrated}
    with (
        migrated_database(settings) as database,
        sessions.connect(database.url, None, "grants") as connection,
    ):
        wanted = rights.grants(connection, settings.db_schema, own_tables=own, read_only=read_only)
        if not apply:
            for each in wanted:
                out.print(f"{each.statement(role).as_string(connection)};", markup=False)
            return
        try:
            rights.apply(connection, role, wanted)
        except ValueError as error:
            raise Refused(str(error), 2) from error
        except psycopg.errors.UndefinedObject as error:
            raise Refused(f"there is no role {role}: `create role {role} login` first") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise Refused(f"run this as the owner of the tables: {str(error).strip()}") from error
    out.print(f"{role} may {'read' if read_only else 'serve and work'}: {len(wanted)} grants on {settings.db_schema}")
