"""The ledger of faults, and what is shown of it at the end of a run."""

from __future__ import annotations

import pytest

from tests.acceptance.oracle import SEED, Ledger

_LEDGER = Ledger()


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    return _LEDGER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The long part shows each scenario and how to repeat it; any other run the sum alone."""
    if not _LEDGER.tallies:
        return
    terminalreporter.section("faults")
    if config.option.markexpr == "faults":
        for tally in _LEDGER.tallies:
            terminalreporter.write_line(str(tally))
        terminalreporter.write_line(f"repeat with: make faults SEED={SEED}")
    terminalreporter.write_line(f"in all: {_LEDGER.total}")
