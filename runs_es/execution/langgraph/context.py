"""The context that a graph is run with: what the request says, as far as the graph's `context_schema` knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel


def context_for(schema: Any, asked: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The context for a graph with this `context_schema`.

    An empty one lets the defaults of the schema apply. Keys that a dataclass or a model does not know are left out:
    `configurable` is mirrored into the context, and holds more than one graph's settings. Returns None when there is
    neither a schema nor a context.
    """
    if schema is None:
        return dict(asked) if asked else None
    known = _keys_of(schema)
    return {key: value for key, value in (asked or {}).items() if known is None or key in known}


def _keys_of(schema: Any) -> frozenset[str] | None:
    """The keys that a schema takes; None for one that takes any."""
    if not isinstance(schema, type):
        return None
    if issubclass(schema, BaseModel):
        return _keys_of_model(schema)
    return frozenset(field.name for field in fields(schema) if field.init) if is_dataclass(schema) else None


def _keys_of_model(schema: type[BaseModel]) -> frozenset[str] | None:
    if schema.model_config.get("extra") == "allow":
        return None
    known = set(schema.model_fields)
    for field in schema.model_fields.values():
        alias = field.validation_alias or field.alias
        if alias is not None and not isinstance(alias, str):
            return None  # a path into the context, or a choice of several
        known |= {alias} if alias else set()
    return frozenset(known)
