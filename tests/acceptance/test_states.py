"""A run whose state grows, over HTTP from a server that has nothing of it in memory."""

from __future__ import annotations

import httpx

from runs_es.log.event_log import EventLog
from runs_es.log.pages import DELTA, rendered
from tests.acceptance.server import Server, read_stream
from tests.log.recording import Recording
from tests.log.states import values_frames


def test_a_run_stored_as_deltas_is_replayed_byte_for_byte_from_anywhere(database_url: str) -> None:
    bodies = list(values_frames(200, 100_000))
    with EventLog(database_url) as log:
        recording = Recording(log)
        for body in bodies:
            recording.writer.publish(body)
            last = recording.writer.last()
            assert last is not None
            end = last.result(20).last_seq + 1
        assert recording.finish() == end
        forms = [row.state[0] for row in log.reader.rows_after(recording.thread_id, 20, 1000) if row.is_page]
    assert forms.count(DELTA) > len(forms) // 2
    first = end - len(bodies)
    path = f"/threads/{recording.thread_id}/runs/{recording.run.run_id}/stream"
    written = [rendered(body, seq) for seq, body in enumerate(bodies, first)]
    written.append(b"event: end\r\ndata: null\r\nid: %d\r\n\r\n" % end)
    with (
        Server(database_url, options=["--no-worker"]) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        for skipped in (150, 0, 199, 37):
            headers = {"Last-Event-ID": str(first - 1 + skipped)}
            assert read_stream(client, "GET", path, headers=headers).raw == b"".join(written[skipped:])
