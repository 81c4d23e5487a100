"""Twilio Media Streams: JSON text messages, base64 mu-law at 8 kHz, one or two tracks.

The inbound track feeds the session of the stream's id, the outbound track `ID.outbound`. Both have
the call's id as their group. Twilio drops the query of a stream's URL, so values come as
`<Parameter>` elements: those with the prefix `turnbus.` set fields of the session, all others are
metadata. Nothing is ever sent to Twilio: a one-way stream fails if the server sends.

Telnyx, Plivo and Exotel send the same messages with other field names and formats. A parser for
them differs in the structs below and in `_ENCODINGS`.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from schemas import Encoding
from worker.ingest.protocols.messages import decode_json, dtmf, marked
from worker.ingest.protocols.sessions import SECRETS, SETTINGS, new_session
from worker.ingest.records import Audio, CallInput, Ended, ProtocolError, Started

PREFIX = "turnbus."
"""Prefix of the custom parameters that set session fields."""

_TRACKS = ("inbound", "outbound")
_ENCODINGS = {"audio/x-mulaw": Encoding.PCM_MULAW}
_Count = Annotated[int, Meta(ge=0, lt=2**53)]


class _Format(msgspec.Struct, frozen=True, rename="camel"):
    encoding: str = "audio/x-mulaw"
    sample_rate: int = 8_000
    channels: int = 1


class _Start(msgspec.Struct, rename="camel"):
    stream_sid: str
    call_sid: str
    account_sid: str = ""
    tracks: Annotated[tuple[str, ...], Meta(max_length=len(_TRACKS))] = ("inbound",)
    media_format: _Format = _Format()
    custom_parameters: dict[str, str] = {}


class _Media(msgspec.Struct):
    payload: bytes  # decoded from base64
    track: str = ""
    chunk: _Count | None = None
    timestamp: _Count | None = None


class _Key(msgspec.Struct):
    digit: str
    track: str = ""


class _Label(msgspec.Struct):
    name: str


class _Message(msgspec.Struct):
    event: str
    start: _Start | None = None
    media: _Media | None = None
    dtmf: _Key | None = None
    mark: _Label | None = None


class _Event(msgspec.Struct):
    event: str


_KNOWN = frozenset({"start", "media", "dtmf", "mark", "stop"})
_decoder = msgspec.json.Decoder(_Message, strict=False)  # numbers are strings
_event_decoder = msgspec.json.Decoder(_Event)


class Twilio:
    """Parser of one stream."""

    subprotocol: str | None = None

    def __init__(self) -> None:
        self._tracks: dict[str, int] = {}
        self._ended = False

    def text(self, message: str) -> Sequence[CallInput]:
        """Parse a message. Numbers of messages are not checked, and unknown events are ignored."""
        if self._ended:
            return ()
        try:
            content = _decoder.decode(message)
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
            # An unknown event may hold anything below the known names.
            if decode_json(_event_decoder, message, "the message").event not in _KNOWN:
                return ()
            content = decode_json(_decoder, message, "the message")
        match content:
            case _Message(event="media", media=_Media() as media):
                return self._media(media)
            case _Message(event="start", start=_Start() as start):
                return (self._start(start),)
            case _Message(event="dtmf", dtmf=_Key(digit, track)):
                return (dtmf(digit, self._tracks.get(_plain(track), self._track(""))),)
            case _Message(event="mark", mark=_Label(name)):
                return (marked({"mark": name}, self._track("")),)
            case _Message(event="stop"):
                self._ended = True
                return (Ended(),)
            case _Message(event=event) if event in _KNOWN:
                raise ProtocolError(f"the message of event `{event}` lacks the field `{event}`")
        return ()

    def binary(self, message: bytes) -> Sequence[CallInput]:
        """Refuse a binary message: Media Streams has none."""
        raise ProtocolError("Twilio sends text messages only; use /raw for binary audio", 1003)

    def _start(self, start: _Start) -> Started:
        if self._tracks:
            raise ProtocolError("`start` came twice on one stream")
        form = start.media_format
        encoding = _ENCODINGS.get(form.encoding)
        if encoding is None or form.channels != 1:
            raise ProtocolError("the media format must be audio/x-mulaw with one channel", 1003)
        tracks = start.tracks or ("inbound",)
        if len(set(tracks)) < len(tracks) or not set(tracks) <= set(_TRACKS):
            raise ProtocolError(f"`start.tracks` may hold only {', '.join(_TRACKS)}, each once")
        settings, custom = _split_parameters(start.custom_parameters)
        settings = {"session": start.stream_sid, "group": start.call_sid} | settings
        sessions = []
        for track in tracks:
            name = settings["session"] + (".outbound" if track == "outbound" else "")
            about = {"call": start.call_sid, "account": start.account_sid, "track": track}
            fields = settings | {"session": name}
            sessions.append(new_session(fields, custom | about, encoding, form.sample_rate))
        self._tracks = {track: index for index, track in enumerate(tracks)}
        return Started(tuple(sessions))

    def _media(self, media: _Media) -> Sequence[CallInput]:
        track = self._track(media.track)
        if not media.payload:
            return ()
        return (Audio(media.payload, track, media.timestamp, media.chunk),)

    def _track(self, name: str) -> int:
        """Return the index of a track; that of the first one without a name."""
        if not self._tracks:
            raise ProtocolError("the first message must be `start`")
        if not name:
            return 0
        track = self._tracks.get(_plain(name))
        if track is None:
            raise ProtocolError("a message is of a track that `start.tracks` does not hold")
        return track


def _plain(track: str) -> str:
    return track.removesuffix("_track")  # `dtmf` has other names of the tracks than `media`


def _split_parameters(parameters: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split custom parameters into session settings and metadata."""
    settings, custom = {}, {}
    for name, value in parameters.items():
        if name in SECRETS:
            continue
        if not name.startswith(PREFIX):
            custom[name] = value
        elif (setting := name.removeprefix(PREFIX)) in SETTINGS:
            settings[setting] = value
        else:
            known = ", ".join(sorted(SETTINGS))
            raise ProtocolError(f"a parameter with the prefix {PREFIX} must be one of {known}")
    return settings, custom
