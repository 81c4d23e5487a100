"""The commits of a real publisher, which a test reads in place of Redis."""

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from schemas.audio import SessionEntry
from schemas.keys import Keys
from worker.bus import scripts
from worker.bus.client.connection import RedisHealth
from worker.bus.committer import Committer
from worker.bus.ownership import Fence, OwnedSession
from worker.bus.scripts import ScriptCall
from worker.context import WorkerContext
from worker.core.turn_boundary import ProviderLag
from worker.session.publisher import EventPublisher
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.settings import Settings
from worker.telemetry.counters import Counters
from worker.telemetry.traces import Tracing


def arguments_of(commit: ScriptCall) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the keys and arguments of a commit by name, and its events."""
    names = (*scripts.commit.keys, *scripts.commit.args)
    values, events = commit[2 : 2 + len(names)], commit[2 + len(names) :]
    return dict(zip(names, values, strict=True)), [msgspec.json.decode(e) for e in events[1::3]]


class TestPublisher:
    """A publisher whose commits are applied when the test reads the events."""

    __test__ = False

    def __init__(self, entry: SessionEntry, state: SessionState, sender: AudioSender) -> None:
        context = SimpleNamespace(
            keys=Keys("test"),
            settings=Settings(),
            committer=Committer(Redis(), RedisHealth()),
            stats=Counters(),
            tracing=Tracing(),
        )
        self.publisher = EventPublisher(
            cast("WorkerContext", context),
            OwnedSession(entry, Fence("0-1", 1, "nonce"), "1-0", {}),
            0,
            partial(state.event_context, sender),
            partial(state.checkpoint, sender, ProviderLag()),
        )

    def events(self) -> list[dict[str, Any]]:
        """Return the events published since the last call."""
        commit = self.publisher.next_commit()
        if commit is None:
            return []
        arguments, events = arguments_of(commit)
        self.publisher.on_commit_result("ok", arguments["first_seq"] + len(events) - 1)
        return events
