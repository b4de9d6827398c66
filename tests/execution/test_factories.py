"""Graphs that a function makes, each kind of it; graphs that cannot be loaded; keys that are not served."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel

from runs_es.execution.functions import FunctionExecutor
from runs_es.execution.langgraph.executor import LangGraphExecutor
from runs_es.execution.langgraph.graphs import GraphLoadError, GraphRegistry
from tests.execution.conftest import Project
from tests.execution.recorded_run import RecordedRun

MADE = """
    import contextlib
    from dataclasses import dataclass
    from typing import TYPE_CHECKING, Any, TypedDict

    from langchain_core.runnables import RunnableConfig
    from langgraph.func import entrypoint
    from langgraph.graph import START, StateGraph
    from langgraph_sdk.runtime import ServerRuntime

    LOG = []

    class State(TypedDict, total=False):
        out: Any

    def built(model):
        def step(state: State) -> dict:
            LOG.append("step")
            if state.get("out") == "fail":
                raise ValueError("the node failed")
            return {"out": model}
        builder = StateGraph(State)
        builder.add_node("step", step)
        builder.add_edge(START, "step")
        return builder

    def model_of(config):
        LOG.append("make")
        assert isinstance(config["configurable"]["assistant_id"], str)
        return config["configurable"].get("model", "none")

    def make(config):
        return built(model_of(config)).compile()

    def builder(config: RunnableConfig):
        return built(model_of(config))

    async def make_async(config):
        return built(model_of(config)).compile()

    async def annotated(cfg: RunnableConfig):
        return built(model_of(cfg)).compile()

    def nothing():
        LOG.append("make")
        return built("none").compile()

    @dataclass
    class Settings:
        model: str = "none"

    def both(config, runtime):
        assert (runtime.execution_runtime is None) == (runtime.access_context != "threads.create_run")
        LOG.append(runtime.access_context)
        return built(model_of(config)).compile()

    def runtime_alone(server: ServerRuntime[Settings]):
        LOG.append("make")
        running = server.execution_runtime
        user = server.user.identity if server.user else "nobody"
        return built(f"{running.context.model} for {user}" if running else "none").compile()

    @contextlib.asynccontextmanager
    async def manager():
        LOG.append("open")
        yield built("none").compile()
        LOG.append("close")

    @contextlib.asynccontextmanager
    async def manager_of(config: RunnableConfig):
        model = model_of(config)
        LOG.append("open")
        try:
            yield built(model).compile()
        finally:
            LOG.append("close")

    @contextlib.contextmanager
    def plain_manager(config):
        model = model_of(config)
        LOG.append("open")
        try:
            yield built(model)
        finally:
            LOG.append("close")

    async def generator(config):
        model = model_of(config)
        LOG.append("open")
        yield built(model).compile()
        LOG.append("close")

    @contextlib.asynccontextmanager
    async def swallowing(config):
        try:
            yield built(model_of(config)).compile()
        except Exception:
            LOG.append("swallowed")

    @entrypoint()
    async def functional(given: dict) -> dict:
        return {"out": "functional"}

    def failing(config):
        raise ConnectionError("the tools do not answer")

    def late(config):
        if config["configurable"].get("run_id"):
            raise ConnectionError("the tools do not answer")
        return built("none").compile()
"""

IN_CONFIG = {"config": {"configurable": {"model": "m-1"}}, "context": {"model": "m-1"}}


def opened(project: Project, *names: str, **graphs: str) -> tuple[GraphRegistry, list[str]]:
    """A registry of graphs in `made.py`, and the log that the factories write."""
    config = {"graphs": {name: f"./made.py:{name}" for name in names} | graphs}
    registry = GraphRegistry.from_config(project(config, {"made.py": MADE}))
    registry.load_all()
    (name,) = (each for each in sys.modules if each.endswith(".made") and each.startswith("user_graphs"))
    return registry, importlib.import_module(name).LOG


async def ran(registry: GraphRegistry, name: str, **fields: Any) -> RecordedRun:
    run = RecordedRun({"input": {"out": None}, **IN_CONFIG, **fields}, assistant_id=name, user_id="ada")
    saver = InMemorySaver()
    await FunctionExecutor(registry.functions, LangGraphExecutor(registry, lambda run: saver)).execute(run)
    return run


@pytest.mark.parametrize(
    ("name", "model", "log"),
    [
        ("make", "m-1", ["make", "step"]),
        ("builder", "m-1", ["make", "step"]),
        ("make_async", "m-1", ["make", "step"]),
        ("annotated", "m-1", ["make", "step"]),
        ("nothing", "none", ["make", "step"]),
        ("both", "m-1", ["threads.create_run", "make", "step"]),
        ("runtime_alone", "m-1 for ada", ["make", "step"]),
        ("manager", "none", ["open", "step", "close"]),
        ("manager_of", "m-1", ["make", "open", "step", "close"]),
        ("plain_manager", "m-1", ["make", "open", "step", "close"]),
        ("generator", "m-1", ["make", "open", "step", "close"]),
    ],
)
async def test_a_graph_is_made_with_the_config_of_each_run_and_closed_behind_it(
    project: Project, name: str, model: str, log: list[str]
) -> None:
    registry, wrote = opened(project, name)
    assert wrote == [], "nothing is made before it is needed"
    for _ in range(2):
        wrote.clear()
        assert (await ran(registry, name)).data_of("values")[-1] == {"out": model}
        assert wrote == log


@pytest.mark.parametrize("name", ["make", "make_async", "both", "runtime_alone", "manager_of", "plain_manager"])
async def test_a_graph_that_is_only_looked_at_is_made_once_with_the_ids_of_its_assistant(
    project: Project, name: str
) -> None:
    registry, wrote = opened(project, name)
    graph = registry.get(name)
    made = list(wrote)
    assert isinstance(graph, Pregel)
    assert list(graph.get_graph().nodes) == ["__start__", "step", "__end__"]
    assert await registry.look_at(name) is graph
    assert wrote == made, "it is not made again"
    assert made.count("open") == made.count("close")
    assert "step" not in made


async def test_an_entrypoint_of_the_functional_api_is_a_graph(project: Project) -> None:
    registry, _ = opened(project, "functional")
    assert (await ran(registry, "functional", input={"a": 1})).data_of("values")[-1] == {"out": "functional"}
    assert registry.is_graph("functional")
    assert registry.get("functional").get_input_jsonschema()


async def test_a_context_manager_that_swallows_exceptions_makes_no_failed_run_a_success(project: Project) -> None:
    registry, wrote = opened(project, "swallowing")
    with pytest.raises(ValueError, match="the node failed"):
        await ran(registry, "swallowing", input={"out": "fail"})
    assert wrote == ["make", "step", "swallowed"]


async def test_a_run_whose_factory_fails_has_the_error_that_the_factory_raised(project: Project) -> None:
    registry, _ = opened(project, "failing", "late")
    for name in ("failing", "late"):
        with pytest.raises(ConnectionError, match="the tools do not answer"):
            await ran(registry, name)
    assert isinstance(registry.get("late"), Pregel)
    with pytest.raises(GraphLoadError) as caught:
        registry.get("failing")
    said = 'failing() failed: ConnectionError: the tools do not answer (File "made.py", line'
    assert caught.value.problem.startswith(said)
    assert caught.value.problem.endswith(", in failing)")


def test_a_factory_that_hangs_is_given_up_and_says_which_setting_bounds_it(project: Project) -> None:
    hanging = "import asyncio\nasync def make(config):\n    await asyncio.Event().wait()\n"
    config = project({"graphs": {"hanging": "./hanging.py:make"}}, {"hanging.py": hanging})
    registry = GraphRegistry.from_config(config, open_seconds=0.05)
    with pytest.raises(GraphLoadError, match=r"make\(\) gave no graph within 0.05 s \(RUNS_ES_GRAPH_OPEN_SECONDS\)"):
        registry.get("hanging")


# --- broken ---

BROKEN = """
    import os

    from pathlib import Path
    KEY = os.environ["RUNS_ES_T_NO_SUCH_KEY"]
"""


async def test_a_graph_that_cannot_be_loaded_keeps_no_other_from_being_served(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"made.py": MADE, "broken.py": BROKEN, "worse.py": "def graph(:\n"}
    graphs = {"broken": "./broken.py:graph", "worse": "./worse.py:graph", "good": "./made.py:make"}
    registry = GraphRegistry.from_config(project({"graphs": graphs}, files))
    with caplog.at_level(logging.ERROR):
        registry.load_all()
    why = "importing ./broken.py failed: KeyError: 'RUNS_ES_T_NO_SUCH_KEY' (File \"broken.py\", line 5, in <module>)"
    assert registry.names == ["broken", "worse", "good"]
    assert registry.broken["broken"].problem == why
    assert '(File "worse.py", line 1)' in registry.broken["worse"].problem
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert why in caplog.text
    assert "Traceback" in caplog.text
    assert registry.is_graph("broken")
    assert (await ran(registry, "good")).data_of("values")[-1] == {"out": "m-1"}
    with pytest.raises(GraphLoadError, match=r"graph 'broken' of .*langgraph.json: importing ./broken.py failed: KeyE"):
        await ran(registry, "broken")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import asyncio\nraise asyncio.CancelledError('x')\n", "importing ./odd.py failed: CancelledError: x"),
        ("class Skipped(BaseException): pass\nraise Skipped('x')\n", "importing ./odd.py failed: Skipped: x"),
        ("class Mute(Exception):\n    def __str__(self): raise SystemExit\nraise Mute\n", "failed: Mute: Mute (File"),
        ("def __getattr__(name): raise KeyError('OPENAI')\n", "reading graph of ./odd.py failed: KeyError: 'OPENAI'"),
    ],
    ids=["cancelled", "no exception", "mute", "lazy"],
)
def test_whatever_a_graphs_module_raises_keeps_no_other_from_being_served(
    project: Project, text: str, why: str
) -> None:
    graphs = {"odd": "./odd.py:graph", "good": "./made.py:make"}
    registry = GraphRegistry.from_config(project({"graphs": graphs}, {"made.py": MADE, "odd.py": text}))
    registry.load_all()
    assert why in registry.broken["odd"].problem
    assert "good" not in registry.broken


def test_a_configuration_none_of_whose_graphs_can_be_loaded_is_refused(project: Project) -> None:
    config = {"graphs": {"one": "./broken.py:graph", "two": "./missing.py:graph"}}
    registry = GraphRegistry.from_config(project(config, {"broken.py": BROKEN}))
    with pytest.raises(GraphLoadError, match=r'broken.py", line 5, in <module>\); graph \'two\' .* does not exist'):
        registry.load_all()


def test_the_last_frame_is_that_of_the_users_code_and_not_of_a_library_it_calls(project: Project) -> None:
    files = {
        "agent.py": "import inside.made\n",
        "inside/made.py": "import json\n\n\ndef read():\n    return json.loads('{')\n\n\nread()\n",
    }
    registry = GraphRegistry.from_config(project({"graphs": {"mine": "./agent.py:graph"}}, files))
    with pytest.raises(GraphLoadError) as caught:
        registry.get("mine")
    assert caught.value.problem.endswith('(File "inside/made.py", line 5, in read)')


# --- what a configuration asks and is not served ---


@pytest.mark.parametrize("key", ["auth", "encryption"])
def test_a_configuration_that_asks_for_protection_which_is_not_served_is_refused(project: Project, key: str) -> None:
    config = {"graphs": {"mine": "./made.py:make"}, key: {"path": "./security.py:handler"}}
    with pytest.raises(GraphLoadError, match=rf'langgraph.json: "{key}" is not served: .* [Tt]ake "{key}" out'):
        GraphRegistry.from_config(project(config))


def test_each_key_without_effect_is_a_warning_line_at_the_start(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    config = {
        "graphs": {"mine": {"path": "./made.py:make", "description": "what it does"}, "other": "./made.py:make"},
        "dependencies": ["."],
        "env": {},
        "python_version": "3.12",
        "auth": None,
        "http": {"app": "./web.py:app", "cors": {"allow_origins": ["*"]}},
        "store": {"index": {}},
        "checkpointer": {"ttl": {"default_ttl": 5}},
        "ui": {"agent": "./ui.tsx"},
        "depndencies": ["./lib"],
        "whatever": 1,
    }
    GraphRegistry.from_config(project(config))
    assert [(record.levelname, record.getMessage().partition("langgraph.json: ")[2]) for record in caplog.records] == [
        ("WARNING", '"http.app" is not served yet, and has no effect'),
        ("WARNING", '"http.cors" is not served yet, and has no effect'),
        ("WARNING", '"store" is not served yet, and has no effect'),
        ("WARNING", '"checkpointer.ttl" is not served yet, and has no effect'),
        ("WARNING", '"ui" is not served yet, and has no effect'),
        ("WARNING", '"depndencies" is not known, and has no effect; did you mean "dependencies"?'),
        ("WARNING", '"whatever" is not known, and has no effect'),
        ("WARNING", '"graphs.mine.description" is not served yet, and has no effect'),
    ]


def test_a_configuration_of_served_keys_alone_warns_of_nothing(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    served = {"graphs": {"mine": {"path": "./made.py:make"}}, "dependencies": ["."], "env": {}, "external": ["theirs"]}
    GraphRegistry.from_config(project(json.dumps(served)))
    assert caplog.records == []
