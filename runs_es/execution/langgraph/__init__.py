"""Runs LangGraph graphs. Nothing outside this package imports langgraph, which is an optional extra.

`graphs` loads without it too, so that a process which only names assistants needs no LangGraph.
"""

import importlib.util


def is_installed() -> bool:
    """Whether the extra `langgraph` is there."""
    try:
        return importlib.util.find_spec("langgraph.checkpoint.postgres") is not None
    except ImportError:
        return False
