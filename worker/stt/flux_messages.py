"""Lenient parsing of Flux's messages: the readable fields of a damaged message are used."""

from typing import Any

import msgspec

from schemas.flux import (
    KNOWN,
    KnownMessage,
    ServerMessage,
    TurnInfo,
    UnknownMessage,
    Word,
    decode_message,
    decode_words,
)
from worker.stt.messages import defect_of, read_damaged

MAX_S = 1e7
"""Maximum time in a message that is used, in seconds of audio: four months."""


def read_message(data: bytes) -> tuple[ServerMessage | None, str]:
    """Return the readable content of a message, and its defect. Never raises if `data` is UTF-8.

    The message is None if its type is not readable. The defect contains nothing of the message.
    """
    try:
        return decode_message(data), ""
    except (RecursionError, ValueError) as error:
        defect = defect_of(error)
    kind, fields, defect = read_damaged(data, defect)
    if kind is None:
        return None, defect
    known = KNOWN.get(kind)
    return UnknownMessage(kind) if known is None else _message(known, fields), defect


def _message(kind: type[KnownMessage], fields: dict[str, object]) -> KnownMessage:
    """Return a message of the fields that have the expected types."""
    readable: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.name in fields and field.name != "words":
            try:
                readable[field.name] = msgspec.convert(fields[field.name], field.type)
            except msgspec.ValidationError:
                continue  # its default applies
    return kind(**readable)


def transcribed_s(info: TurnInfo) -> float | None:
    """Return the seconds of audio that are transcribed; None if that is not readable."""
    end = info.audio_window_end
    return end if end is not None and 0 <= end <= MAX_S else None


def timed_words(info: TurnInfo) -> list[tuple[Word, float, float]]:
    """Return the words of a turn with their start and end; none if a word has no usable times."""
    try:
        words = decode_words(info)
    except (RecursionError, ValueError):
        return []
    timed = [
        (word, word.start, word.end)
        for word in words
        if word.start is not None and word.end is not None and 0 <= word.start <= word.end <= MAX_S
    ]
    return timed if len(timed) == len(words) else []
