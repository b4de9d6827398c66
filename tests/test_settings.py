"""Settings come from the environment; a name that no setting has is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from runs_es.environment import unknown_variables
from runs_es.settings import Settings


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("RUNS_ES_CONCURENCY", "RUNS_ES_CONCURRENCY"),
        ("RUNS_ES_USER_HEADERS", "RUNS_ES_USER_HEADER"),
        ("RUNS_ES_USERHEADER", "RUNS_ES_USER_HEADER"),
        ("runs_es_worker_tokn", "RUNS_ES_WORKER_TOKEN"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, misspelt: str, meant: str
):
    monkeypatch.setenv(misspelt, "x")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert f"{misspelt} is no setting; did you mean {meant}?" in str(caught.value)


def test_a_variable_like_no_setting_is_refused_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RUNS_ES_ZZZ", "x")
    with pytest.raises(ValidationError, match=r"RUNS_ES_ZZZ is no setting; README\.md lists all settings"):
        Settings()


def test_all_unknown_variables_are_named_at_once():
    found = unknown_variables({"RUNS_ES_B": "1", "RUNS_ES_A": "", "RUNS_ES_QUEUES": "{}", "OTHER": "1"}, ["queues"])
    assert [each.split()[0] for each in found] == ["RUNS_ES_A", "RUNS_ES_B"]


def test_variables_of_tests_and_of_workers_are_no_settings_and_are_let_through(monkeypatch: pytest.MonkeyPatch):
    for name in ("RUNS_ES_TEST_DATABASE_URL", "RUNS_ES_URL", "RUNS_ES_BENCH_FACTS"):
        monkeypatch.setenv(name, "1")
    assert Settings().concurrency == 10


def test_variables_that_kubernetes_makes_of_services_are_let_through(monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "RUNS_ES_SERVICE_HOST": "10.0.0.1",
        "RUNS_ES_SERVICE_PORT": "80",
        "RUNS_ES_SERVICE_PORT_HTTP": "80",
        "RUNS_ES_PORT": "tcp://10.0.0.1:80",
        "RUNS_ES_PORT_80_TCP": "tcp://10.0.0.1:80",
        "RUNS_ES_PORT_80_TCP_ADDR": "10.0.0.1",
        "RUNS_ES_SERVER_PORT_80_TCP_PROTO": "tcp",
        "RUNS_ES_SERVER_PORT": "tcp://10.0.0.1:80",
    }.items():
        monkeypatch.setenv(name, value)
    assert Settings().concurrency == 10


def test_a_port_that_no_service_has_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RUNS_ES_PORT", "2024")
    with pytest.raises(ValidationError, match="RUNS_ES_PORT is no setting"):
        Settings()


def test_a_misspelt_keyword_is_refused():
    with pytest.raises(ValidationError, match="user_heder"):
        Settings(user_heder="X-User")  # type: ignore[call-arg]
