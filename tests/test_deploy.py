"""The deployment examples and their page say what the code does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
import yaml

from runs_api.cli import app
from runs_es.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "api" / "deploy"
PAGE = DEPLOY / "README.md"
OTHERS = {"RUNS_ES_URL"}  # of the external worker in runs_es/execution/README.md
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
ENVIRONMENT = {f"RUNS_ES_{name.upper()}" for name in Settings.model_fields}
_DURATION = re.compile(r"(\d+)s")
_PROCFILE = re.compile(r"^(ENTRYPOINT|CMD) (\[.*\])$", re.MULTILINE)


def parse(arguments: list[str]) -> None:
    """Raise where `runs-es` would refuse the command line."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("runs-es", arguments, resilient_parsing=False)
    while hasattr(context.command, "resolve_command"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def shell_lines() -> Iterator[str]:
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL):
        yield from block.splitlines()


def runs_es_commands() -> Iterator[list[str]]:
    """The arguments of each `runs-es` on the page, in blocks and in the text."""
    lines = [*shell_lines(), *re.findall(r"`(runs-es [^`]+)`", PAGE.read_text())]
    for line in lines:
        words = shlex.split(line, comments=True)
        if "runs-es" in words:
            yield words[words.index("runs-es") + 1 :]


def pods() -> dict[str, dict[str, Any]]:
    """The pod template of each Job and Deployment, by name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in KUBERNETES
        if each["kind"] in ("Job", "Deployment")
    }


def settings(environment: dict[str, str]) -> Settings:
    """As a process would have them, of these variables."""
    given = {name.removeprefix("RUNS_ES_").lower(): text for name, text in environment.items() if name in ENVIRONMENT}
    return Settings(**given)  # type: ignore[arg-type]


def seconds_to_stop(asked: Settings) -> float:
    """What a process may take after SIGTERM: its runs, their agents, and then a webhook that is under way."""
    return asked.drain_seconds + asked.cancel_grace_seconds + asked.webhook_timeout_seconds + 5


def connections(asked: Settings) -> tuple[int, int, int]:
    """Of `serve --no-worker`, `work` and `serve` at most, as the page counts them."""
    read, concurrency = asked.read_pool_size, asked.concurrency
    return read + 12, read + concurrency + 14, read + concurrency + 18


def test_the_examples_commands_are_commands() -> None:
    services = [each for each in COMPOSE["services"].values() if each["image"].startswith("runs-es")]
    containers = [container for pod in pods().values() for container in pod["containers"]]
    lines = [[str(word) for word in each["command"]] for each in services]
    lines += [[str(word) for word in each["args"]] for each in containers]
    assert [line[0] for line in lines] == ["migrate", "serve", "work"] * 2
    for line in lines:
        parse(line)


def test_the_images_entry_point_and_default_command_are_a_command() -> None:
    for text in ((DEPLOY / "Dockerfile").read_text(), *re.findall(r"```dockerfile\n(.*?)```", PAGE.read_text(), re.S)):
        words = dict(_PROCFILE.findall(text))
        assert words.get("ENTRYPOINT", '["runs-es"]') == '["runs-es"]'
        parse(yaml.safe_load(words["CMD"]))


def test_a_command_that_is_none_is_noticed() -> None:
    for line in ("serv", "work --quue gpu", "serve --concurrency many", "projections stat"):
        with pytest.raises(Exception, match=r"[Nn]o such|valid integer"):
            parse(line.split())


def test_the_examples_variables_are_settings() -> None:
    texts = [path.read_text() for path in DEPLOY.iterdir() if path.is_file()]
    named = {name for text in texts for name in re.findall(r"RUNS_ES_[A-Z_]+", text)}
    assert "RUNS_ES_DRAIN_SECONDS" in named
    assert named - ENVIRONMENT - OTHERS == set()


def test_compose_gives_processes_longer_to_stop_than_they_may_take() -> None:
    for name in ("serve", "work"):
        service = COMPOSE["services"][name]
        (grace,) = _DURATION.findall(service["stop_grace_period"])
        assert int(grace) > seconds_to_stop(settings(service["environment"]))


def test_kubernetes_gives_pods_longer_to_stop_than_they_may_take() -> None:
    (config,) = [each["data"] for each in KUBERNETES if each["kind"] == "ConfigMap"]
    for name in ("runs-es-serve", "runs-es-work"):
        pod = pods()[name]
        before = [c.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command") for c in pod["containers"]]
        slept = sum(int(command[1]) for command in before if command)
        assert pod["terminationGracePeriodSeconds"] > slept + seconds_to_stop(settings(config))


def test_connections_are_counted_alike_and_fit_the_examples() -> None:
    serve, work, both = connections(Settings(database_url="unused"))
    assert f"| **R + 12 = {serve}** | **R + C + 14 = {work}** | **R + C + 18 = {both}** |" in PAGE.read_text()
    services = COMPOSE["services"]
    (most,) = [word.partition("=")[2] for word in services["postgres"]["command"] if "max_connections" in word]
    replicas = {name: services[name]["deploy"]["replicas"] for name in ("serve", "work")}
    assert services["work"]["command"][-1] == "10"
    assert int(most) > replicas["serve"] * serve + replicas["work"] * work
    assert f"3 x {serve} + 13 x {work} = {3 * serve + 13 * work}" in (DEPLOY / "kubernetes.yaml").read_text()


def test_the_images_build_gets_all_that_the_wheel_is_made_of_and_no_data() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == {"pyproject.toml", "README.md", "LICENSE", "runs_es", "projections", "api", "migrations"}
    assert [name for name in kept if not (ROOT / name).exists()] == []


def test_the_pages_commands_are_commands() -> None:
    commands = list(runs_es_commands())
    assert len(commands) > 10
    for command in commands:
        parse(command)


def test_the_pages_and_files_that_it_names_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    named = re.findall(r"api/deploy/\w+(?:\.yaml)?", "\n".join(shell_lines()))
    assert len(links) >= 3
    assert [link for link in links if not (DEPLOY / link).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_pages_settings_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in shell_lines():
        for word in shlex.split(line, comments=True):
            name, _, value = word.partition("=")
            if name in ENVIRONMENT:
                monkeypatch.setenv(name, value)
    assert Settings().queues == {"gpu": ["painter"], "bulk": ["summary", "report"]}


def test_the_pages_queries_are_answered(database_url: str) -> None:
    queries = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(queries) == 4
    with psycopg.connect(database_url) as connection:
        for query in queries:
            connection.execute(query)
