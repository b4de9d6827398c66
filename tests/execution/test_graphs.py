"""langgraph.json: what it may name, how a user's files are imported, and what the errors say."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph.state import CompiledStateGraph

from runs_es.execution.langgraph.graphs import GraphLoadError, GraphRegistry, assistant_id
from tests.execution.conftest import Project

GRAPH = """
    from typing import TypedDict
    from langgraph.graph import START, StateGraph

    class State(TypedDict, total=False):
        n: int

    def step(state: State) -> dict:
        return {"n": 1}

    builder = StateGraph(State)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    graph = builder.compile()
"""


def module_of_file(path: str) -> Any:
    """Other tests of this process have had projects of their own, so the package may have a number."""
    (name,) = (name for name in sys.modules if re.fullmatch(rf"user_graphs(_\d+)?\.{path}", name))
    return sys.modules[name]


def test_the_assistant_id_of_a_graph_is_the_same_everywhere(project: Project) -> None:
    registry = GraphRegistry.from_config(project({"graphs": {"agent": "./agent.py:graph"}}))
    assert assistant_id("agent") == "fe096781-5601-53d2-b2f6-0d3403f7e9ca"
    assert registry.assistant_id("agent") == assistant_id("agent")
    assert registry.resolve("agent") == "agent"
    assert registry.resolve(assistant_id("agent")) == "agent"
    assert registry.resolve(assistant_id("agent").upper()) == "agent"
    assert registry.resolve("nope") is None
    assert registry.names == ["agent"]


def test_naming_assistants_needs_no_langgraph() -> None:
    code = (
        "import sys; sys.modules['langgraph'] = sys.modules['langchain_core'] = None\n"
        "from runs_es.execution.langgraph.graphs import GraphRegistry, GraphLoadError\n"
        "registry = GraphRegistry.demo()\n"
        "print(registry.resolve('fe096781-5601-53d2-b2f6-0d3403f7e9ca'))\n"
        "try: registry.get('agent')\n"
        "except GraphLoadError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.splitlines()[0] == "agent"
    assert "install runs-es[langgraph]" in done.stdout


@pytest.mark.parametrize(
    "place",
    [
        "./agent.py:graph",
        {"path": "./agent.py:graph", "description": "an object"},
        "./agent.py:builder",
        "agent:graph",
        "./agent.py:make",
        "./agent.py:make_async",
        "./agent.py:Holder.graph",
    ],
)
def test_a_graph_may_be_named_in_each_of_these_ways(project: Project, place: Any) -> None:
    factories = """
    def make():
        return builder
    async def make_async():
        return graph
    class Holder:
        graph = graph
    """
    registry = GraphRegistry.from_config(project({"graphs": {"mine": place}}, {"agent.py": GRAPH + factories}))
    graph = registry.get("mine")
    assert isinstance(graph, CompiledStateGraph)
    assert graph.invoke({}) == {"n": 1}
    assert registry.get("mine") is graph


async def test_an_async_factory_works_inside_a_running_event_loop(project: Project) -> None:
    factory = "\n    async def make():\n        return graph\n"
    registry = GraphRegistry.from_config(
        project({"graphs": {"mine": "./agent.py:make"}}, {"agent.py": GRAPH + factory})
    )
    assert isinstance(registry.get("mine"), CompiledStateGraph)


def test_a_graph_finds_the_modules_beside_it(project: Project) -> None:
    files = {
        "src/bot/__init__.py": "",
        "src/bot/agent.py": """
            from .made import graph, State
            from ..shared import NAME
            from beside import WHERE
        """,
        "src/bot/made.py": GRAPH,
        "src/shared.py": "NAME = 'shared'\n",
        "beside.py": "WHERE = 'beside'\n",
        "other.py": "from src.bot.made import graph\n",
    }
    graphs = {"mine": "./src/bot/agent.py:graph", "other": "./other.py:graph"}
    registry = GraphRegistry.from_config(project({"graphs": graphs}, files))
    registry.load_all()
    module = module_of_file("src.bot.agent")
    assert (module.NAME, module.WHERE) == ("shared", "beside")
    assert registry.get("other").invoke({}) == {"n": 1}


def test_what_a_graph_defines_can_be_pickled(project: Project) -> None:
    GraphRegistry.from_config(project({"graphs": {"mine": "./agent.py:graph"}}, {"agent.py": GRAPH})).load_all()
    state = module_of_file("agent").State
    assert pickle.loads(pickle.dumps(state)) is state


def test_a_file_outside_the_folder_or_with_dots_in_its_path_is_loaded_too(project: Project, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.v2"
    outside.mkdir()
    (outside / "agent.py").write_text(textwrap.dedent(GRAPH))
    (tmp_path / "v1.0").mkdir()
    (tmp_path / "v1.0" / "agent.py").write_text(textwrap.dedent(GRAPH))
    places = {"out": f"../{outside.name}/agent.py:graph", "dots": "./v1.0/agent.py:graph"}
    GraphRegistry.from_config(project({"graphs": places})).load_all()


def test_two_projects_in_one_process_keep_their_modules_apart(project: Project, tmp_path: Path) -> None:
    registries = []
    for name, n in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent.py").write_text(textwrap.dedent(GRAPH.replace('"n": 1', f'"n": {n}')))
        (tmp_path / name / "langgraph.json").write_text('{"graphs": {"agent": "./agent.py:graph"}}')
        registries.append(GraphRegistry.from_config(tmp_path / name / "langgraph.json"))
    assert [registry.get("agent").invoke({}) for registry in registries] == [{"n": 1}, {"n": 2}]


def test_packages_called_api_projections_and_tests_are_the_users_own(project: Project, tmp_path: Path) -> None:
    files = {
        "api/__init__.py": "",
        "api/graph.py": """
            from api.tools import builder
            from projections import P
            from tests.helper import T
            from .tools import graph
        """,
        "api/tools.py": GRAPH,
        "projections/__init__.py": "P = 1\n",
        "tests/__init__.py": "",
        "tests/helper.py": "T = 1\n",
    }
    path = project({"graphs": {"mine": "./api/graph.py:graph"}}, files)
    code = (
        "import runs_api, runs_projections, sys\n"
        "from runs_es.execution.langgraph.graphs import GraphRegistry\n"
        "registry = GraphRegistry.from_config(sys.argv[1]); registry.load_all()\n"
        "print(sys.modules['api'].__file__, sys.modules['user_graphs.api.graph'].__file__, sys.path[0])\n"
    )
    root = Path.cwd()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "projections", root / "api")))}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=env)
    assert done.stdout.split() == [
        *(str(tmp_path / "api" / name) for name in ("__init__.py", "graph.py")),
        str(tmp_path),
    ], done.stderr


def test_env_is_set_but_never_over_what_is_set_already(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHS_T_SET", "before")
    for name in ("GRAPHS_T_NEW", "GRAPHS_T_NUMBER"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    env = {"GRAPHS_T_SET": "after", "GRAPHS_T_NEW": "new", "GRAPHS_T_NUMBER": 1}
    GraphRegistry.from_config(project({"graphs": {"a": "a:b"}, "env": env}))
    assert [os.environ[name] for name in env] == ["before", "new", "1"]


@pytest.mark.parametrize("name", ["RUNS_ES_USER_HEADER", "RUNS_ES_USER_HEDER", "runs_es_concurrency"])
def test_a_setting_of_the_server_in_env_is_refused_because_it_would_have_no_effect(
    project: Project, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project({"graphs": {"a": "a:b"}, "env": {"GRAPHS_T_NEW": "new", name: "1"}})
    with pytest.raises(GraphLoadError, match=f'"env" comes too late for {name}, .* in the environment of the process'):
        GraphRegistry.from_config(config)
    assert "GRAPHS_T_NEW" not in os.environ
    monkeypatch.setenv("GRAPHS_T_NEW", "")  # so that it is restored
    monkeypatch.setenv(name, "1")  # a file that the shell has read as well
    GraphRegistry.from_config(config)


def test_an_env_file_has_lines_of_key_and_value(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ABCDEF":
        monkeypatch.setenv(f"GRAPHS_T_{name}", "")
        monkeypatch.delenv(f"GRAPHS_T_{name}")
    (tmp_path / ".env").write_text(
        "# GRAPHS_T_F=no\n\nGRAPHS_T_A=1\nexport GRAPHS_T_B = two words # said\n"
        "GRAPHS_T_C='a # b'\nGRAPHS_T_D=\"x=y\"\nGRAPHS_T_E=\nnonsense\n"
    )
    GraphRegistry.from_config(project({"graphs": {"a": "a:b"}, "env": ".env"}))
    values = [os.environ.get(f"GRAPHS_T_{name}") for name in "ABCDEF"]
    assert values == ["1", "two words", "a # b", "x=y", "", None]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", r"langgraph.json is not valid JSON"),
        ([], r"must hold a JSON object"),
        ({}, r"names no graphs"),
        ({"graphs": {"a": "agent.py"}}, r"graph 'a' of .*: 'agent.py' is no place of a graph; write"),
        ({"graphs": {"a": 7}}, r"graph 'a' .* 7 is no place of a graph"),
        ({"graphs": {"a": {"file": "x"}}}, r"None is no place of a graph"),
        ({"graphs": {"a": "a:b"}, "dependencies": "."}, r'"dependencies" must be a list'),
        ({"graphs": {"a": "a:b"}, "dependencies": ["./nowhere"]}, r"nowhere is no folder"),
        ({"graphs": {"a": "a:b"}, "env": ".env.missing"}, r"env.missing cannot be read: No such file"),
        ({"graphs": {"a": "a:b"}, "env": [1]}, r'"env" must be an object'),
    ],
)
def test_a_configuration_that_is_wrong_says_where_and_what(project: Project, config: Any, said: str) -> None:
    with pytest.raises(GraphLoadError, match=said):
        GraphRegistry.from_config(project(config))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("./missing.py:graph", r"graph 'mine' of .*langgraph.json: the file .*missing.py does not exist"),
        ("./agent.py:grpah", r"agent.py has no 'grpah'; name a variable that it defines"),
        ("./agent.py:number", r"number in ./agent.py is a int; it must be a StateGraph"),
        (
            "./agent.py:needy",
            r"needy needs arguments that a factory of graphs is not given; it may have two, `con",
        ),
        ("./agent.py:giving_seven", r"giving_seven\(\) gave a int; it must be a StateGraph"),
        ("./agent.py:angry", r"angry\(\) failed: RuntimeError: no"),
        ("./agent.py:angry_async", r"angry_async\(\) failed: RuntimeError: no"),
        ("./agent.py:empty", r"empty does not compile: Graph must have an entrypoint"),
        ("./broken.py:graph", r"importing ./broken.py failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("no.such.module:graph", r"importing no.such.module failed: ModuleNotFoundError"),
        ("./agent.txt:graph", r"importing ./agent.txt failed: ImportError: .* is no Python file"),
    ],
)
def test_a_graph_that_cannot_be_loaded_says_which_and_why(
    project: Project, tmp_path: Path, place: str, said: str
) -> None:
    agent = """
    from langgraph.graph import StateGraph
    number, empty = 7, StateGraph(dict)
    def needy(config, other): ...
    def giving_seven(config): return 7
    def angry(): raise RuntimeError("no")
    async def angry_async(): raise RuntimeError("no")
    """
    (tmp_path / "agent.txt").write_text("")
    registry = GraphRegistry.from_config(
        project({"graphs": {"mine": place}}, {"agent.py": agent, "broken.py": "import nowhere\n"})
    )
    with pytest.raises(GraphLoadError, match=said):
        registry.get("mine")


def test_an_unknown_graph_and_a_missing_file_say_what_there_is(project: Project, tmp_path: Path) -> None:
    registry = GraphRegistry.from_config(project({"graphs": {"one": "a:b", "two": "a:b"}}))
    with pytest.raises(GraphLoadError, match="there is no graph 'three'; registered are: one, two"):
        registry.get("three")
    with pytest.raises(GraphLoadError, match=r"does not exist; name a langgraph\.json"):
        GraphRegistry.from_config(tmp_path / "other.json")


def test_the_folder_of_the_configuration_comes_first(project: Project, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    GraphRegistry.from_config(project({"graphs": {"a": "a:b"}, "dependencies": [".", "./lib", "some-package>=1"]}))
    assert sys.path[:2] == [str(tmp_path), str(tmp_path / "lib")]
