"""What a run platform with a Redis bridge does: the publisher adds to a Redis stream, every subscriber of the web
process reads it with a blocking XREAD of its own. `python -m tests.benchmarks.redis_bridge PORT REDIS_URL`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection

import redis
import redis.asyncio
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse


def app(url: str) -> FastAPI:
    """`GET /streams/{key}` as server-sent events, from the beginning."""
    bridge = FastAPI()
    client = redis.asyncio.Redis.from_url(url, max_connections=4000)

    async def events(key: str) -> AsyncIterator[bytes]:
        last = b"0"
        yield b": here\r\n"
        while True:
            for _, entries in await client.xread({key: last}, block=5000) or []:
                for last, fields in entries:
                    yield b"event: custom\r\ndata: %b\r\nid: %b\r\n\r\n" % (fields[b"data"], last)

    @bridge.get("/ok")
    async def ok() -> dict[str, bool]:
        return {"ok": True}

    @bridge.get("/streams/{key}")
    async def stream(key: str) -> StreamingResponse:
        return StreamingResponse(events(key), media_type="text/event-stream")

    return bridge


def publish(pipe: Connection, url: str, key: str, frames: int, rate: float) -> None:
    """Add `frames` to the stream, `rate` a second, each saying when; in a process of its own."""
    with redis.Redis.from_url(url) as client:
        client.ping()
        pipe.send("ready")
        pipe.recv()
        started = time.monotonic()
        text = "a few words as a model streams them, about a hundred bytes of it in all"
        for index in range(frames):
            time.sleep(max(0.0, started + index / rate - time.monotonic()))
            client.xadd(key, {"data": f'{{"at":{time.time_ns()},"text":"{text}"}}'})


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
