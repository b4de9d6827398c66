"""The committed description of the API is the one that the code has."""

from __future__ import annotations

import json

from runs_api.openapi import FILE, document


def test_the_committed_description_is_that_of_the_code():
    assert json.loads(FILE.read_text(encoding="utf-8")) == document(), "run `python -m runs_api.openapi`"


def test_every_operation_has_a_summary_and_an_id_of_its_own():
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    assert all(operation["summary"] for operation in operations)
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))


def test_errors_are_described_as_they_are_sent():
    assert "HTTPValidationError" not in document()["components"]["schemas"]
