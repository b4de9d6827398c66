"""The page with a run's history."""

from __future__ import annotations

import re

import httpx
import orjson

from tests.api.conftest import new_thread

ATTACK = "</script><script>alert(1)</script><!--"


async def test_the_page_holds_every_fact_and_nothing_that_could_run(client: httpx.AsyncClient):
    thread = await new_thread(client)
    said = [{"id": "m", "type": "human", "content": ATTACK}]
    body = {"assistant_id": "scripted", "input": {"messages": said, "fail": ATTACK}}
    where = (await client.post(f"/threads/{thread}/runs/wait", json=body)).headers["content-location"]

    answer = await client.get(f"{where}/history")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert ATTACK not in answer.text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', answer.text)
    told = orjson.loads(data)
    assert [fact["what"].split()[0] for fact in told["facts"]] == [
        "run.created", "run.claimed", "run.started", "message.recorded", "run.failed",
    ]  # fmt: skip
    assert ATTACK in told["facts"][-1]["what"]
    assert not re.search(r"https?://|src=|@import", answer.text)
    assert (await client.get(f"{where[:-4]}0000/history")).status_code == 404
