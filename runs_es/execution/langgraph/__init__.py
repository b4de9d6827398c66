"""Runs LangGraph graphs. Nothing outside this package imports langgraph, which is an optional extra.

`graphs` loads without it too, so that a process which only names assistants needs no LangGraph.
"""
