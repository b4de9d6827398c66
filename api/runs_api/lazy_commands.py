"""Commands whose modules are imported when one of them is called: to list them all takes no database driver."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class LazyCommands(TyperGroup):
    """A group that loads a command when it is called or completed.

    `places` says where each is, as `module:function` or `module:typer app`. It is listed with what stands in for it.
    """

    places: ClassVar[Mapping[str, str]] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.places:
            command = loaded(name, self.places[name])
        return name, command, rest


def stand_in(app: typer.Typer, name: str, line: str) -> None:
    """Have `app` list the command with this line of help. Another is loaded in its place before it is called."""

    @app.command(name, help=line)
    def _never_called() -> None:
        raise AssertionError(f"{name} was not loaded")


def loaded(name: str, place: str) -> Any:
    """The command itself. Its module is imported here."""
    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False)
    alone.command(name)(found)
    return typer.main.get_command(alone)
