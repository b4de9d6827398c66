"""What an operator sees of read models, step by step from a poisoned fact to recovery; and what runs used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from runs_es.domain import Provenance
from runs_es.log.append import Append, FactItem
from runs_es.settings import Price, Settings
from runs_projections import PROJECTIONS, interventions
from runs_projections.wiring import Store, open_store
from tests.api.conftest import client_of, new_thread
from tests.projections.test_rebuild import until

COMMAND = str(Path(sys.executable).parent / "runs-es")


def shell(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {"RUNS_ES_DATABASE_URL": str(settings.database_url), "COLUMNS": "200", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def metric(text: str, name: str, **labels: str) -> float:
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no {name} {labels} in\n{text}")


async def test_from_a_poisoned_fact_to_recovery(settings: Settings) -> None:
    with open_store(settings.model_copy(update={"list_wait_seconds": 0.2}), work=False) as store:
        async with client_of(store, settings) as client:
            await new_thread(client)
            assert store.projector.wait_for(store.log.reader.last_position(), 20)

            item = FactItem("strange.thing", None, b"{}")
            appended = store.log.writer.submit(Append("strange", [item], expected=0)).result(30)
            await new_thread(client)
            until(lambda: len(store.projector.failures) == len(PROJECTIONS))
            where = f"at position {appended.position}: UnknownTopic: topic 'strange.thing' is not known"

            # The page, the metric, the lists, the exit code: each says so.
            page = (await client.get("/projections")).json()
            assert [(each["name"], each["state"]) for each in page] == [
                (projection.name, "stopped") for projection in PROJECTIONS
            ]
            assert page[0]["failed_position"] == appended.position
            assert "strange.thing" in page[0]["reason"]
            metrics = (await client.get("/metrics")).text
            assert metric(metrics, "runs_es_projection_state", projection="runs", state="stopped") == 1
            assert metric(metrics, "runs_es_projection_behind_facts", projection="runs") >= 2
            assert metric(metrics, "runs_es_projection_lag_seconds", projection="runs") > 0
            listed = await client.post("/threads/search", json={})
            assert (len(listed.json()), listed.headers["x-runs-stale"]) == (1, "true")
            seen = shell(settings, "projections", "status")
            assert seen.returncode == 1
            assert where in seen.stdout
            assert "runs-es projections skip runs --reason TEXT" in seen.stderr

            # Trying again does not help: this code still does not know the topic.
            assert shell(settings, "projections", "retry", "runs").returncode == 0
            assert shell(settings, "projections", "skip", "runs").returncode == 2
            until(lambda: "runs" in store.projector.failures)
            skipped = shell(settings, "projections", "skip", "runs", "--reason", "a trial of the next version")
            assert skipped.returncode == 0, skipped.stderr
            for projection in PROJECTIONS[1:]:
                interventions.skip(store.log, projection, Provenance(actor="shell:ann", reason="the same"))
            until(lambda: store.projector.wait_for(store.log.reader.last_position(), 0.1))

            assert {each["state"] for each in (await client.get("/projections")).json()} == {"live"}
            listed = await client.post("/threads/search", json={})
            assert len(listed.json()) == 2
            assert "x-runs-stale" not in listed.headers
            healthy = shell(settings, "projections", "status", "--json")
            assert healthy.returncode == 0
            assert [json.loads(line)["state"] for line in healthy.stdout.splitlines()] == ["live"] * len(PROJECTIONS)
            facts = store.log.reader.facts("runs-es.system")
            assert facts[1].provenance.reason == "a trial of the next version"
            assert re.fullmatch(r"shell:.+", facts[1].provenance.actor or "")
            assert shell(settings, "projections", "retry", "runs").returncode == 1
            assert (await client.get("/threads/runs-es.system")).status_code == 422


def spoken(message_id: str, model: str | None, inputs: int, outputs: int, **details: int) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "ai",
        "content": "words",
        "usage_metadata": {
            "input_tokens": inputs,
            "output_tokens": outputs,
            "total_tokens": inputs + outputs,
            "input_token_details": details,
        },
        "response_metadata": {} if model is None else {"model_name": model},
    }


@pytest.fixture
def priced(store: Store, store_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    prices = {"large": Price(input=2.0, output=10.0, cache_read=0.5), "small": Price(input=1.0, output=4.0)}
    monkeypatch.setattr(store.usage, "_prices", prices)
    return store_settings


async def used(client: httpx.AsyncClient, thread: str, *messages: dict[str, Any]) -> str:
    """The path of a run that recorded these messages."""
    answer = await client.post(
        f"/threads/{thread}/runs/wait", json={"assistant_id": "scripted", "input": {"messages": messages}}
    )
    return str(answer.headers["content-location"])


async def test_usage_is_added_up_by_model_and_priced_where_a_price_is_known(
    client: httpx.AsyncClient, priced: Settings
) -> None:
    thread = await new_thread(client)
    first = await used(
        client,
        thread,
        {"id": "h", "type": "human", "content": "hello"},
        spoken("a", "large", 1_000_000, 100_000, cache_read=400_000),
        spoken("b", "small", 50, 10),
        spoken("b", "small", 70, 20),  # edited: the newest version counts
    )
    second = await used(
        client,
        thread,
        spoken("a", "large", 1_000_000, 100_000, cache_read=400_000),
        {**spoken("b", "small", 70, 20), "content": "other words"},  # edited by another run: made once
        spoken("c", "small", 1_000_000, 0),
    )

    of_first = (await client.get(f"{first}/usage")).json()
    assert [(each["model"], each["messages"], each["input_tokens"], each["cost"]) for each in of_first["models"]] == [
        ("large", 1, 1_000_000, 600_000 * 2e-6 + 400_000 * 0.5e-6 + 1.0),
        ("small", 1, 70, 0.00015),
    ]
    of_second = (await client.get(f"{second}/usage")).json()
    assert [(each["model"], each["messages"], each["cost"]) for each in of_second["models"]] == [("small", 1, 1.0)]
    whole = await client.get(f"/threads/{thread}/usage")
    assert whole.json()["input_tokens"] == 2_000_070
    assert whole.json()["cost"] == pytest.approx(of_first["cost"] + of_second["cost"])
    assert "x-runs-stale" not in whole.headers

    await client.delete(f"{second}")
    assert (await client.get(f"/threads/{thread}/usage")).json()["models"] == of_first["models"]
    assert (await client.get(f"{second}/usage")).status_code == 404


async def test_there_is_no_cost_without_a_price(client: httpx.AsyncClient, priced: Settings) -> None:
    thread = await new_thread(client)
    await used(client, thread, spoken("a", "large", 10, 10), spoken("b", "unheard of", 5, 5), spoken("c", None, 1, 1))

    usage = (await client.get(f"/threads/{thread}/usage")).json()

    assert usage["cost"] is None
    assert [(each["model"], each["cost"]) for each in usage["models"]] == [
        ("", None),
        ("large", pytest.approx(0.00012)),
        ("unheard of", None),
    ]


async def test_a_thread_without_messages_used_nothing(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    usage = (await client.get(f"/threads/{thread}/usage")).json()
    assert (usage["input_tokens"], usage["cost"], usage["models"]) == (0, 0, [])
    assert (await client.get("/threads/00000000-0000-0000-0000-000000000000/usage")).status_code == 404


def test_prices_come_from_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS_ES_PRICES", '{"m": {"input": 2.5, "output": 10}}')
    assert Settings().prices == {"m": Price(input=2.5, output=10)}


async def test_the_address_of_the_server_leads_to_what_there_is(client: httpx.AsyncClient):
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r'href="([^"]+)"', page.text)
    assert "docs" in links
    for link in links:
        assert (await client.get(f"/{link}")).status_code == 200
    assert (await client.head("/")).status_code == 200
