"""What consumers and operators read from a simulated Redis after a run."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec

from schemas import Keys, decode_turn_entry
from schemas.turns import DeadLetter, Event
from tests.simulation.redis.resp import Reply, Status

Read: TypeAlias = Callable[..., Reply]
"""Runs a command on what Redis has stored."""


def events_of(read: Read, key: str) -> list[Event]:
    """Return the events in a stream of turns."""
    return [decode_turn_entry(fields).event for fields in _entries(read, key)]


def events_by_session(read: Read, keys: Keys, *lanes: str) -> dict[str, list[Event]]:
    """Return the events of each session in the streams of lanes."""
    found: dict[str, list[Event]] = {}
    for lane in lanes:
        for event in events_of(read, keys.turns(lane)):
            found.setdefault(event.session, []).append(event)
    return found


def dead_letters(read: Read, keys: Keys) -> list[DeadLetter]:
    """Return the dead letters."""
    return [
        msgspec.convert(
            {name.decode(): value.decode() for name, value in fields.items()},
            DeadLetter,
            strict=False,
        )
        for fields in _entries(read, keys.dead)
    ]


def is_string(read: Read, key: str) -> bool:
    """Return whether a key holds a string, as that of an ended session's audio does."""
    return read("TYPE", key) == Status(b"string")


def _entries(read: Read, key: str) -> Iterator[dict[bytes, bytes]]:
    rows: Any = read("XRANGE", key, "-", "+")
    for _, flat in rows:
        yield dict(zip(flat[::2], flat[1::2], strict=True))
