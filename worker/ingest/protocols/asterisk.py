"""Asterisk's chan_websocket: control messages as text, frames of one codec as binary.

`MEDIA_START` comes first, as JSON (`f(json)`) or as a line `EVENT name:value name:value`. The dial
string's `v()` becomes the query: it sets session fields by their names, the rest is metadata.
Nothing is sent to Asterisk.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from schemas import Encoding
from schemas.audio import MAX_METADATA_BYTES
from worker.ingest.protocols import Query
from worker.ingest.protocols.channels import Channels
from worker.ingest.protocols.messages import decode_json, dtmf
from worker.ingest.protocols.sessions import new_session, split_query
from worker.ingest.records import CallInput, ProtocolError, Started

log = logging.getLogger(__name__)

SUBPROTOCOL = "media"
FORMATS = {
    "ulaw": (Encoding.PCM_MULAW, 8_000),
    "alaw": (Encoding.PCM_ALAW, 8_000),
    "slin": (Encoding.PCM_S16LE, 8_000),
    "slin12": (Encoding.PCM_S16LE, 12_000),
    "slin16": (Encoding.PCM_S16LE, 16_000),
    "slin24": (Encoding.PCM_S16LE, 24_000),
    "slin32": (Encoding.PCM_S16LE, 32_000),
    "slin44": (Encoding.PCM_S16LE, 44_100),
    "slin48": (Encoding.PCM_S16LE, 48_000),
    "slin96": (Encoding.PCM_S16LE, 96_000),
    "slin192": (Encoding.PCM_S16LE, 192_000),
}
"""Encoding and rate of each codec of Asterisk that is raw audio."""

MAX_ID_CHARS = 128
_HASH_CHARS = 12
_LINE_FIELDS = frozenset({"connection_id", "channel", "channel_id", "format", "digit"})
_OUTSIDE_IDS = re.compile(r"[^A-Za-z0-9._:-]")


class _Message(msgspec.Struct):
    event: str
    connection_id: str = ""
    channel: str = ""
    channel_id: str = ""
    format: str = ""
    digit: str = ""
    channel_variables: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(_Message)


class Asterisk:
    """Parser of one channel's connection."""

    def __init__(self, query: Query, offered: Sequence[str] = ()) -> None:
        self.subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
        self._settings, self._metadata = split_query(query)
        self._channels: Channels | None = None

    def text(self, message: str) -> Sequence[CallInput]:
        """Parse a control message; events that do not concern the audio are ignored.

        So is a message that is not valid after the start: a closed connection ends the phone call.
        """
        try:
            content = _parse(message)
        except ProtocolError as error:
            if self._channels is None:
                raise
            log.warning("a message of Asterisk is ignored: %s", error)
            return ()
        match content.event:
            case "MEDIA_START":
                return (self._start(content),)
            case "DTMF_END":
                self._started()
                return (dtmf(content.digit),) if content.digit else ()
        return ()

    def binary(self, message: bytes) -> Sequence[CallInput]:
        """Parse audio."""
        return self._started().split(message)

    def _started(self) -> Channels:
        if self._channels is None:
            raise ProtocolError("the first message must be MEDIA_START")
        return self._channels

    def _start(self, start: _Message) -> Started:
        if self._channels is not None:
            raise ProtocolError("MEDIA_START came twice on one connection")
        if start.format not in FORMATS:
            known = ", ".join(FORMATS)
            raise ProtocolError(
                f"the codec is not raw audio; dial with c(slin16), or one of {known}", 1003
            )
        encoding, sample_rate = FORMATS[start.format]
        name = start.channel_id or start.connection_id
        if not (name or "session" in self._settings):
            raise ProtocolError("MEDIA_START has no channel_id; give `session` in v()")
        about = {"channel": start.channel, "connection_id": start.connection_id}
        facts = {key: value for key, value in about.items() if value} | self._metadata
        metadata = _with_variables(facts, start.channel_variables)
        settings = {"session": usable_id(name)} | self._settings
        session = new_session(settings, metadata, encoding, sample_rate)
        self._channels = Channels(encoding, 1)
        return Started((session,))


def usable_id(name: str) -> str:
    """Return a name as a session id. A name that has to be changed gets a hash of the original."""
    usable = _OUTSIDE_IDS.sub("-", name)
    if usable == name and len(name) <= MAX_ID_CHARS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
    return f"{usable[: MAX_ID_CHARS - _HASH_CHARS - 1]}-{digest}"


def _with_variables(metadata: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Add channel variables that are set, as far as there is room; other metadata goes first.

    Asterisk decides which variables it sends, so that too many of them must not refuse the call.
    """
    added = dict(metadata)
    try:
        room = MAX_METADATA_BYTES - len(msgspec.json.encode(metadata))
        for name, value in variables.items():
            size = len(msgspec.json.encode({name: value}))
            if isinstance(value, str) and value and name not in added and size <= room:
                added[name] = value
                room -= size
    except (RecursionError, UnicodeEncodeError):
        raise ProtocolError("metadata nests too deep or is not UTF-8") from None
    return added


def _parse(message: str) -> _Message:
    if message.lstrip().startswith("{"):
        return decode_json(_decoder, message, "the message")
    event, *pairs = message.split() or [""]
    values = {"event": event}
    for pair in pairs:
        name, _, value = pair.partition(":")
        if name in _LINE_FIELDS:
            values[name] = value
    return msgspec.convert(values, _Message)
