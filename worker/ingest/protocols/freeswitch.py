"""FreeSWITCH's mod_audio_stream and mod_audio_fork: 16-bit samples, one or two channels.

The wire holds no rate. The first text, if it is a JSON object, may hold it: `session`,
`sample_rate` (or `rate`), `channels`, `metadata`, and the session's fields by their names. What it
lacks comes from the URL's parameters of the same names; without both, the audio is 8 kHz mono.
Other names are metadata. Later texts are marks. Nothing is sent to FreeSWITCH.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from schemas import Encoding
from worker.ingest.protocols import Query
from worker.ingest.protocols.channels import Channels
from worker.ingest.protocols.messages import dtmf, marked
from worker.ingest.protocols.sessions import (
    SECRETS,
    SETTINGS,
    as_object,
    count_channels,
    new_sessions,
    split_query,
)
from worker.ingest.records import CallInput, ProtocolError, Started

log = logging.getLogger(__name__)

SUBPROTOCOL = "audio.drachtio.org"
"""Subprotocol of mod_audio_fork; mod_audio_stream has none."""

DEFAULT_SAMPLE_RATE = 8_000


class FreeSwitch:
    """Parser of one call's connection."""

    def __init__(self, query: Query, offered: Sequence[str] = ()) -> None:
        self.subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
        settings, others = split_query(query)
        self._parameters = settings | others
        self._channels: Channels | None = None

    def text(self, message: str) -> Sequence[CallInput]:
        """Parse the first text or a mark; a text that is no JSON object is ignored."""
        content = _object(message)
        if content is None:
            return ()
        if self._channels is None:
            return (self._start(content)[0],)
        try:
            match content:
                case {"dtmf": str(digit)}:
                    return (dtmf(digit),)
                case _:
                    return (marked(content),)
        except ProtocolError as error:  # the text is for others too: the call goes on
            log.warning("a text of FreeSWITCH is no mark: %s", error)
            return ()

    def binary(self, message: bytes) -> Sequence[CallInput]:
        """Parse audio; the first starts the call if no JSON came before."""
        if self._channels is not None:
            return self._channels.split(message)
        started, channels = self._start({})
        return (started, *channels.split(message))

    def _start(self, content: Mapping[str, Any]) -> tuple[Started, Channels]:
        given = {
            name: value
            for name, value in content.items()
            if value is not None and name not in SECRETS
        }
        for values in (self._parameters, given):
            if "rate" in values:
                values.setdefault("sample_rate", values.pop("rate"))
        values = {"session": str(uuid.uuid4()), **self._parameters, **given}
        settings = {name: values.pop(name) for name in SETTINGS & values.keys()}
        sample_rate = values.pop("sample_rate", DEFAULT_SAMPLE_RATE)
        count = count_channels(values.pop("channels", 1))
        metadata = values | as_object(values.pop("metadata", {}), "metadata")
        encoding = Encoding.PCM_S16LE
        sessions = new_sessions(settings, metadata, encoding, sample_rate, count)
        self._channels = Channels(encoding, count)
        return Started(sessions), self._channels


def _object(message: str) -> dict[str, Any] | None:
    """Return a JSON object; None for any other text."""
    try:
        content = msgspec.json.decode(message)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return None
    return content if isinstance(content, dict) else None
