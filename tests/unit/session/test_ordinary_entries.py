"""Ordinary entries, which the ingest passes on with less work, are treated as all others are."""

import time
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from websockets.uri import parse_uri

from schemas.audio import Encoding, SessionEntry, TurnConfig
from tests.support.commits import TestPublisher
from tests.support.virtual_time import Clock
from worker.bus.audio_reader import AudioReader, Entries
from worker.bus.client.connection import RedisHealth
from worker.bus.clock import EntryAges, RedisClock
from worker.context import WorkerContext
from worker.core import stream_ids
from worker.core.send_limits import FrameLimit, Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_boundary import ProviderLag
from worker.core.turn_tracker import ProviderInput
from worker.event_loop import StallDetector
from worker.session.boundary import TurnBoundaryFinder
from worker.session.checkpoint import Checkpoint
from worker.session.ingest import AudioIngest
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.stt.cartesia import CARTESIA
from worker.stt.events import TurnEvent
from worker.stt.flux import FLUX
from worker.stt.frames import LenientProtocol
from worker.stt.provider import Provider
from worker.stt.stream import Stream
from worker.stt.websocket import WebSocketClient
from worker.telemetry.counters import Counters

RATE = 8_000


class _Path:
    """The audio path of one session, with a socket that records what is sent."""

    def __init__(
        self,
        now_ms: int,
        encoding: Encoding,
        speed: float,
        max_lag_s: float,
        update_interval_ms: int = 0,
        provider: Provider = CARTESIA,
    ) -> None:
        entry = SessionEntry(session="s", encoding=encoding, sample_rate=RATE)
        self.stats = Counters()
        self.state = SessionState(entry, Checkpoint(), max_lag_s, "p")
        self.sender = AudioSender(
            encoding, RATE, self.state.ledger, Pacer(speed), self.stats, FrameLimit()
        )
        health = RedisHealth()
        clock = RedisClock(Redis(), health)
        clock.asked = True
        self.published = TestPublisher(entry, self.state, self.sender)
        publisher = self.published.publisher
        boundary = TurnBoundaryFinder(self.sender, StallDetector(time.monotonic()), ProviderLag())
        throttle = UpdateThrottle(update_interval_ms)
        self.receiver = MessageReceiver(self.state, boundary, self.sender, publisher, throttle)
        rejected = SimpleNamespace(put=lambda *_: None)
        context = cast(
            "WorkerContext",
            SimpleNamespace(
                stats=self.stats,
                dead_letters=rejected,
                health=health,
                reader=AudioReader(Redis(), health),
            ),
        )
        self.ingest = AudioIngest(
            context,
            self.state,
            EntryAges(clock, f"{now_ms}-0", untimed=False),
            self.sender,
            self.receiver,
            publisher,
            Reports(context, "audio", entry.session, self.state.notices, publisher),
        )
        self._provider = provider
        self.sent: list[bytes | TurnConfig | str] = []
        self.socket = WebSocketClient(LenientProtocol(parse_uri("ws://127.0.0.1/")), {})
        self.connect()

    def connect(self) -> None:
        now = time.monotonic()
        stream = SimpleNamespace(
            provider=self._provider,
            socket=self.socket,
            send_audio=self.sent.append,
            send_config=self.sent.append,
        )
        self.sent.append("a new socket")
        self.receiver.socket_opened(now, self._provider, progressed=True)
        self.sender.attach(cast("Stream", stream), now)
        self.state.lateness.opened(now, self.sender.session_bytes)

    def lose_socket(self) -> None:
        self.state.lateness.closed(time.monotonic(), self.sender.session_bytes)
        self.state.rewind()
        self.sender.detach()
        self.receiver.forget()
        self.ingest.rewind()

    def commit(self, share: float) -> None:
        ledger = self.state.ledger
        self.receiver.commit(
            ledger.committed_bytes
            + int(share * (self.sender.session_bytes - ledger.committed_bytes))
        )

    @property
    def outcome(self) -> dict[str, Any]:
        """Return what consumers, the provider and the next owner get, and what the code counts."""
        ledger = self.state.ledger
        return {
            "sent": self.sent,
            # Their `audio_ms` shows how much of the same reply was sent before.
            "events": [
                each if each["type"] == "session.mark" else each | {"audio_ms": 0}
                for each in self.published.events()
            ],
            "ledger": ledger.state,
            "segments": [
                (segment.entry_id, segment.start, segment.size, segment.src)
                for segment in ledger.segments(0, ledger.read_bytes)
            ],
            "positions": (
                *(ledger.read_bytes, self.sender.session_bytes, self.sender.socket_bytes),
                *(self.ingest.cursor, self.ingest.end_reached),
                *(self.ingest.cut_short, self.ingest.turn_end_reached),
            ),
            "sender": (self.sender.is_drained, self.sender.has_room, self.sender.chunk_ms),
            "pauses": (self.ingest.last_entry_at, self.ingest.producer_idle_s(time.monotonic())),
            "levels": self.sender.sent_audio(self.sender.send_log.moment(time.monotonic()), 2_000)[
                :4
            ],
            "stats": (self.stats.chunks, self.stats.bytes, self.stats.chunks_repeated),
        }


def _paths(
    provider: Provider, speed: float, max_lag_s: float, encoding: Encoding, now_ms: int
) -> tuple[_Path, _Path]:
    return (
        _Path(now_ms, encoding, speed, max_lag_s, provider=provider),
        _Path(now_ms, encoding, speed, max_lag_s, provider=provider),
    )


ORDINARY = st.builds(
    lambda ms, seed: [b"audio", bytes((seed * at) % 251 for at in range(16 * ms))],
    st.sampled_from([20, 20, 100, 100, 100, 210, 250]),
    st.integers(1, 250),
)
SOUND = ORDINARY | st.binary(min_size=1, max_size=700).map(lambda audio: [b"audio", audio])
SIGNAL = st.sampled_from(
    [[b"mark", b'{"key":"5"}'], [b"mark", b"{}"], [b"mark", b"5"], [b"turn_end", b"1"]]
)
FIELDS = st.one_of(
    *[SOUND] * 3,
    SIGNAL,
    st.builds(lambda sound, signal: [*sound, *signal], SOUND, SIGNAL),
    st.builds(lambda sound, extra: [*sound, b"note", extra], SOUND, st.binary(max_size=3)),
    st.sampled_from(
        [
            [b"audio", b""],
            [b"end", b"1"],
            [b"config", b'{"turn_end_threshold":0.2}'],
            [b"config", b"[]"],
            [b"note", b"audio"],
        ]
    ),
)
SEQ = st.sampled_from(
    [*["next"] * 12, "same", "hole", "back", "none", "none", *["x", "-3", "007", "1" * 19, ""]]
)
SRC = st.sampled_from([*[b"a"] * 12, b"b", b"\xff", None, b"a" * 200])
APPEND = st.tuples(st.just("append"), FIELDS, SEQ, SRC, st.permutations(range(3)))
IN_ORDER = st.just([0, 1, 2])
STEPS = st.lists(
    st.one_of(
        *[
            st.tuples(
                st.just("append"), ORDINARY, st.just("next"), st.just(b"a"), st.just([0, 1, 2])
            )
        ]
        * 4,
        APPEND,
        *[st.tuples(st.just("read"), st.integers(1, 4))] * 4,
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 0.5, 7.0])),
        st.tuples(st.just("commit"), st.sampled_from([0.3, 0.9, 1.0])),
        st.tuples(st.just("tick")),
        st.tuples(st.just("drain")),
        st.tuples(st.just("block"), st.booleans()),
        st.tuples(st.just("lose socket")),
        st.tuples(st.just("odd id"), st.sampled_from(["early", "ahead"])),
    ),
    min_size=4,
    max_size=60,
)


class _Stream:
    """The session's audio stream, and the numbers of its producer."""

    def __init__(self) -> None:
        self.entries: Entries = []
        self._seq = 0
        self._last = (0, 0)

    def append(
        self, at_s: float, fields: list[bytes], seq: str, src: bytes | None, order: list[int]
    ) -> None:
        steps = {"next": 1, "same": 0, "hole": 4, "back": -6}
        pairs = [fields]
        if seq in steps:
            self._seq += steps[seq]
            pairs.append([b"seq", str(self._seq).encode()])
        elif seq != "none":
            pairs.append([b"seq", seq.encode()])
        if src is not None:
            pairs.append([b"src", src])
        row = [part for index in order if index < len(pairs) for part in pairs[index]]
        self._last = max((int(at_s * 1_000), 0), (self._last[0], self._last[1] + 1))
        self.entries.append([b"%d-%d" % self._last, row])

    def after(self, cursor: str, count: int) -> Entries:
        after = stream_ids.order(cursor)
        rest = [row for row in self.entries if stream_ids.order(row[0].decode()) > after]
        return rest[:count]


BEGINNING = [
    step
    for number in range(5)
    for step in (
        ("append", [b"audio", bytes([1, number]) * 800], "next", b"a", [0, 1, 2]),
        ("wait", 0.1),
        ("read", 1),
    )
]
"""Entries that are remembered for repeats; ordinary ones follow."""


@pytest.mark.parametrize("provider", [CARTESIA, FLUX], ids=lambda provider: provider.name)
@settings(max_examples=300)
@given(
    STEPS,
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from([Encoding.PCM_S16LE, Encoding.PCM_MULAW, Encoding.PCM_F32LE]),
)
def test_ordinary_entries_are_treated_as_all_others(
    provider: Provider,
    steps: list[tuple[Any, ...]],
    speed: float,
    max_lag_s: float,
    encoding: Encoding,
) -> None:
    clock = Clock()
    with patch("time.monotonic", clock.monotonic), patch("time.time", clock.time):
        now_ms = int(clock.time() * 1_000)
        paths = short, careful = _paths(provider, speed, max_lag_s, encoding, now_ms)
        stream = _Stream()
        passed_on = 0
        for step, *values in (*BEGINNING, *steps):
            if step == "append":
                stream.append(clock.time(), *values)
            elif step == "odd id":
                clock.now += 0.001
                stream.append(
                    1.0 if values == ["early"] and not stream.entries else clock.time() + 4_000,
                    *([b"audio", b"12"], "next", b"a", [0, 1, 2]),
                )
            elif step == "read" and not short.ingest.awaits_flush:
                entries = stream.after(short.ingest.cursor, *values)
                for path in paths:
                    path.ingest.poll_schedule.last_polled_at = clock.now
                if entries:
                    short.ingest.accept(entries, clock.now, live=True)
                    careful.ingest.examine(entries, clock.now, live=True)
                    passed_on += short.ingest.steady and len(entries)
            elif step == "wait":
                clock.now += values[0]
            else:
                for path in paths:
                    _act(path, step, clock.now, *values)
            for path in paths:
                path.sender.drain(clock.now)
            assert short.outcome == careful.outcome, step
        for path in paths:
            path.state.ledger.commit_to(path.state.ledger.read_bytes)
        assert short.outcome == careful.outcome, "everything is committed"
        event(f"steady reads: {min(passed_on, 5)}")


def _act(path: _Path, step: str, now: float, *values: Any) -> None:
    match step:
        case "commit":
            path.commit(*values)
        case "tick":
            path.ingest.note_sent(now)
            path.ingest.report_dropped()
        case "block":
            path.socket.blocked_since = now if values[0] else None
        case "lose socket":
            path.lose_socket()
            path.connect()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_ordinary_entries_take_the_short_way(order: tuple[int, ...]) -> None:
    clock = Clock()
    with patch("time.monotonic", clock.monotonic), patch("time.time", clock.time):
        path = _Path(int(clock.time() * 1_000), Encoding.PCM_S16LE, 2.0, 5.0)
        stream = _Stream()
        for number in range(8):
            clock.now += 0.1
            stream.append(
                clock.time(), [b"audio", bytes([1, number]) * 800], "next", b"a", [*order]
            )
            sent_before = len(path.sent)
            path.ingest.accept(stream.after(path.ingest.cursor, 1), clock.now, live=True)
            sent_at_once = len(path.sent) > sent_before
            assert sent_at_once == (number >= 5), "the first entries are remembered for repeats"
            path.sender.drain(clock.now)
        assert len(path.sent) == 9


def test_held_text_is_published_before_a_mark() -> None:
    clock = Clock()
    with patch("time.monotonic", clock.monotonic), patch("time.time", clock.time):
        path = _Path(int(clock.time() * 1_000), Encoding.PCM_S16LE, 2.0, 5.0, 2_000_000)
        path.ingest.accept([[b"1-0", [b"audio", bytes(1_600)]]], clock.now, live=True)
        path.sender.drain(clock.now)
        arrival = path.sender.send_log.moment(clock.now)
        for kind, text in (
            (ProviderInput.START, None),
            (ProviderInput.UPDATE, "a"),
            (ProviderInput.UPDATE, "a b"),
        ):
            path.receiver.on_turn_event(TurnEvent(kind, text), arrival)
        path.ingest.accept([[b"2-0", [b"mark", b"{}"]]], clock.now, live=True)
        events = path.published.events()
    kinds = [event["type"] for event in events if event["type"] != "session.error"]
    assert kinds == ["turn.start", "turn.update", "turn.update", "session.mark"]
    assert events[-2]["transcript"] == "a b"


def test_late_audio_before_a_forced_end_is_announced_before_it() -> None:
    """Nothing is left to flush: the turn ended where the late audio begins."""
    clock = Clock()
    with patch("time.monotonic", clock.monotonic), patch("time.time", clock.time):
        now_ms = int(clock.time() * 1_000)
        path = _Path(now_ms, Encoding.PCM_S16LE, 2.0, 5.0)
        fields = [b"audio", bytes(1_600), b"turn_end", b"1", b"mark", b"{}"]
        path.ingest.accept([[b"%d-0" % (now_ms - 9_000), fields]], clock.now, live=True)
        events = path.published.events()
    assert [event["type"] for event in events] == ["audio.gap", "session.mark"]
    assert (events[0]["missing_ms"], events[1]["audio_ms"]) == (100, 100)
    assert not path.ingest.awaits_flush


def test_forced_end_stops_the_reading_until_its_turn_is_over() -> None:
    clock = Clock()
    with patch("time.monotonic", clock.monotonic), patch("time.time", clock.time):
        now_ms = int(clock.time() * 1_000)
        path = _Path(now_ms, Encoding.PCM_S16LE, 0.0, 5.0)
        forced: Entries = [
            [b"%d-0" % now_ms, [b"audio", bytes(1_600)]],
            [b"%d-1" % now_ms, [b"turn_end", b"1"]],
            [b"%d-2" % now_ms, [b"audio", bytes(800)]],
        ]
        path.ingest.accept(forced, clock.now, live=True)
        assert path.ingest.turn_end_reached
        assert path.ingest.cursor == forced[1][0].decode()
        path.sender.drain(clock.now)
        path.receiver.commit_all_sent("forced")
        path.lose_socket()
        path.connect()
        path.ingest.accept(forced[1:], clock.now, live=True)
        assert not path.ingest.awaits_flush, "it is fulfilled"
        path.sender.drain(clock.now)
        start = TurnEvent(ProviderInput.START)
        path.receiver.on_turn_event(start, path.sender.send_log.moment(clock.now))
        path.lose_socket()
        path.connect()
        path.ingest.accept(forced[1:], clock.now, live=True)
        assert not path.ingest.awaits_flush, "the open turn began after it"


def test_audio_with_a_mark_ends_a_run_of_repeats() -> None:
    clock = Clock()
    with patch("time.monotonic", clock.monotonic), patch("time.time", clock.time):
        now_ms = int(clock.time() * 1_000)
        path = _Path(now_ms, Encoding.PCM_S16LE, 0.0, 5.0)
        numbers = [*range(1, 9), 6, 9]
        entries: Entries = [
            [b"%d-%d" % (now_ms, at), [b"audio", b"%d" % number * 800, b"seq", b"%d" % number]]
            for at, number in enumerate(numbers)
        ]
        path.ingest.accept(entries[:-1], clock.now, live=True)
        assert path.state.notices.repeating
        entries[-1][1] += [b"mark", b"{}"]
        path.ingest.accept(entries[-1:], clock.now, live=True)
        assert not path.state.notices.repeating
