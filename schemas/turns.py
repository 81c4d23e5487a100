"""What workers publish: turn events, and the stream entries that carry them."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from schemas.audio import Encoding

SessionEndReason = Literal["end", "idle", "error"]
"""Why a session is over. `end`: its producer said so; `idle`: its producer fell silent; `error`: a
fatal `session.error`."""

TurnEndReason = Literal["model", "close", "watchdog"]
"""Why a turn is over. `model`: the service decided so; `close`: its session ended; `watchdog`: the
service was stuck inside it."""

GapReason = Literal["producer", "backlog", "watchdog"]
"""Why audio is missing. `producer`: its `seq` has a hole; `backlog`: it was too old; `watchdog`:
the service was stuck, and said nothing of it."""


class EventBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every event says.

    (`run`, `seq`) is unique for ever; `seq` counts 1, 2, ... without gap or repeat.
    """

    session: str
    run: str
    """Id of the entry in the sessions stream that began the session."""
    seq: int
    at: float
    """Unix seconds, by the worker's clock, when the event arrived."""
    audio_ms: int
    """Milliseconds of this session's own audio the recognizer had been fed. Neither replay nor
    filler counts."""
    provider: str
    request_id: str
    """The provider's id of the connection; empty before the first."""
    connection: int
    """1, 2, ... over the sockets that reached `connected`; 0 before the first."""


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
    """The turn is over and this is its text. Concatenate these verbatim."""

    turn: int
    transcript: str
    reason: TurnEndReason


class AudioGap(EventBase, frozen=True, kw_only=True, tag="audio.gap"):
    """Audio that will not be transcribed."""

    missing_ms: int
    reason: GapReason


class SessionError(EventBase, frozen=True, kw_only=True, tag="session.error"):
    """A fault of the input or of the provider. `fatal`: the session ends with it."""

    code: str
    """Ours, as the README lists them, or the service's own."""
    message: str
    """For people."""
    status: int
    """The service's HTTP status or close code, 400 for a refused session entry, else 0."""
    fatal: bool


class SessionEnded(EventBase, frozen=True, kw_only=True, tag="session.ended"):
    """The last event of a session."""

    reason: SessionEndReason
    turns: int


Event = (
    SessionStarted
    | TurnStart
    | TurnUpdate
    | TurnEagerEnd
    | TurnResume
    | TurnEnd
    | AudioGap
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
    """The fields of one entry on the dead stream: what was refused, and why. Never audio."""

    id: str
    """Id the refused entry had."""
    stream: str
    """Key it was read from."""
    session: str
    """Session id, empty if the entry had no usable one."""
    reason: str
    detail: str
    size: int
    """Bytes of all its fields."""
    entry: str = ""
    """A session entry's fields as a JSON object, so that it can be announced again; empty for
    audio entries, and where they are not text or over 16 KiB."""


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
    """Write an event as JSON."""
    return _encode(event)


def decode_event(data: bytes) -> Event:
    """Read an event. Raises `msgspec.DecodeError` on anything else."""
    try:
        return _EVENT.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_turn_entry(fields: Mapping[bytes, bytes]) -> TurnEntry:
    """Read the fields of an entry on a turns stream.

    Raises `msgspec.DecodeError` if a field is missing or wrong.
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
    """Return the `type` an event is written with."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)  # noqa: S101 - every member of the union is tagged above
    return tag
