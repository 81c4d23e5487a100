"""The format of server-sent events, and the ids that clients resume after."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ingest.sse import BadEventIdError, encode_message, parse_last_event_id


def parse(stream: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Return id, type and data of each message, as the specification describes a client."""
    found, fields = [], dict.fromkeys((b"id", b"event"), b"")
    data: list[bytes] = []
    for line in stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                found.append((fields[b"id"], fields[b"event"], b"\n".join(data)))
            data = []
        elif name == b"data":
            data.append(value)
        elif name in fields:
            fields[name] = value
    return found


def test_message_has_id_type_and_data() -> None:
    message = encode_message("1-0", b"turn.end", b'{"seq":1}')
    assert message == b'id: 1-0\nevent: turn.end\ndata: {"seq":1}\n\n'


@given(st.lists(st.tuples(st.binary(), st.binary())))
def test_any_event_is_one_message(events: list[tuple[bytes, bytes]]) -> None:
    stream = b"".join(encode_message(f"{at}-0", *each) for at, each in enumerate(events))
    parsed = parse(stream)
    assert [entry_id for entry_id, _, _ in parsed] == [b"%d-0" % at for at in range(len(events))]
    for (_, data), (_, _, parsed_data) in zip(events, parsed, strict=True):
        assert parsed_data == data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


@pytest.mark.parametrize("text", ["1700000000000-0", "0-0", f"{2**64 - 1}-{2**64 - 1}"])
def test_entry_ids_are_resumed_after(text: str) -> None:
    assert parse_last_event_id(text) == text


@pytest.mark.parametrize("text", [None, ""])
def test_no_id_is_no_position(text: str | None) -> None:
    assert parse_last_event_id(text) is None


@pytest.mark.parametrize(
    "text", ["1", "$", "-", "+", "1-", "-1", "1-0 ", "1-0\n", "(1-0", f"{2**64}-0", "\u0661-\u0661"]
)
def test_other_ids_are_errors(text: str) -> None:
    with pytest.raises(BadEventIdError, match="must be the id of an event"):
        parse_last_event_id(text)


@given(st.text())
def test_any_text_is_an_id_or_an_error(text: str) -> None:
    with suppress(BadEventIdError):
        assert parse_last_event_id(text) == (text or None)
