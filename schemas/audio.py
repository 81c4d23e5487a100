"""What producers append: session entries and audio entries, and their Redis field codecs.

Redis entries are flat maps of byte strings. Numbers are written in decimal, lists and objects as
JSON, audio as raw bytes. Unknown fields are ignored, so that producers may add their own.
"""

from collections.abc import Mapping
from itertools import chain, pairwise
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from schemas.pcm import Encoding as Encoding  # part of this interface
from schemas.validation import EntryError, from_json_error, from_validation_error

MAX_AUDIO_BYTES = 256 * 1024
MAX_FIELDS = 1_000
"""Maximum fields of a session entry, including ignored ones: workers may have to rewrite it."""

MAX_METADATA_BYTES = 4 * 1024
MAX_MARK_BYTES = 4 * 1024
MAX_NESTING = 32
"""Maximum levels of JSON: the event that echoes it must pass the limits of all consumers."""

MAX_KEYTERMS = 100
MAX_KEYTERM_CHARS = 1_200
MAX_PROVIDERS = 8
MAX_DIGITS = 18
"""Maximum digits of a `seq`, so that it fits in 64 bits."""

MAX_SRC_BYTES = 128
"""Maximum bytes of a `src`: the worker remembers several for each session."""

SessionId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._:-]{1,128}$(?!\n)",
        description="1 to 128 of A-Z a-z 0-9 . _ : -",
    ),
]
NewSessionId = Annotated[
    SessionId,
    Meta(description="1 to 128 of A-Z a-z 0-9 . _ : -; one id per call, a UUID say"),
]
Lane = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$(?!\n)", description="1 to 32 of A-Z a-z 0-9 _ -")
]
ProviderName = Literal["cartesia", "flux"]
ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
LanguageTag = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}$(?!\n)",
        description="a BCP 47 language tag: en, de-CH",
    ),
]
Fields = Mapping[bytes, bytes]


class TurnConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """Turn detection of one session; the provider's defaults apply to unset fields.

    The ranges are the widest that the provider documents. Thresholds must decrease strictly: start,
    eager end, end. The provider validates them after merging its own defaults.
    """

    turn_start_threshold: Annotated[float, Meta(ge=0.5, le=0.9)] | None = None
    turn_eager_end_threshold: Annotated[float, Meta(ge=0.3, le=0.8)] | None = None
    turn_end_threshold: Annotated[float, Meta(ge=0.05, le=0.5)] | None = None
    turn_end_timeout_ms: (
        Annotated[float, Meta(ge=640, le=11_200, description="milliseconds")] | None
    ) = None

    def check_order(self) -> None:
        """Raise `EntryError` unless the thresholds that are set decrease strictly."""
        ladder = [
            (name, value)
            for name in ("turn_start_threshold", "turn_eager_end_threshold", "turn_end_threshold")
            if (value := getattr(self, name)) is not None
        ]
        for (upper, high), (lower, low) in pairwise(ladder):
            if not high > low:
                raise EntryError(lower, f"must be below `{upper}`")

    def merged(self, newer: Self) -> Self:
        """Return these settings, overridden by those that are set in `newer`."""
        given = {k: v for k, v in msgspec.structs.asdict(newer).items() if v is not None}
        return msgspec.structs.replace(self, **given)


class SessionEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One session, announced once: `XADD stt:sessions * session ... encoding ...`."""

    session: NewSessionId
    encoding: Encoding
    sample_rate: Annotated[int, Meta(ge=8_000, le=192_000, description="Hz")]
    lane: Lane = "0"
    out: Literal["lane", "session"] = "lane"
    provider: ProviderName | None = None
    """The preferred provider; without `providers`, the only one."""
    providers: Annotated[tuple[ProviderName, ...], Meta(max_length=MAX_PROVIDERS)] = ()
    """The providers that may serve the session, in this order."""
    model: ModelName | None = None
    language: LanguageTag | None = None
    """Only providers that speak it may serve the session."""
    keyterms: Annotated[tuple[str, ...], Meta(max_length=MAX_KEYTERMS)] = ()
    config: TurnConfig = TurnConfig()
    metadata: dict[str, Any] = {}
    group: SessionId | None = None
    """Legs of one call have the same group; every event of the session carries it."""
    words: bool = False
    """Whether `turn.end` events list the words of the turn with their times."""
    traceparent: Annotated[str, Meta(max_length=128)] | None = None
    tracestate: Annotated[str, Meta(max_length=1_024)] | None = None


class AudioEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One append to a session's audio stream; at least one of audio, config, mark, turn_end, end.

    In one entry, `config` applies before the audio; `mark`, `turn_end` and `end` come after it.
    """

    audio: bytes = b""
    seq: int | None = None
    src: Annotated[str, Meta(max_length=MAX_SRC_BYTES)] = ""
    config: TurnConfig | None = None
    mark: dict[str, Any] | None = None
    """A JSON object of the producer's, published as `session.mark` at its place in the order."""
    turn_end: bool = False
    """Whether the open turn ends here."""
    end: bool = False


_CONFIG_FIELDS = frozenset(TurnConfig.__struct_fields__)
_JSON_FIELDS = frozenset({"keyterms", "metadata"})
_LIST_FIELDS = frozenset({"providers"})
"""Fields that are a JSON array, or names separated by commas."""

_SESSION_FIELDS = frozenset(SessionEntry.__struct_fields__) - {"config"}


def decode_session(fields: Fields) -> SessionEntry:
    """Decode a session entry's fields.

    Raises `EntryError` that names the first invalid field.
    """
    if len(fields) > MAX_FIELDS:
        raise EntryError("", f"has over {MAX_FIELDS} fields", "too_large")
    if len(fields.get(b"metadata", b"")) > MAX_METADATA_BYTES:
        raise EntryError("metadata", f"is over {MAX_METADATA_BYTES} bytes", "too_large")
    values: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for raw_name, raw in fields.items():
        name = raw_name.decode("ascii", "replace")
        if name in _CONFIG_FIELDS:
            config[name] = _text(name, raw)
        elif name in _LIST_FIELDS:
            values[name] = _list(name, raw)
        elif name in _SESSION_FIELDS:
            values[name] = _json(name, raw) if name in _JSON_FIELDS else _text(name, raw)
    if config:
        values["config"] = _config(config, strict=False)
    _check_encoding(values.get("encoding"))
    try:
        entry = msgspec.convert(values, SessionEntry, strict=False)
    except msgspec.ValidationError as error:
        raise from_validation_error(error, SessionEntry) from None
    if sum(map(len, entry.keyterms)) > MAX_KEYTERM_CHARS:
        raise EntryError("keyterms", f"must be at most {MAX_KEYTERM_CHARS} characters together")
    return entry


def encode_session(entry: SessionEntry) -> dict[str, str]:
    """Encode a session entry as the fields of an XADD."""
    values = msgspec.to_builtins(entry)
    values.update(values.pop("config", {}))
    if entry.words:
        values["words"] = "1"
    return {
        name: str(value) if isinstance(value, str | int) else msgspec.json.encode(value).decode()
        for name, value in values.items()
    }


def session_id(fields: Fields) -> str | None:
    """Return only the session id, if it is valid; for entries that are otherwise rejected."""
    return _usable(fields.get(b"session"), SessionId)


def session_lane(fields: Fields) -> str | None:
    """Return only the lane, if it is valid."""
    return _usable(fields.get(b"lane", b"0"), Lane)


def session_group(fields: Fields) -> str | None:
    """Return only the group, if there is a valid one."""
    return _usable(fields.get(b"group"), SessionId)


def session_provider(fields: Fields) -> str:
    """Return only the provider that the entry names first; empty if it names none that is valid."""
    try:
        listed = _list("providers", fields.get(b"providers", b""))
        named = [fields[b"provider"].decode()] if b"provider" in fields else listed
        provider: str = msgspec.convert(named, tuple[ProviderName, ...])[0]
    except (ValueError, IndexError):
        return ""
    return provider


def decode_audio(fields: Fields) -> AudioEntry:
    """Decode an audio entry's fields.

    Raises `EntryError` that names the first invalid field.
    """
    entry, errors = parse_audio(fields)
    if errors:
        raise errors[0]
    return entry


def parse_audio(fields: Fields) -> tuple[AudioEntry, list[EntryError]]:
    """Decode the valid fields of an audio entry; return them with the errors of the others.

    An invalid field affects only itself: audio with an invalid `seq` is used without one, and an
    `end` always counts. A `seq` counts per `src`, and is not used without it.
    """
    audio = fields.get(b"audio", b"")
    if len(fields) == 1 and 0 < len(audio) <= MAX_AUDIO_BYTES:
        return AudioEntry(audio=audio), []
    raw_config, end = fields.get(b"config"), b"end" in fields
    raw_mark, turn_end = fields.get(b"mark"), b"turn_end" in fields
    if not (audio or raw_config is not None or raw_mark is not None or turn_end or end):
        message = "an audio entry needs one of `audio`, `config`, `mark`, `turn_end`, `end`"
        return AudioEntry(), [EntryError("", message, "empty")]
    errors: list[EntryError] = []
    if len(audio) > MAX_AUDIO_BYTES:
        message = f"is over {MAX_AUDIO_BYTES} bytes; append smaller chunks"
        errors.append(EntryError("audio", message, "too_large"))
        audio = b""
    src, seq, config, mark = "", None, None, None
    try:
        src = _src(fields.get(b"src", b""))
        seq = _seq(fields.get(b"seq"))
    except EntryError as error:
        errors.append(error)
    try:
        if raw_config is not None:
            config = _config(_json("config", raw_config), strict=True)
    except EntryError as error:
        errors.append(error)
    try:
        if raw_mark is not None:
            mark = _mark(raw_mark)
    except EntryError as error:
        errors.append(error)
    entry = AudioEntry(
        audio=audio, seq=seq, src=src, config=config, mark=mark, turn_end=turn_end, end=end
    )
    return entry, errors


def encode_audio(entry: AudioEntry) -> dict[str, bytes | str]:
    """Encode an audio entry as the fields of an XADD."""
    fields: dict[str, bytes | str] = {}
    if entry.audio:
        fields["audio"] = entry.audio
    if entry.seq is not None:
        fields["seq"] = str(entry.seq)
    if entry.src:
        fields["src"] = entry.src
    if entry.config is not None:
        fields["config"] = msgspec.json.encode(entry.config)
    if entry.mark is not None:
        fields["mark"] = msgspec.json.encode(entry.mark)
    if entry.turn_end:
        fields["turn_end"] = "1"
    if entry.end:
        fields["end"] = "1"
    return fields


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise EntryError(name, "is not UTF-8") from None


def _list(name: str, raw: bytes) -> Any:  # noqa: ANN401 - JSON of any shape
    if raw.startswith(b"["):
        return _json(name, raw)
    return [part.strip() for part in _text(name, raw).split(",")]


def _src(raw: bytes) -> str:
    if len(raw) > MAX_SRC_BYTES:
        raise EntryError("src", f"is over {MAX_SRC_BYTES} bytes", "too_large")
    return _text("src", raw)


def _seq(raw: bytes | None) -> int | None:
    if raw is None:
        return None
    if len(raw.removeprefix(b"-")) > MAX_DIGITS:
        raise EntryError("seq", f"is over {MAX_DIGITS} digits")
    if raw.isdigit() and not raw.startswith(b"0"):
        return int(raw)
    try:
        return msgspec.convert(_text("seq", raw), int, strict=False)
    except msgspec.ValidationError:
        raise EntryError("seq", "is not a whole number") from None


def _mark(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_MARK_BYTES:
        raise EntryError("mark", f"is over {MAX_MARK_BYTES} bytes", "too_large")
    value = _json("mark", raw)
    if not isinstance(value, dict):
        raise EntryError("mark", "must be a JSON object")
    return value


def _json(name: str, raw: bytes) -> Any:  # noqa: ANN401 - JSON of any shape
    text = _text(name, raw)
    too_deep = EntryError(name, f"nests deeper than {MAX_NESTING} levels")
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise from_json_error(name, error) from None
    except RecursionError:
        raise too_deep from None
    if _nesting(value) > MAX_NESTING:
        raise too_deep
    return value


def _nesting(value: Any) -> int:  # noqa: ANN401 - JSON of any shape
    levels, level = 0, [value]
    while inner := [
        each.values() if isinstance(each, dict) else each
        for each in level
        if isinstance(each, dict | list)
    ]:
        levels, level = levels + 1, list(chain.from_iterable(inner))
    return levels


def _config(values: Any, *, strict: bool) -> TurnConfig:  # noqa: ANN401 - JSON of any shape
    if not isinstance(values, dict):
        raise EntryError("config", "must be a JSON object with `turn_*` names")
    if not _CONFIG_FIELDS.issuperset(values):
        raise EntryError("config", f"may hold only {', '.join(sorted(_CONFIG_FIELDS))}")
    try:
        config = msgspec.convert(values, TurnConfig, strict=strict)
    except msgspec.ValidationError as error:
        raise from_validation_error(error, TurnConfig) from None
    config.check_order()
    return config


def _check_encoding(value: object) -> None:
    if value is not None and value not in list(Encoding):
        raise EntryError("encoding", f"must be one of {', '.join(Encoding)}", "encoding")


def _usable(raw: bytes | None, kind: Any) -> str | None:  # noqa: ANN401 - an annotated type
    try:
        text: str = msgspec.convert(None if raw is None else raw.decode(), kind)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return None
    return text
