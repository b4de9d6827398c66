"""A store whose webhooks may go to the loopback interface, and a receiver there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from runs_es.settings import Settings
from runs_es.webhooks.deliveries import WebhookStatus
from runs_projections.wiring import Store, open_store
from tests.api.conftest import ScriptedExecutor
from tests.conftest import SCHEMA
from tests.webhooks.receiver import Receiver

QUICK: dict[str, Any] = {
    "webhook_allowed_networks": ["127.0.0.0/8"],
    "webhook_backoff_seconds": 0.02,
    "webhook_timeout_seconds": 1.0,
    "drain_seconds": 0,
    "sweep_seconds": 0.2,
}
OpenStore = Callable[..., Store]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as listening:
        yield listening


def _opened(stack: ExitStack, settings: Settings, *, work: bool = True, **changes: Any) -> Store:
    changed = Settings.model_validate({**settings.model_dump(), **QUICK, **changes})
    return stack.enter_context(open_store(changed, executor=ScriptedExecutor(), work=work))


@pytest.fixture
def open_quick(settings: Settings) -> Iterator[OpenStore]:
    """Opens stores of this test's database with a scripted executor; closes them at the end."""
    with ExitStack() as stack:
        yield partial(_opened, stack, settings)


@pytest.fixture(scope="module")
def store(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One that the tests of a module share."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("data")
        yield _opened(stack, Settings(database_url=module_database_url, data_dir=folder, db_schema=SCHEMA))


def settled(store: Store, thread_id: str, run_id: str, state: str) -> WebhookStatus:
    """The run's webhook, once it is in this state."""
    deadline = time.monotonic() + 30
    while True:
        found = store.webhooks.find(thread_id, run_id)
        if found is not None and found.state == state:
            return found
        assert time.monotonic() < deadline, f"the webhook is not {state}: {found}"
