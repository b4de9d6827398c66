"""Which messages a product shows. A message is hidden when it says so itself: `"hidden": true` in its metadata, or
`"hide_from_ui": true` in the `additional_kwargs` of its content, as agents mark what is only for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

Visibility: TypeAlias = Literal["all", "shown", "hidden"]


class Visible(Protocol):
    """A message, as a fact or as a view."""

    @property
    def content(self) -> Any: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


def is_listed(message: Visible, visibility: Visibility) -> bool:
    """Whether a list of this visibility has the message."""
    return visibility == "all" or _is_hidden(message) == (visibility == "hidden")


def _is_hidden(message: Visible) -> bool:
    if message.metadata.get("hidden") is True:
        return True
    content = message.content
    marks = content.get("additional_kwargs") if isinstance(content, Mapping) else None
    return isinstance(marks, Mapping) and marks.get("hide_from_ui") is True
