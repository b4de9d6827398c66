"""Pages: what goes in comes out, whatever it is; damage is told, never guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs_es.log.pages import data_of, decode_page, encode_page, event_of, frame, rendered

names = st.text(st.characters(blacklist_characters="\r\n\x00", blacklist_categories=["Cs"]), min_size=1, max_size=40)
payloads = st.binary(max_size=400).filter(lambda data: b"\n" not in data and b"\r" not in data)


@given(st.lists(st.tuples(names, payloads), min_size=1, max_size=30))
def test_a_page_gives_back_the_frames_it_was_made_of(frames: list[tuple[str, bytes]]) -> None:
    bodies = [frame(name, data) for name, data in frames]
    found = decode_page(encode_page(bodies))
    assert found == bodies
    assert [(event_of(body), data_of(body)) for body in found] == frames


def test_frames_that_resemble_each_other_take_a_tenth_of_their_bytes() -> None:
    metadata = b'{"langgraph_node":"model","langgraph_step":2,"run_id":"01a20387-7635-73eb-88a9-62c771778b7e"}'
    bodies = [frame("messages", b'[{"content":"t%d","type":"AIMessageChunk"},%b]' % (n, metadata)) for n in range(100)]
    assert len(encode_page(bodies)) < sum(map(len, bodies)) / 10


def test_a_small_page_is_stored_as_it_is() -> None:
    body = frame("custom", b"1")
    assert body in encode_page([body])


@pytest.mark.parametrize("size", [1, 1000])
def test_a_damaged_page_is_refused(size: int) -> None:
    page = encode_page([frame("custom", b'"%b"' % (b"ab" * size))] * 3)
    for wrong in (b"", page[:3], page[:-1], page + b"x", b"\x09" + page[1:], page[:-2] + b"\x00\x00"):
        if wrong != page and (wrong[:1] != b"\x00" or len(wrong) != len(page)):
            with pytest.raises(ValueError, match="page"):
                decode_page(wrong)


@pytest.mark.parametrize("event", ["", "a\nb", "a\rb", "a\x00b"])
def test_an_event_name_that_would_break_the_frame_is_refused(event: str) -> None:
    with pytest.raises(ValueError, match="event name"):
        frame(event, b"1")


@pytest.mark.parametrize("data", [b"a\nb", b"a\rb"])
def test_data_of_more_than_one_line_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        frame("custom", data)


def test_a_rendered_frame_ends_with_its_id_and_a_blank_line() -> None:
    assert rendered(frame("end", b"null"), 7) == b"event: end\r\ndata: null\r\nid: 7\r\n\r\n"
