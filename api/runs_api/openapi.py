"""The API described: `python -m runs_api.openapi` writes `api/openapi.json` anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from runs_api.app import create_app
from runs_api.store import Store
from runs_es.settings import Settings

FILE = Path(__file__).resolve().parent.parent / "openapi.json"


def document() -> dict[str, Any]:
    """The description. No store is needed for it."""
    app = create_app(cast(Store, None), Settings())
    try:
        return app.openapi()
    finally:
        app.state.edge.close()


def text() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
