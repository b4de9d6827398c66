"""A server one of whose graphs cannot be loaded: it serves the others, and says what is wrong with that one."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from runs_es.execution.langgraph.graphs import GraphLoadError, assistant_id
from runs_es.settings import Settings
from runs_projections.wiring import open_store
from tests.api.conftest import client_of, new_thread

GOOD = """
import contextlib
from typing_extensions import TypedDict
from langgraph.graph import START, StateGraph

class State(TypedDict, total=False):
    model: str

@contextlib.asynccontextmanager
async def make(config):
    builder = StateGraph(State)
    builder.add_node("step", lambda state: {"model": config["configurable"].get("model", "none")})
    builder.add_edge(START, "step")
    yield builder.compile()
"""
BROKEN = "import os\n\nKEY = os.environ['RUNS_ES_T_NO_SUCH_KEY']\n"
WHY = "importing ./broken.py failed: KeyError: 'RUNS_ES_T_NO_SUCH_KEY' (File \"broken.py\", line 3, in <module>)"


def configuration(folder: Path, **keys: object) -> Path:
    (folder / "good.py").write_text(GOOD)
    (folder / "broken.py").write_text(BROKEN)
    graphs = {"broken": "./broken.py:graph", "good": "./good.py:make"}
    (folder / "langgraph.json").write_text(json.dumps({"graphs": graphs, **keys}))
    return folder / "langgraph.json"


@pytest.fixture
def show_errors() -> str:
    return "always"


@pytest.fixture
async def client(
    settings: Settings, show_errors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    quick = settings.model_copy(update={"drain_seconds": 0, "show_errors": show_errors})
    with open_store(quick, config=configuration(tmp_path)) as store:
        async with client_of(store, quick) as client:
            yield client


async def test_a_broken_graph_is_listed_as_broken_and_its_runs_fail_saying_so(client: httpx.AsyncClient) -> None:
    listed = {each["graph_id"]: each for each in (await client.post("/assistants/search", json={})).json()}
    assert listed["broken"]["error"] == WHY
    assert "error" not in listed["good"]
    thread = await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "broken", "input": {}})
    failed = answer.json()["__error__"]
    assert failed["error"] == "GraphLoadError"
    assert failed["message"].startswith("graph 'broken' of ")
    assert failed["message"].endswith(WHY)
    schemas = await client.get(f"/assistants/{assistant_id('broken')}/schemas")
    assert (schemas.status_code, WHY in schemas.json()["detail"]) == (500, True)
    assert (await client.get(f"/threads/{thread}")).json()["values"] is None
    found = await client.post("/threads/search", json={"ids": [thread]})
    assert [each["status"] for each in found.json()] == ["error"]


@pytest.mark.parametrize("show_errors", ["never"])
async def test_clients_that_may_not_see_errors_do_not_see_what_the_module_raised(client: httpx.AsyncClient) -> None:
    listed = {each["graph_id"]: each for each in (await client.post("/assistants/search", json={})).json()}
    assert listed["broken"]["error"] == "An internal error occurred (id broken)"
    schemas = await client.get(f"/assistants/{assistant_id('broken')}/schemas")
    assert schemas.json() == {"detail": "An internal error occurred (id broken)"}
    failed = await client.post("/runs/wait", json={"assistant_id": "broken", "input": {}})
    assert "RUNS_ES_T_NO_SUCH_KEY" not in failed.text
    assert failed.json()["__error__"]["message"].startswith("An internal error occurred (id ")


async def test_the_others_are_served_all_the_same(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    request = {"assistant_id": "good", "input": {}, "config": {"configurable": {"model": "m-1"}}}
    assert (await client.post(f"/threads/{thread}/runs/wait", json=request)).json() == {"model": "m-1"}
    assert (await client.get(f"/threads/{thread}/state")).json()["values"] == {"model": "m-1"}
    schemas = (await client.get(f"/assistants/{assistant_id('good')}/schemas")).json()
    assert schemas["output_schema"]["properties"].keys() == {"model"}
    drawn = (await client.get(f"/assistants/{assistant_id('good')}/graph")).json()
    assert [node["id"] for node in drawn["nodes"]] == ["__start__", "step", "__end__"]


def test_a_store_does_not_open_when_the_configuration_asks_for_authentication(
    settings: Settings, tmp_path: Path
) -> None:
    config = configuration(tmp_path, auth={"path": "./security.py:auth"})
    with pytest.raises(GraphLoadError, match='"auth" is not served: this server would be open'):
        open_store(settings, config=config)
