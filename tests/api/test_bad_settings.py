"""Settings that are refused name their variable and show an example of that variable."""

from __future__ import annotations

import shlex

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from runs_api.bad_settings import described
from runs_es.settings import Settings, example_of, variable_of


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValidationError, SettingsError)) as caught:
        Settings()
    return described(caught.value)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_example_of_every_setting_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (word,) = shlex.split(example_of(name))
    variable, _, value = word.partition("=")
    monkeypatch.setenv(variable, value)

    assert value
    assert name in Settings().model_fields_set


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("RUNS_ES_QUEUES", "gpu", "it must be JSON"),
        ("RUNS_ES_LOG_LEVELS", "procrastinate=INFO", "it must be JSON"),
        ("RUNS_ES_CORS_ORIGINS", "https://a.example", "it must be JSON"),
        ("RUNS_ES_QUEUES", '{"GPU 1": ["painter"]}', "GPU 1: String should match pattern"),
        ("RUNS_ES_LOG_LEVELS", '{"procrastinate": "loud"}', "procrastinate: Input should be 'DEBUG'"),
        ("RUNS_ES_MAX_JOINS", "many", "Input should be a valid integer"),
        ("RUNS_ES_WEBHOOK_SECRET", "short", "each secret must be 24 to 64 bytes"),
    ],
)
def test_a_refusal_names_the_variable_and_shows_an_example_of_it(
    variable: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(monkeypatch, **{variable: value})

    assert message.startswith(f"{variable}: {told}")
    assert f"; for example {variable}=" in message
    assert "Source" not in message
    assert message.count("RUNS_ES_") == 2


def test_a_rule_over_several_variables_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, RUNS_ES_LEASE_SECONDS="1")

    assert message.startswith("RUNS_ES_LEASE_SECONDS (1) must be at least twice RUNS_ES_HEARTBEAT_SECONDS (2)")
