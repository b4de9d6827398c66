"""Who asks: the user that a trusted proxy names, and what goes into the log beside each fact they cause."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request

from runs_api.edge import EdgeOf
from runs_api.errors import ApiError
from runs_es.domain import Provenance, checked_id
from runs_es.process_log import bind

_HTTP_SPACE = " \t"
_NOT_IN_NAMES = ("Cc", "Zl", "Zp")  # control characters, separators of lines and paragraphs


@dataclass(frozen=True, slots=True)
class Caller:
    """`user_id` is None where the deployment has one user only."""

    user_id: str | None
    provenance: Provenance

    def because(self, reason: str | None) -> Provenance:
        """The provenance of something done for `reason`."""
        return replace(self.provenance, reason=reason)


async def caller_of(request: Request, edge: EdgeOf) -> Caller:
    """Raises ApiError 401 when a user must be named and is not, or is twice."""
    user_id = named_user(request, edge.settings.user_header)
    bind(user_id=user_id, **{name: request.path_params.get(name) for name in ("thread_id", "run_id")})
    actor = "api" if user_id is None else f"user:{user_id}"
    return Caller(user_id, Provenance(actor=actor, correlation_id=request.state.request_id))


def named_user(request: Request, header: str | None) -> str | None:
    """The user in `header`; None when no header is configured."""
    if header is None:
        return None
    named = request.headers.getlist(header)
    if len(named) != 1 or not named[0].strip(_HTTP_SPACE):
        # Twice would mean that a client's own header came through the proxy beside the proxy's.
        raise ApiError(401, f"header {header} must name the user, once (RUNS_ES_USER_HEADER)")
    user = _text(named[0].strip(_HTTP_SPACE))
    # Other space around a name, or what cannot be seen in it, must not make two users one.
    if user != user.strip() or any(unicodedata.category(each) in _NOT_IN_NAMES for each in user):
        raise ApiError(
            401, f"header {header} must name the user without other space around it and without control characters"
        )
    return checked_id(header, user)


def _text(value: str) -> str:
    """A header's value, which arrives as latin-1, as the UTF-8 it usually is."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return value


CallerOf = Annotated[Caller, Depends(caller_of)]
