"""Frames become whole messages."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from worker.ingest.messages import MESSAGE_OVERHEAD_BYTES, Inbox


def _frames(message: str | bytes, cuts: list[int]) -> list[Frame]:
    """Return the frames of a message that is cut at some places, perhaps at one twice."""
    content = message.encode() if isinstance(message, str) else message
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    kind = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
    return [
        Frame(Opcode.CONT if i else kind, content[start:end], fin=i == len(cuts))
        for i, (start, end) in enumerate(pairwise(places))
    ]


messages = st.one_of(st.text(max_size=20), st.binary(max_size=20))
cut_messages = st.lists(st.tuples(messages, st.lists(st.integers(0, 20), max_size=4)))


@given(cut_messages, st.booleans())
def test_messages_come_out_as_they_went_in(
    sent: list[tuple[str | bytes, list[int]]], pings: bool
) -> None:
    inbox = Inbox()
    for message, cuts in sent:
        for each in _frames(message, cuts):
            inbox.add(each)
            if pings:
                inbox.add(Frame(Opcode.PING, b"between"))
    size = sum(len(m.encode() if isinstance(m, str) else m) for m, _ in sent)
    assert inbox.waiting_bytes == size + MESSAGE_OVERHEAD_BYTES * len(sent)
    assert [inbox.take() for _ in range(len(inbox))] == [message for message, _ in sent]
    assert inbox.waiting_bytes == 0


def test_cleared_inbox_keeps_the_message_that_is_not_whole() -> None:
    inbox = Inbox()
    inbox.add(Frame(Opcode.TEXT, b"a"))
    inbox.add(Frame(Opcode.BINARY, b"b", fin=False))
    inbox.clear()
    assert (len(inbox), inbox.waiting_bytes) == (0, 0)
    inbox.add(Frame(Opcode.CONT, b"c"))
    assert inbox.take() == b"bc"


def test_text_that_is_not_utf8_is_refused() -> None:
    inbox = Inbox()
    inbox.add(Frame(Opcode.TEXT, b"\xc3", fin=False))
    with pytest.raises(UnicodeDecodeError):
        inbox.add(Frame(Opcode.CONT, b"\xc3"))
