"""What holds for the records of every parser."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from schemas import decode_audio, decode_session, encode_audio, encode_session
from schemas.audio import AudioEntry
from worker.ingest.protocols import Protocol
from worker.ingest.records import (
    Audio,
    CallInput,
    Configured,
    Ended,
    Marked,
    ProtocolError,
    Started,
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
queries = st.dictionaries(
    st.sampled_from(
        "session encoding sample_rate rate channels lane out group model keyterms keyterm metadata "
        "turn_end_threshold traceparent events token call".split()
    )
    | st.text(max_size=4),
    st.lists(
        st.text(max_size=8) | st.sampled_from(["1", "2", "16000", "0.4", "pcm_mulaw", "{}"]),
        max_size=2,
    ),
    max_size=4,
)


def mutations(*messages: dict[str, Any]) -> st.SearchStrategy[str]:
    """Return valid messages with any fields replaced, at any depth, removed or added."""

    @st.composite
    def mutate(draw: st.DrawFn) -> str:
        message = json.loads(json.dumps(draw(st.sampled_from(messages))))
        for _ in range(draw(st.integers(0, 2))):
            place = message
            while True:
                name = draw(st.sampled_from([*place, "other"]))
                if not isinstance(inner := place.get(name), dict) or draw(st.booleans()):
                    break
                place = inner
            if draw(st.booleans()):
                place[name] = draw(json_values)
            else:
                place.pop(name, None)
        return json.dumps(message)

    return mutate()


def check_records(records: Sequence[CallInput]) -> None:
    """Assert the order of a call's records, and that workers accept what they hold."""
    tracks = 0
    for index, record in enumerate(records):
        if isinstance(record, Started):
            assert tracks == 0, "a call starts once"
            tracks = len(record.sessions)
            for entry in record.sessions:
                fields = {n.encode(): v.encode() for n, v in encode_session(entry).items()}
                assert decode_session(fields) == entry
        elif isinstance(record, Ended):
            assert index == len(records) - 1
        else:
            assert record.track < tracks
        if isinstance(record, Audio):
            assert record.audio
        if isinstance(record, Marked | Configured):
            mark = record.mark if isinstance(record, Marked) else None
            config = record.config if isinstance(record, Configured) else None
            entry_fields = encode_audio(AudioEntry(mark=mark, config=config))
            decode_audio(
                {
                    n.encode(): v if isinstance(v, bytes) else v.encode()
                    for n, v in entry_fields.items()
                }
            )


def run(make: Callable[[], Protocol], messages: Sequence[str | bytes]) -> list[CallInput]:
    """Parse messages up to the first that is refused, and check the records."""
    records: list[CallInput] = []
    try:
        parser = make()
        for message in messages:
            records += parser.text(message) if isinstance(message, str) else parser.binary(message)
    except ProtocolError as error:
        message = str(error)
    else:
        message = "none"
    assert message
    assert "\n" not in message, "an error is one line"
    check_records(records)
    return records
