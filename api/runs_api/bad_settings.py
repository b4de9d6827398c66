"""Settings that are refused, in words: the variable, what is wrong with it, and an example of that variable."""

from __future__ import annotations

import re

from pydantic import ValidationError
from pydantic_settings import SettingsError

from runs_es.settings import Settings, example_of, variable_of

_FIELD = re.compile(r'field "(\w+)"')
_PREFIX = "Value error, "


def described(error: ValidationError | SettingsError) -> str:
    """One sentence a problem."""
    if isinstance(error, SettingsError):
        return _unreadable(error)
    return "; ".join(_refused(each["loc"], each["msg"]) for each in error.errors(include_input=False))


def _unreadable(error: SettingsError) -> str:
    """A value that is not the JSON that it must be."""
    found = _FIELD.search(str(error))
    name = found[1] if found is not None else ""
    if name not in Settings.model_fields:
        return str(error)
    why = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return f"{variable_of(name)}: it must be JSON{why}; for example {example_of(name)}"


def _refused(place: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix(_PREFIX)
    name = str(place[0]) if place else ""
    if name not in Settings.model_fields:
        return message  # a rule over several variables names them itself
    inside = "".join(f"{part}: " for part in place[1:] if part != "[key]")
    return f"{variable_of(name)}: {inside}{message}; for example {example_of(name)}"
