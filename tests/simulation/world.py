"""Simulation of one session in virtual time: long turns, and faults inside them.

The session with all its parts, its commits and the provider's script engine are real. Redis, the
sockets and the clocks are simulated. A new owner knows only what was committed.
"""

import asyncio
import random
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple, Protocol, cast
from unittest.mock import patch

import anyio
import msgspec
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from schemas import cartesia
from schemas.audio import Encoding, SessionEntry
from schemas.keys import Keys
from tests.simulation.calls import AUDIO, BYTES_PER_MS, Word
from tests.simulation.lives import at_once
from tests.simulation.signals import Signal, draw_signals, signal_violations
from tests.support import virtual_time
from tests.support.commits import arguments_of
from worker.bus.audio_reader import AudioReader, Entries, LaneState
from worker.bus.breaker import Breakers
from worker.bus.client.connection import RedisHealth
from worker.bus.clock import RedisClock
from worker.bus.committer import CommitSource, Committer
from worker.bus.dead_letters import DeadLetterWriter
from worker.bus.ownership import Fence, OwnedSession, SessionLeases
from worker.bus.permits import ConnectionPermits
from worker.bus.registry import WorkerRegistry
from worker.bus.scripts import ScriptCall
from worker.context import WorkerContext
from worker.core import stream_ids
from worker.errors import SttTransientError
from worker.local.emulator.engines.base import EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptStream, synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS
from worker.local.emulator.providers.base import FLUSH
from worker.local.emulator.providers.flux import FluxSession
from worker.local.emulator.providers.flux_request import PATH, FluxRequest
from worker.local.emulator.settings import FluxSettings
from worker.session.checkpoint import Checkpoint
from worker.session.session import Session
from worker.settings import Settings
from worker.stt.cartesia import CARTESIA
from worker.stt.flux import FLUX
from worker.stt.frames import LenientProtocol
from worker.stt.health import provider_health
from worker.stt.keys import ApiKey
from worker.stt.offers import offers
from worker.stt.provider import Endpoint, StreamSettings
from worker.stt.routes import Route
from worker.stt.stream import Stream
from worker.stt.websocket import WebSocketClient
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.traces import Tracing

FaultKind = Literal["cut", "outage", "failing", "kill", "stop", "partition", "redis"]
"""Fault:

a lost socket, an outage of all providers, one of the current provider, SIGKILL, SIGTERM, a worker
cut off from Redis, or a Redis outage for every client.
"""

FAILOVER_S = 0.5
MIN_STAY_S = 1.0
"""How soon a session with several providers leaves one, and returns to one."""

COMMIT_SHARE = 0.1
"""Interval between commits while audio is sent, as a share of the limit."""

END_TIMEOUT_S = 600.0
"""Maximum time after the last word within which a session must end."""

_ENTRY = SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=AUDIO.sample_rate)

_ROUTES = {
    each.name: Route(each, offers(Settings())[each.name], each.name, key=ApiKey(each.name, ""))
    for each in (CARTESIA, FLUX)
}


class Fault(NamedTuple):
    """One fault."""

    at_s: float
    kind: FaultKind
    seconds: float
    """Duration, or the time until another worker owns the session."""


class Scenario(NamedTuple):
    """Parameters of a session and its faults: their repr is the random seed."""

    seed: int
    max_lag_s: float
    troubles: tuple[FaultKind, ...]
    """Faults, each injected once."""
    seconds: tuple[float, float] = (0.02, 0.5)
    """Minimum and maximum duration of a fault."""
    long_s: tuple[float, float] = (1.2, 4.0)
    """Duration of the long turn, as multiples of `max_lag_s`."""
    lag_s: float = 0.15
    """Lag of the provider."""
    late_s: float = 0.0
    """Maximum delay of single messages beyond the lag; those after them wait."""
    provider: str = "cartesia"
    """Names of the providers, the preferred one first."""
    earlier: bool = False
    """Whether workers of an earlier version, which does not commit what was sent, also run."""

    @property
    def tolerance_s(self) -> float:
        """Maximum lag of audio beyond the time in which it could not be sent.

        It covers the time to connect, and after a SIGKILL the time since the last commit.
        """
        kills = self.troubles.count("kill")
        return 1.0 + (0.5 + COMMIT_SHARE * self.max_lag_s) * kills


class Gap(NamedTuple):
    """Audio announced as missing, in milliseconds of the session."""

    begins: float
    ends: float


class Result(NamedTuple):
    """Result of a simulated session."""

    violations: tuple[str, ...]
    """Violated guarantees."""
    repeated: int
    """Number of words transcribed twice."""
    gap_s: float
    """Total duration of announced gaps."""
    away_s: float
    """Maximum time during which audio could not be sent."""
    turn_s: float
    """Duration of the longest turn."""
    moves: tuple[str, ...]
    """Providers of the sockets, one after another, of each pair of different ones: `from>to`."""


def simulate(scenario: Scenario, *, signals: bool = False) -> Result:
    """Run a scenario; `signals` is whether the producer numbers its entries and sends signals."""
    results = []

    async def play() -> None:
        world = _World(scenario, signals=signals)
        await world.run()
        results.append(world.result())

    virtual_time.run(play())
    return results[0]


class _Bus:
    """Redis, as one session uses it."""

    def __init__(self) -> None:
        self._orders: list[tuple[int, int]] = []  # order keys of the entry ids
        self._entries: Entries = []
        self._last = (0, 0)
        self.snapshot = msgspec.json.encode(Checkpoint())
        self.events: list[dict[str, Any]] = []
        self.owner = ""
        self.ended = anyio.Event()

    def append(self, at: float, fields: dict[bytes, bytes]) -> None:
        self._last = max((int(at * 1_000), 0), (self._last[0], self._last[1] + 1))
        self._orders.append(self._last)
        self._entries.append([b"%d-%d" % self._last, [*chain.from_iterable(fields.items())]])

    def read(self, after: str, count: int) -> Entries:
        first = bisect_right(self._orders, stream_ids.order(after))
        return self._entries[first : first + count]

    def apply(self, commit: ScriptCall) -> tuple[str, int]:
        named, events = arguments_of(commit)
        if named["nonce"] != self.owner:
            return "fenced", len(self.events)
        for seq, event in enumerate(events, named["first_seq"]):
            if seq == len(self.events) + 1:
                self.events.append(event)
        self.snapshot = named["snapshot"]
        if named["trim_before"]:
            trimmed = bisect_left(self._orders, stream_ids.order(named["trim_before"]))
            del self._orders[:trimmed], self._entries[:trimmed]
        if named["ending"]:
            self.ended.set()
        return "ok", len(self.events)


class _Worker:
    """Redis access of one owner: its reader, its committer, its clock."""

    def __init__(self, world: "_World", nonce: str) -> None:
        self.world, self.nonce = world, nonce
        self.dead = False
        self._lane = LaneState()
        self._wanting: set[CommitSource] = set()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    # as `AudioReader`

    def add(self, session: Session) -> None: ...

    def remove(self, session: Session) -> None: ...

    def poll_now(self, session: Session) -> None: ...

    def lane(self, name: str) -> LaneState:
        self._lane.up_since = self.world.redis_since
        return self._lane

    async def read(self, session: Session) -> None:
        world = self.world
        while True:
            await anyio.sleep(world.rng.uniform(0.005, 0.03))
            if world.redis_away or not session.wants_audio:
                continue
            began, epoch = world.now, session.rewinds
            entries = world.bus.read(session.cursor, 32)
            await anyio.sleep(0.001)
            if session.rewinds == epoch:
                session.poll_schedule.last_polled_at = began
                if entries:
                    session.feed(entries, world.now)

    # as `Committer`

    def submit(self, session: CommitSource) -> None:
        if session not in self._wanting:
            self._wanting.add(session)
            self._loop.call_later(self.world.rng.uniform(0.001, 0.02), self._send, session)

    def _send(self, session: CommitSource) -> None:
        self._wanting.discard(session)
        if self.dead:
            return
        if self.world.redis_away:
            self.submit(session)
            return
        commit = session.next_commit()
        if commit is not None:
            answer = self.world.bus.apply(commit)
            delay_s = self.world.rng.uniform(0.001, 0.02)
            self._loop.call_later(delay_s, self._answered, session, answer)

    def _answered(self, session: CommitSource, answer: tuple[str, int]) -> None:
        if not self.dead:
            session.on_commit_result(*answer)

    # as `RedisClock`

    asked = True

    @property
    def now(self) -> float:
        return self.world.wall

    def at(self, now: float) -> float:
        return self.world.wall + now - self.world.now

    def age_s(self, entry_id: str) -> float:
        return max(0.0, self.world.wall - stream_ids.milliseconds(entry_id) / 1_000)


class _Transport(asyncio.Transport):
    """The worker's end of the connection to `_Provider`."""

    def __init__(self, provider: "_Provider") -> None:
        super().__init__()
        self._provider = provider

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._provider.send(bytes(data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self._provider.later(0, self._provider.cut)

    abort = close


class _Protocol(Protocol):
    """What the provider behind a socket sends, as text."""

    def feed(self, audio: bytes) -> list[bytes]:
        """Process audio; return the messages that it causes."""
        ...

    def command(self, text: str) -> tuple[list[bytes], bool]:
        """Execute a command; return the messages, and whether the socket closes after them."""
        ...


class _Turns:
    """Cartesia's protocol."""

    def __init__(self, *, quick: bool) -> None:
        self._events: list[EngineEvent] = []
        self._engine = _engine(self._events.append, quick=quick)

    def feed(self, audio: bytes) -> list[bytes]:
        at_once(self._engine.feed(audio))
        return self._messages()

    def command(self, text: str) -> tuple[list[bytes], bool]:  # `close`
        at_once(self._engine.flush())
        return self._messages(), True

    def _messages(self) -> list[bytes]:
        messages = [msgspec.json.encode(_message_of(event)) for event in self._events]
        self._events.clear()
        return messages


class _Flux:
    """Flux's protocol: every message has times."""

    def __init__(self, query: str, *, quick: bool, upper: bool) -> None:
        request = FluxRequest(f"{PATH}?{query}", Headers({"Authorization": "Token any"}))
        self._session = FluxSession(FluxSettings(), request, "request")
        self._messages: list[bytes] = []
        self._engine = _engine(self._emit, quick=quick, upper=upper)

    def _emit(self, event: EngineEvent) -> None:
        admitted = self._session.admit(event)
        self._messages += [self._session.encode_event(each) for each in admitted]

    def feed(self, audio: bytes) -> list[bytes]:
        at_once(self._session.feed(self._engine, audio))
        return self._taken()

    def command(self, text: str) -> tuple[list[bytes], bool]:
        messages = self._messages
        running = self._session.command(text, self._engine, lambda reply: messages.append(reply()))
        closes = at_once(running) == FLUSH
        if closes:
            at_once(self._engine.flush())
        return self._taken(), closes

    def _taken(self) -> list[bytes]:
        messages = self._messages.copy()
        self._messages.clear()
        return messages


def _engine(
    emit: Callable[[EngineEvent], None], *, quick: bool, upper: bool = False
) -> ScriptStream:
    """Return an engine; a `quick` one ends turns at shorter pauses."""
    turn = TurnSettings(eager_end=0.75, end=0.6) if quick else TurnSettings()
    return ScriptStream(AUDIO, turn, WORD_MS, emit, str.upper if upper else str, None)


class _Provider:
    """One socket to the provider, and the provider behind it."""

    def __init__(self, world: "_World", route: Route, settings: StreamSettings) -> None:
        self.world = world
        self.net_s = world.rng.uniform(0.005, 0.03)
        line = LenientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None)
        self.socket = WebSocketClient(line, {})
        self.socket._transport = _Transport(self)
        kind = route.provider.stream
        self.stream = kind(route.provider, self.socket, Endpoint("", "", ""), settings)
        self.stream.request_id = "request"
        self.stream.accepted = True
        # Of two providers, each words and divides the turns in its own way.
        several, flux = "," in world.scenario.provider, route.provider is FLUX
        quick = several and flux is (world.scenario.seed % 2 == 0)
        self._protocol: _Protocol = (
            _Flux(kind.query(settings), quick=quick, upper=several) if flux else _Turns(quick=quick)
        )
        self._peer = ServerProtocol(state=State.OPEN, max_size=None)
        self._up: deque[bytes] = deque()
        self._down: deque[bytes | None] = deque()
        self._sent_at = 0.0

    def later(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(delay_s, act, *args)

    def cut(self) -> None:
        self._up.clear()
        self._down.clear()
        self.socket.connection_lost(None)

    def send(self, data: bytes) -> None:
        self._up.append(data)
        self.later(self.net_s, self._process)

    def _process(self) -> None:
        if not self._up:
            return  # the socket was lost meanwhile
        self._peer.receive_data(self._up.popleft())
        for event in self._peer.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                self._reply(self._protocol.feed(bytes(event.data)))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                messages, closes = self._protocol.command(bytes(event.data).decode())
                self._reply([*messages, None] if closes else messages)
        self._send()

    def _reply(self, replies: Sequence[bytes | None]) -> None:
        scenario, rng = self.world.scenario, self.world.rng
        self._down.extend(replies)
        for _ in replies:
            lag_s = scenario.lag_s + rng.uniform(0, 0.05)
            if scenario.late_s and rng.random() < 0.03:
                lag_s += rng.uniform(0, scenario.late_s)
            self._sent_at = max(self.world.now + lag_s, self._sent_at + 0.00005)
            self.later(self._sent_at - self.world.now, self._deliver)

    def _deliver(self) -> None:
        if self._down:
            message = self._down.popleft()
            if message is None:
                self._peer.send_close(1000)
            else:
                self._peer.send_text(message)
            self._send()

    def _send(self) -> None:
        for data in self._peer.data_to_send():
            self.socket.data_received(data)


def _message_of(event: EngineEvent) -> cartesia.ServerMessage:
    text: Any = {} if event.transcript is None else {"transcript": event.transcript}
    return cartesia.KNOWN[event.kind](**text)


class _World:
    """A session, its successive owners, and their environment."""

    def __init__(self, scenario: Scenario, *, signals: bool) -> None:
        self.scenario = scenario
        self.rng = rng = random.Random(repr(scenario))
        self.bus = _Bus()
        self.redis_away = self.redis_down = False
        self.redis_since = 0.0
        self._provider_away = False
        self._failing = ""  # name of the provider that refuses connects
        self._providers: list[str] = []  # of all sockets
        self._stream: _Provider | None = None
        self._cannot_send_since: float | None = virtual_time.BEGAN_S
        self._away_s = 0.0
        self._sound, self._words, self._turn_s = _speech(rng, scenario)
        self._signals = draw_signals(rng, self._words) if signals else []
        self._seq = 0
        speech_s = len(self._sound) / BYTES_PER_MS / 1_000
        self._faults = sorted(
            Fault(rng.uniform(0.5, speech_s), kind, rng.uniform(*scenario.seconds))
            for kind in scenario.troubles
        )
        self._owned = anyio.CancelScope()
        self._worker = _Worker(self, "")
        self._releases = False
        self._next_owner_at = 0.0
        self._owners = 0

    @property
    def now(self) -> float:
        return anyio.current_time()

    @property
    def wall(self) -> float:
        return virtual_time.BEGAN_AT + self.now - virtual_time.BEGAN_S

    async def run(self) -> None:
        with (
            patch("worker.stt.provider.Provider.open", self._open),
            patch("worker.core.provider_errors._RNG", self.rng),
            patch("worker.core.breaker._RNG", self.rng),
            patch("worker.core.failover.MIN_STAY_S", MIN_STAY_S),
            patch("worker.session.providers.MIN_STAY_S", MIN_STAY_S),
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._produce)
                tasks.start_soon(self._inject_faults)
                tasks.start_soon(self._own)
                limit_s = len(self._sound) / BYTES_PER_MS / 1_000 + END_TIMEOUT_S
                with anyio.move_on_after(limit_s):
                    await self.bus.ended.wait()
                    await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()

    async def _produce(self) -> None:
        ms, begin = len(self._sound) // BYTES_PER_MS, 0
        chunk_ms = self.rng.choice((20, 40, 100, 200, 0))
        while begin < ms:
            end = min(ms, begin + (chunk_ms or self.rng.randint(20, 200)))
            end = min(
                (each.at_ms for each in self._signals if begin < each.at_ms < end), default=end
            )
            late_s = self.rng.uniform(0.002, 0.02)
            await anyio.sleep_until(virtual_time.BEGAN_S + end / 1_000 + late_s)
            audio = self._sound[begin * BYTES_PER_MS : end * BYTES_PER_MS]
            await self._append_audio(audio, [each for each in self._signals if each.at_ms == end])
            begin = end
        await self._append({b"end": b"1"})

    async def _append_audio(self, audio: bytes, signals: Sequence[Signal]) -> None:
        """Append a chunk, and the signals at its end; some appends are retried."""
        entries: list[dict[bytes, bytes]] = [{b"audio": audio}]
        for signal in signals:
            if signal.with_audio and not signal.fields.keys() & entries[-1].keys():
                entries[-1] |= signal.fields
            else:
                entries.append(signal.fields)
        for fields in entries:
            if self._signals:
                self._seq += 1
                fields |= {b"seq": b"%d" % self._seq, b"src": b"producer"}
            await self._append(fields)
            if self._signals and self.rng.random() < 0.1:
                await self._append(fields)

    async def _append(self, fields: dict[bytes, bytes]) -> None:
        while self.redis_down:
            await anyio.sleep(0.01)
        self.bus.append(self.wall, fields)

    async def _open(self, endpoint: Endpoint, settings: StreamSettings, _notes: object) -> Stream:
        await anyio.sleep(self.rng.uniform(0.005, 0.05))
        if self._provider_away or endpoint.url == self._failing:
            raise SttTransientError("HTTP 503", status=503)
        self._providers.append(endpoint.url)
        self._stream = _Provider(self, _ROUTES[endpoint.url], settings)
        self._resume_sending()
        return self._stream.stream

    # -- faults

    async def _inject_faults(self) -> None:
        for fault in self._faults:
            await anyio.sleep_until(virtual_time.BEGAN_S + fault.at_s)
            match fault.kind:
                case "cut":
                    self._cut()
                case "outage":
                    self._provider_away = True
                    self._cut()
                    await anyio.sleep(fault.seconds)
                    self._provider_away = False
                case "failing":
                    self._failing = self._providers[-1] if self._providers else ""
                    self._cut()
                    await anyio.sleep(fault.seconds)
                    self._failing = ""
                case "kill" | "stop":
                    self._releases = fault.kind == "stop"
                    self._worker.dead = not self._releases
                    self._next_owner_at = self.now + fault.seconds
                    self._stop_sending()
                    self._owned.cancel()
                    await anyio.sleep(fault.seconds)
                case "partition" | "redis":
                    self.redis_away, self.redis_down = True, fault.kind == "redis"
                    await anyio.sleep(fault.seconds)
                    self.redis_away = self.redis_down = False
                    self.redis_since = self.now
                    self._away_s += fault.seconds

    def _cut(self) -> None:
        if self._stream is not None:
            self._stream.cut()
        self._stop_sending()

    def _stop_sending(self) -> None:
        if self._cannot_send_since is None:
            self._cannot_send_since = self.now

    def _resume_sending(self) -> None:
        if self._cannot_send_since is not None:
            self._away_s += self.now - self._cannot_send_since
            self._cannot_send_since = None

    # -- owners

    async def _own(self) -> None:
        while not self.bus.ended.is_set():
            await anyio.sleep_until(self._next_owner_at)
            while self.redis_away:
                await anyio.sleep(0.01)
            self._owners += 1
            worker = self._worker = _Worker(self, f"owner-{self._owners}")
            self.bus.owner = worker.nonce
            fence = Fence("1-0", self._owners, worker.nonce)
            state = msgspec.json.decode(self.bus.snapshot)
            if self.scenario.earlier:
                state.pop("sent", None)
            checkpoint = msgspec.json.decode(msgspec.json.encode(state), type=Checkpoint)
            host = self._host(worker)
            seq = len(self.bus.events)
            session = Session(host, OwnedSession(_ENTRY, fence, "1-0", {}), seq, checkpoint)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.read, session)
                tasks.start_soon(self._tick, session, host)
                tasks.start_soon(host.backlog.run)
                with anyio.CancelScope() as self._owned:
                    await session.run()
                if self._releases and not self.bus.ended.is_set():
                    self._releases = False
                    await session.wait_committed()
                worker.dead = True
                tasks.cancel_scope.cancel()
            if self._stream is not None:
                self._stream.cut()

    async def _tick(self, session: Session, host: WorkerContext) -> None:
        while True:
            await anyio.sleep(0.1)
            host.stalls.tick(self.now)
            if session.is_due(self.now):
                session.tick(self.now)

    def _host(self, worker: _Worker) -> WorkerContext:
        health = RedisHealth()
        keys = Keys()
        nothing: Any = None
        stats = Counters()
        names = self.scenario.provider.split(",")
        host = WorkerContext(
            settings=Settings(
                worker_id=worker.nonce,
                max_lag_s=self.scenario.max_lag_s,
                stt_failover_s=FAILOVER_S,
            ),
            redis=nothing,
            keys=keys,
            health=health,
            clock=cast("RedisClock", worker),
            leases=cast("SessionLeases", nothing),
            reader=cast("AudioReader", worker),
            committer=cast("Committer", worker),
            permits=ConnectionPermits(nothing, health, keys, 0),
            registry=cast("WorkerRegistry", nothing),
            routes=[_ROUTES[name] for name in names],
            provider_health=provider_health(names),
            breakers=Breakers(nothing, keys, worker.nonce, names, lambda: self.now),
            dead_letters=cast("DeadLetterWriter", nothing),
            tracing=Tracing(),
            stats=stats,
            supervisor=Supervisor(stats.internal_errors),
        )
        host.provider_lag.seed(self.scenario.lag_s + 0.06)
        return host

    # -- the result

    def result(self) -> Result:
        events = self.bus.events
        violations: list[str] = [] if self.bus.ended.is_set() else ["the session did not end"]
        gaps = []
        for event in events:
            if event["type"] == "audio.gap":
                gaps.append(Gap(event["audio_ms"] - event["missing_ms"], event["audio_ms"]))
                if event["reason"] != "backlog":
                    violations.append(f"a gap of reason {event['reason']}")
            elif event["type"] == "session.error" and event["code"] != "stt_unavailable":
                violations.append(f"an error: {event['message']}")
        transcribed = [
            word
            for event in events
            if event["type"] == "turn.end"
            for word in event["transcript"].lower().split()
        ]
        numbers = [int(word[1:]) for word in transcribed if word.startswith("w")]
        violations += _word_violations(self._words, transcribed, numbers, gaps)
        violations += _order_violations(events)
        violations += signal_violations(self._signals, events, gaps=bool(gaps))
        gap_s = sum(gap.ends - gap.begins for gap in gaps) / 1_000
        limit_s, away_s = self.scenario.max_lag_s, self._away_s
        if gaps and not (0 < limit_s < away_s + self.scenario.tolerance_s):
            violations.append(f"{gap_s:g} s are announced, though nothing was late")
        if gap_s > away_s + 0.5:
            violations.append(
                f"{gap_s:g} s are announced, and nothing could be sent for {away_s:g} s"
            )
        repeated = len(numbers) - len(set(numbers))
        moves = tuple(f"{one}>{other}" for one, other in pairwise(self._providers) if one != other)
        return Result(tuple(violations), repeated, gap_s, away_s, self._turn_s, moves)


def _word_violations(
    words: Sequence[Word], transcribed: Sequence[str], numbers: Sequence[int], gaps: Sequence[Gap]
) -> list[str]:
    """Compare every word with the gaps: it is transcribed once, or announced as missing."""
    violations = [
        f"word {word} is transcribed twice" for word in set(numbers) if numbers.count(word) > 1
    ]
    if list(numbers) != sorted(numbers):
        violations.append("words are out of order")
    if any(gap.begins < before.ends for before, gap in pairwise(gaps)):
        violations.append(f"gaps overlap: {gaps}")
    partial = 0
    for number, word in enumerate(words):
        # A gap is announced in whole milliseconds: it may begin one earlier, and end one later.
        surely_ms, missing_ms = (
            sum(
                max(0.0, min(word.ends, gap.ends + off) - max(word.begins, gap.begins - off))
                for gap in gaps
            )
            for off in (0, 1)
        )
        if number in numbers and missing_ms > 2:
            violations.append(
                f"word {number} is transcribed, and {missing_ms:g} ms of it announced"
            )
        if number not in numbers and missing_ms <= 2 and not {f"!{number}", "!?"} & {*transcribed}:
            violations.append(f"word {number} is lost")
        partial += missing_ms > 0 and surely_ms < word.ends - word.begins
    damaged = [word for word in transcribed if not word.startswith("w")]
    if len(damaged) > 2 * partial:
        violations.append(f"{len(damaged)} damaged words, and only {partial} at the edge of a gap")
    return violations


def _order_violations(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the violations of event order."""
    violations = []
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        violations.append("seq has a hole")
    open_turn, turn, text = False, 0, ""
    for event in events:
        match event["type"]:
            case "turn.start":
                if open_turn or event["turn"] != turn:
                    violations.append(f"turn {event['turn']} starts in the place of {turn}")
                open_turn, text = True, ""
            case "turn.update" | "turn.eager_end" | "turn.end":
                if not open_turn or len(event["transcript"]) < len(text):
                    violations.append(
                        f"turn {event['turn']}: {event['type']} of less text, or no turn"
                    )
                text = event["transcript"]
                if event["type"] == "turn.end":
                    open_turn, turn = False, turn + 1
            case _:
                pass
    if open_turn:
        violations.append("a turn is left open")
    return violations


def _speech(rng: random.Random, scenario: Scenario) -> tuple[bytes, list[Word], float]:
    """Generate speech: a turn, a long one, a turn. Return also the duration of the long one."""
    sound, words, ms = [synthesize_silence(400, AUDIO)], list[Word](), 400
    longest_ms = rng.uniform(*scenario.long_s) * scenario.max_lag_s * 1_000
    often = rng.choice((0, 0, 15, 40))
    for turn_ms in (rng.uniform(200, 3_000), longest_ms, rng.uniform(200, 3_000)):
        until = ms + turn_ms
        while ms < until:
            pause_ms = 10 * rng.randint(5, 35) if often and rng.randrange(often) == 0 else 0
            sound += [synthesize_words([len(words)], AUDIO), synthesize_silence(pause_ms, AUDIO)]
            words.append(Word(ms, ms + round(WORD_MS)))
            ms += round(WORD_MS) + pause_ms
        pause_ms = 10 * rng.randint(80, 300)
        sound.append(synthesize_silence(pause_ms, AUDIO))
        ms += pause_ms
    return b"".join(sound), words, longest_ms / 1_000
