"""Assistants: one for each registered graph, function and external worker. They are not made or changed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from runs_api.caller import CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.errors import ApiError
from runs_api.requests import AssistantFilterBody, AssistantIdPath, AssistantSearchBody, JsonRoute
from runs_api.responses import ERRORS, Assistant, Json, pagination, selected
from runs_es.domain import AssistantNotFound

router = APIRouter(prefix="/assistants", tags=["Assistants"], route_class=JsonRoute, responses=ERRORS)

_METADATA = {"created_by": "system"}
_SCHEMAS = ("input_schema", "output_schema", "state_schema", "config_schema", "context_schema")


def assistant_body(edge: Edge, graph_id: str, assistant_id: str) -> dict[str, Any]:
    """An assistant. One whose graph cannot be loaded has an `error` that says why."""
    registry = edge.store.registry
    broken = registry.broken.get(graph_id) if registry is not None else None
    return {
        "assistant_id": assistant_id,
        "graph_id": graph_id,
        "config": {},
        "context": {},
        "metadata": dict(_METADATA),
        "name": graph_id,
        "created_at": edge.started_at,
        "updated_at": edge.started_at,
        "version": 1,
        "description": None,
        **({} if broken is None else {"error": broken.shown(edge.settings.show_errors != "never")}),
    }


def _found(edge: Edge, wanted: AssistantFilterBody) -> list[dict[str, Any]]:
    """Those that match, in the order of the configuration."""
    registry = edge.store.registry
    if registry is None or any(_METADATA.get(key) != value for key, value in wanted.metadata.items()):
        return []
    return [
        assistant_body(edge, name, registry.assistant_id(name))
        for name in registry.names
        if wanted.graph_id in (None, name) and (wanted.name or "").lower() in name.lower()
    ]


@router.post("/search", response_model=list[Assistant], summary="Search assistants")
async def search_assistants(body: AssistantSearchBody, edge: EdgeOf, _: CallerOf) -> Response:
    found = _found(edge, body)
    sort_by = body.sort_by
    if sort_by is not None:
        found.sort(key=lambda assistant: str(assistant[sort_by]), reverse=body.sort_order == "desc")
    rest = found[body.offset : body.offset + body.limit + 1]
    return Json(selected(rest[: body.limit], body.select), headers=pagination(rest, body.limit, body.offset))


@router.post("/count", response_model=int, summary="Count assistants")
async def count_assistants(body: AssistantFilterBody, edge: EdgeOf, _: CallerOf) -> Response:
    return Json(len(_found(edge, body)))


def _graph_id(edge: Edge, assistant_id: str) -> str:
    registry = edge.store.registry
    graph_id = registry.resolve(assistant_id) if registry is not None else None
    if graph_id is None:
        raise AssistantNotFound(f"Assistant with ID {assistant_id} not found")
    return graph_id


@router.get("/{assistant_id}", response_model=Assistant, summary="Get an assistant")
async def get_assistant(assistant_id: AssistantIdPath, edge: EdgeOf, _: CallerOf) -> Response:
    return Json(assistant_body(edge, _graph_id(edge, assistant_id), assistant_id))


@router.get("/{assistant_id}/graph", summary="Get the nodes and edges of an assistant's graph")
async def get_assistant_graph(
    assistant_id: AssistantIdPath, edge: EdgeOf, _: CallerOf, xray: bool | int = False
) -> Response:
    graph_id = _graph_id(edge, assistant_id)
    if not await edge.read(_is_graph, edge, graph_id):
        raise ApiError(404, f"Assistant {graph_id!r} is a function or an external worker's: it has no graph to show")
    return Json(await edge.read(_drawn, _graph(edge, graph_id), xray))


@router.get("/{assistant_id}/schemas", summary="Get the JSON schemas of an assistant's graph")
async def get_assistant_schemas(assistant_id: AssistantIdPath, edge: EdgeOf, _: CallerOf) -> Response:
    graph_id = _graph_id(edge, assistant_id)
    known = await edge.read(_is_graph, edge, graph_id)
    schemas = await edge.read(_schemas, _graph(edge, graph_id)) if known else dict.fromkeys(_SCHEMAS)
    return Json({"graph_id": graph_id, **schemas})


def _is_graph(edge: Edge, graph_id: str) -> bool:
    assert edge.store.registry is not None
    return edge.store.registry.is_graph(graph_id)


def _graph(edge: Edge, graph_id: str) -> Callable[[], Any]:
    """What gives the graph: called in a thread, for it may have to import a user's code."""
    registry = edge.store.registry
    assert registry is not None
    return lambda: registry.get(graph_id)


def _drawn(graph: Callable[[], Any], xray: bool | int) -> dict[str, Any]:
    drawn = graph().get_graph(xray=xray).to_json()
    return {"nodes": [_node(node) for node in drawn["nodes"]], "edges": drawn["edges"]}


def _node(node: dict[str, Any]) -> dict[str, Any]:
    """A node without the Python path of what runs in it."""
    data = node.get("data")
    return {**node, "data": {"name": data["name"]}} if isinstance(data, dict) and "name" in data else node


def _schemas(graph: Callable[[], Any]) -> dict[str, Any]:
    loaded = graph()
    return {
        "input_schema": _schema(loaded.get_input_jsonschema),
        "output_schema": _schema(loaded.get_output_jsonschema),
        "state_schema": _schema(loaded.get_output_jsonschema),
        "config_schema": _schema(loaded.get_config_jsonschema),
        "context_schema": _schema(loaded.get_context_jsonschema),
    }


def _schema(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception:  # noqa: BLE001 - a user's types that have no schema: the platform's answer is null
        return None
