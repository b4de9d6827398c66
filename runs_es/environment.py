"""Environment variables named `RUNS_ES_*` that no setting reads: a misspelt one must not be passed over."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

PREFIX = "RUNS_ES_"
# Variables that are read elsewhere: by the example of an external worker, the tests and the benchmarks.
READ_ELSEWHERE = frozenset({"RUNS_ES_URL", "RUNS_ES_TEST_DATABASE_URL", "RUNS_ES_BENCH_FACTS"})
# Kubernetes gives each container such variables for a Service named `runs-es`, or `runs-es-` and more.
_SERVICE = re.compile(r"RUNS_ES_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")


def unknown_variables(environment: Mapping[str, str], fields: Collection[str]) -> list[str]:
    """A sentence for each variable with the prefix that no setting of `fields` reads, with the nearest name."""
    known = {f"{PREFIX}{field.upper()}" for field in fields}
    return [
        f"{name} is no setting{_nearest(name.upper(), known)}"
        for name, value in sorted(environment.items())
        if name.upper().startswith(PREFIX)
        and name.upper() not in known | READ_ELSEWHERE
        and not _is_of_kubernetes(name, value)
    ]


def _is_of_kubernetes(name: str, value: str) -> bool:
    if _SERVICE.fullmatch(name):
        return True
    return name.endswith("_PORT") and _SERVICE_URL.match(value) is not None


def _nearest(name: str, known: Collection[str]) -> str:
    found = get_close_matches(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], n=1)
    return f"; did you mean {PREFIX}{found[0]}?" if found else "; README.md lists all settings"
