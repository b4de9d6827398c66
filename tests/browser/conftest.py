"""A headless Chromium, Debian's or one named by `CHROMIUM`, in which names lead where a test wants them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Every name of a test leads to this machine, as those of an attacker may; none is looked up elsewhere.
_OPTIONS = ("--host-resolver-rules=MAP *.example 127.0.0.1", "--disable-dev-shm-usage", "--disable-gpu")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    assert found is not None, "no Chromium: `apt-get install chromium`, or name one in CHROMIUM"
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # `make test` comes by here, and has it not

    with sync_playwright() as playwright:
        arguments = [*_OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()
