"""`runs-es webhooks list | retry`."""

from __future__ import annotations

import asyncio
import json

from runs_es.service.commands import CancelRunCommand
from tests.api.test_cli import run as run  # the fixture
from tests.webhooks.conftest import OpenStore, settled
from tests.webhooks.conftest import open_quick as open_quick  # the fixture
from tests.webhooks.receiver import Receiver
from tests.webhooks.test_deliverer import create


def test_one_that_was_given_up_is_shown_and_begun_anew(run, open_quick: OpenStore, database_url: str):  # type: ignore[no-untyped-def]
    with Receiver(lambda *_: 500) as receiver:
        store = open_quick(webhook_attempts=1)
        made = create(store, receiver.url())
        settled(store, made.thread_id, made.run_id, "failed")
        listed = run("webhooks", "list", "--state", "failed", RUNS_ES_DATABASE_URL=database_url)
        assert listed.code == 1, "so that a script can tell"
        assert made.run_id in listed.out
        assert "the receiver answered 500" in listed.out
        (told,) = map(json.loads, run("webhooks", "list", "--json").out.splitlines())
        assert (told["run_id"], told["state"], told["host"]) == (made.run_id, "failed", "127.0.0.1")
        assert "url" not in told, "its path may be a secret"
        receiver.script = lambda *_: 200
        retried = run("webhooks", "retry", made.run_id, RUNS_ES_DATABASE_URL=database_url)
        assert (retried.code, retried.out.strip()) == (0, "1 due now; a process that executes runs sends them")
        settled(store, made.thread_id, made.run_id, "delivered")
    again = run("webhooks", "retry", made.run_id, RUNS_ES_DATABASE_URL=database_url)
    assert again.code == 1
    assert "no webhook that was given up" in again.err
    assert run("webhooks", "list", RUNS_ES_DATABASE_URL=database_url).code == 0


def test_all_that_were_given_up_are_begun_anew_only_when_that_is_said(run, open_quick: OpenStore, database_url: str):  # type: ignore[no-untyped-def]
    store = open_quick(work=False)
    made = create(store, "http://127.0.0.1:9/", after_seconds=3600)
    asyncio.run(store.service.cancel(CancelRunCommand(run_id=made.run_id)))
    assert not store.webhooks.follow()
    claimed = store.webhooks.claim(10)
    assert claimed is not None
    store.webhooks.note_failed(claimed, "down", None, None)
    refused = run("webhooks", "retry", RUNS_ES_DATABASE_URL=database_url)
    assert (refused.code, "name a run, or say --all" in refused.err) == (2, True)
    assert run("webhooks", "retry", "--all", RUNS_ES_DATABASE_URL=database_url).out.startswith("1 due now")
