"""What workers publish: turn events, and the stream entries that carry them."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from schemas.audio import Encoding

T = TypeVar("T")

SessionEndReason = Literal["end", "idle", "error"]
"""Why a session is over. `end`: its producer ended it; `idle`: its producer sent no audio; `error`:
a fatal `session.error`."""

TurnEndReason = Literal["model", "close", "forced", "watchdog"]
"""Why a turn is over. `model`: the provider decided so; `close`: its session ended; `forced`: its
producer ended it; `watchdog`: the provider was stuck inside it."""

GapReason = Literal["producer", "backlog", "watchdog"]
"""Why audio is missing. `producer`: its `seq` has a hole; `backlog`: it was too old; `watchdog`:
the provider was stuck and did not transcribe it."""


class Word(msgspec.Struct, frozen=True):
    """One word of a turn. Times are milliseconds of the session's audio, over all its sockets."""

    w: str
    start_ms: int
    end_ms: int
    confidence: float | UnsetType = UNSET
    """From 0 to 1, if the provider gives one."""


class Usage(msgspec.Struct, frozen=True):
    """What a session used of one provider."""

    audio_s: float = 0.0
    """Seconds of the session's audio sent, replays included."""
    replayed_s: float = 0.0
    """Seconds of it that an earlier socket was sent, too."""
    filler_s: float = 0.0
    """Seconds of silence sent in place of a producer that stopped, and before the end of a turn."""
    sockets: int = 0
    socket_s: float = 0.0
    """Seconds for which a socket was open."""


class EventBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields of every event.

    (`run`, `seq`) is globally unique; `seq` counts 1, 2, ... without gap or repeat.
    """

    session: str
    run: str
    """Id of the entry in the sessions stream that began the session."""
    seq: int
    at: float
    """Unix seconds, by the worker's clock, when the event arrived."""
    audio_ms: int
    """Milliseconds of the session's audio sent so far, without filler. A replay on a new socket
    begins at the committed position, so the value can fall."""
    provider: str
    request_id: str
    """The provider's id of the connection; empty before the first."""
    connection: int
    """1, 2, ... over the sockets that reached `connected`; 0 before the first."""
    group: str | UnsetType = UNSET
    """The session's `group`, if it has one."""


class SessionStarted(EventBase, frozen=True, kw_only=True, tag="session.started"):
    """A worker claimed the session for the first time."""

    worker: str
    metadata: dict[str, Any]
    encoding: Encoding
    sample_rate: int


class TurnStart(EventBase, frozen=True, kw_only=True, tag="turn.start"):
    """Speech began."""

    turn: int


class TurnUpdate(EventBase, frozen=True, kw_only=True, tag="turn.update"):
    """The turn's text grew. `transcript` is cumulative and verbatim: never strip it."""

    turn: int
    transcript: str


class TurnEagerEnd(EventBase, frozen=True, kw_only=True, tag="turn.eager_end"):
    """The user is probably done; `turn.resume` or `turn.end` follows."""

    turn: int
    transcript: str


class TurnResume(EventBase, frozen=True, kw_only=True, tag="turn.resume"):
    """The user was not done after all."""

    turn: int


class TurnEnd(EventBase, frozen=True, kw_only=True, tag="turn.end"):
    """The turn is over and this is its text: never strip it; add a space if a join has none."""

    turn: int
    transcript: str
    reason: TurnEndReason
    start_ms: int | UnsetType = UNSET
    """Where its first word begins, in milliseconds of the session's audio; absent if unknown."""
    end_ms: int | UnsetType = UNSET
    """Where its last word ends."""
    words: tuple[Word, ...] | UnsetType = UNSET
    """Its words, if the session asked for them and the provider sends their times."""


class AudioGap(EventBase, frozen=True, kw_only=True, tag="audio.gap"):
    """Audio that will not be transcribed."""

    missing_ms: int
    reason: GapReason


class SessionMark(EventBase, frozen=True, kw_only=True, tag="session.mark"):
    """A mark of the producer's: `audio_ms` is its exact place in the session's audio."""

    mark: dict[str, Any]


class SessionError(EventBase, frozen=True, kw_only=True, tag="session.error"):
    """An error of the input or of the provider. `fatal`: the session ends with it."""

    code: str
    """Error code of turnbus, as listed in docs/protocol.md, or of the provider."""
    message: str
    """Description for people."""
    status: int
    """HTTP status or close code of the provider, 400 for a rejected session entry, else 0."""
    fatal: bool


class SessionEnded(EventBase, frozen=True, kw_only=True, tag="session.ended"):
    """The last event of a session."""

    reason: SessionEndReason
    turns: int
    usage: dict[str, Usage] | UnsetType = UNSET
    """Usage by provider; absent if no socket was opened."""


Event = (
    SessionStarted
    | TurnStart
    | TurnUpdate
    | TurnEagerEnd
    | TurnResume
    | TurnEnd
    | AudioGap
    | SessionMark
    | SessionError
    | SessionEnded
)


class TurnEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one entry on a turns stream."""

    session: str
    type: str
    event: Event
    traceparent: str | None = None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one dead letter: a rejected entry and the reason. Never audio."""

    id: str
    """Id of the rejected entry."""
    stream: str
    """Key of the entry's stream."""
    session: str
    """Session id; empty if the entry had no valid one."""
    reason: str
    detail: str
    size: int
    """Total bytes of the entry's fields."""
    entry: str = ""
    """Fields of a session entry as a JSON object, so that it can be announced again; empty for
    audio entries, and if the fields are not text or over 16 KiB."""


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's entry in the workers hash."""

    consumer: str
    host: str
    pid: int
    sessions: int
    capacity: int
    state: Literal["ready", "draining", "unready"]
    heartbeat: float
    """Unix seconds of the last heartbeat."""


_EVENT: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_encode = msgspec.json.Encoder().encode


def encode_event(event: Event) -> bytes:
    """Encode an event as JSON."""
    return _encode(event)


def decode_record(raw: bytes, kind: type[T]) -> T:
    """Decode JSON that workers store in Redis, and that other programs may overwrite.

    Raises `msgspec.DecodeError` on any invalid input. msgspec itself raises other errors for input
    that is not UTF-8, or that nests too deeply.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_event(data: bytes) -> Event:
    """Decode an event. Raises `msgspec.DecodeError` if the data is not one."""
    try:
        return _EVENT.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_turn_entry(fields: Mapping[bytes, bytes]) -> TurnEntry:
    """Decode the fields of an entry on a turns stream.

    Raises `msgspec.DecodeError` if a field is missing or invalid.
    """
    try:
        event = decode_event(fields[b"event"])
        traceparent = fields.get(b"traceparent")
        return TurnEntry(
            session=fields[b"session"].decode(),
            type=fields[b"type"].decode(),
            event=event,
            traceparent=traceparent.decode() if traceparent else None,
        )
    except KeyError as missing:
        raise msgspec.ValidationError(f"turn entry without field {missing}") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error


def event_type(event: Event) -> str:
    """Return the `type` of an event."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)  # noqa: S101 - every member of the union is tagged above
    return tag
