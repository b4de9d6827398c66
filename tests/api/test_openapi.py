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


def test_every_operation_describes_what_any_request_may_be_refused_with():
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            described = operation["responses"].keys()
            wanted = {"400", "403", "408", "413", "414", "422", "431", "500"}
            if "requestBody" in operation:
                wanted |= {"415"}
            assert wanted <= described, (method, path)
            for status in wanted:
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema["$ref"] in ("#/components/schemas/Error", "#/components/schemas/RefusalBody")
