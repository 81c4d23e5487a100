"""Simulation of one session in virtual time: long turns, and faults inside them.

The session with all its parts, its commits and the provider's script engine are real. Redis, the
sockets and the clocks are simulated. A new owner knows only what was committed.
"""

import asyncio
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple, cast
from unittest.mock import patch
from urllib.parse import urlsplit

import anyio
import msgspec

from schemas.audio import Encoding, SessionEntry
from schemas.keys import Keys
from tests.simulation.provider_model import Delays, Habits, WritingEngine
from tests.simulation.signals import Signal, draw_signals, signal_violations
from tests.simulation.sockets import ProviderSocket, SimulatedProvider
from tests.simulation.speech import AUDIO, BYTES_PER_MS, Speech, Word
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
from worker.local.emulator.engines.script import ScriptEngine
from worker.session.checkpoint import Checkpoint
from worker.session.session import Session
from worker.settings import Settings
from worker.stt.health import provider_health
from worker.stt.keys import ApiKey
from worker.stt.offers import offers
from worker.stt.provider import Endpoint, Provider, StreamSettings
from worker.stt.routes import PROVIDERS, Route
from worker.stt.stream import Stream
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.traces import Tracing

FaultKind = Literal[
    "cut", "outage", "silent", "stuck", "both", "kill", "stop", "partition", "redis"
]
"""Fault:

a lost socket, a provider outage, a half-open or a stuck provider, an outage of all providers,
SIGKILL, SIGTERM, a worker cut off from Redis, or a Redis outage for every client. With several
providers the one of the current socket fails.
"""

END_PAUSES_MS = (250.0, 400.0, 600.0)
"""Pauses after which one of several providers may end a turn; pauses in turns last up to 350 ms."""

WRITINGS: tuple[Callable[[str], str], ...] = (str, str.upper, "{}.".format, "({})".format)
"""How one of several providers may write a word. Such texts differ in length."""

COMMIT_SHARE = 0.1
"""Interval between commits while audio is sent, as a share of the limit."""

_MARKS = str.maketrans("", "", "().")

END_TIMEOUT_S = 600.0
"""Maximum time after the last word within which a session must end."""

_ENTRY = SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=AUDIO.sample_rate)

_ROUTES = {
    name: Route(provider, offers(Settings())[name], f"ws://{name}/", key=ApiKey(name, ""))
    for name, provider in PROVIDERS.items()
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
    providers: str = "cartesia"
    """Names of the providers, the preferred one first."""
    mixed: bool = False
    """Whether owners have the providers in different orders, and every third only the first."""
    short_turns: int = 1
    """Number of short turns before the long one, and after it."""
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
    """Moves between providers: whether to the second one (`away`) or to the first (`back`), and
    where (`inside` a turn or `between` turns)."""


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


class _World:
    """A session, its successive owners, and their environment."""

    def __init__(self, scenario: Scenario, *, signals: bool) -> None:
        self.scenario = scenario
        self.rng = rng = random.Random(repr(scenario))
        self.bus = _Bus()
        self.redis_away = self.redis_down = False
        self.redis_since = 0.0
        names = scenario.providers.split(",")
        self._providers = {
            name: SimulatedProvider(
                PROVIDERS[name], rng, _delays(scenario, PROVIDERS[name]), _habits(rng, names)
            )
            for name in names
        }
        self._stream: ProviderSocket | None = None
        self._cannot_send_since: float | None = virtual_time.BEGAN_S
        self._away_s = 0.0
        speech, self._turn_s = _draw_speech(rng, scenario)
        self._sound, self._words = speech.sound, speech.words
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
        name = urlsplit(endpoint.url).hostname or ""
        self._stream = await self._providers[name].connect(settings)
        self._resume_sending()
        return self._stream.stream

    # -- faults

    async def _inject_faults(self) -> None:
        """Inject faults of owners and Redis one after another, and those of providers meanwhile."""
        async with anyio.create_task_group() as tasks:
            for fault in self._faults:
                await anyio.sleep_until(virtual_time.BEGAN_S + fault.at_s)
                match fault.kind:
                    case "cut":
                        self._cut()
                    case "kill" | "stop":
                        await self._end_owner(fault)
                    case "partition" | "redis":
                        await self._part_redis(fault)
                    case _:
                        tasks.start_soon(self._fail_provider, fault)

    async def _end_owner(self, fault: Fault) -> None:
        self._releases = fault.kind == "stop"
        self._worker.dead = not self._releases
        self._next_owner_at = self.now + fault.seconds
        self._stop_sending()
        self._owned.cancel()
        await anyio.sleep(fault.seconds)

    async def _part_redis(self, fault: Fault) -> None:
        self.redis_away, self.redis_down = True, fault.kind == "redis"
        await anyio.sleep(fault.seconds)
        self.redis_away = self.redis_down = False
        self.redis_since = self.now
        self._away_s += fault.seconds

    async def _fail_provider(self, fault: Fault) -> None:
        failing = [*self._providers.values()] if fault.kind == "both" else [self._failing]
        for provider in failing:
            provider.away = fault.kind in ("outage", "both")
            provider.silent = fault.kind == "silent"
            provider.stuck = fault.kind == "stuck"
        if fault.kind in ("outage", "both"):
            self._cut()
        await anyio.sleep(fault.seconds)
        for provider in failing:
            provider.away = provider.silent = provider.stuck = False

    @property
    def _failing(self) -> SimulatedProvider:
        """The provider that a fault hits: that of the current socket, or the preferred one."""
        first = next(iter(self._providers.values()))
        return first if self._stream is None else self._stream.simulated

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
        keys, names = Keys(), [*self._providers]
        if self.scenario.mixed:
            names = (names, names[::-1], names[:1])[self._owners % 3]
        nothing: Any = None
        stats = Counters()
        host = WorkerContext(
            settings=Settings(worker_id=worker.nonce, max_lag_s=self.scenario.max_lag_s),
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
            breakers=Breakers(nothing, keys, worker.nonce, names, anyio.current_time),
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
            for word in event["transcript"].lower().translate(_MARKS).split()
        ]
        numbers = [int(word[1:]) for word in transcribed if word[:1] == "w" and word[1:].isdigit()]
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
        moves = tuple(_moves(events, next(iter(self._providers))))
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
    damaged = [word for word in transcribed if not word[1:].isdigit() or word[0] != "w"]
    if len(damaged) > 2 * partial:
        violations.append(f"{len(damaged)} damaged words, and only {partial} at the edge of a gap")
    return violations


def _moves(events: Sequence[dict[str, Any]], first: str) -> Iterator[str]:
    """Yield the moves between providers."""
    current, place = first, "between"
    for event in events:
        if event["type"] == "session.started":
            continue
        if event["provider"] != current:
            current = event["provider"]
            yield f"{'back' if current == first else 'away'} {place}"
        if event["type"] in ("turn.start", "turn.end"):
            place = "inside" if event["type"] == "turn.start" else "between"


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
                revised = event["type"] == "turn.end" and event["provider"] == "flux"
                if not open_turn or (len(event["transcript"]) < len(text) and not revised):
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


def _delays(scenario: Scenario, provider: Provider) -> Delays:
    """Return the delays of a provider's messages.

    Without the times of words a worker tolerates few late messages, so there are none then.
    """
    delays = Delays(scenario.lag_s, jitter_s=0.05)
    if not scenario.late_s or not provider.word_times:
        return delays
    mean_s = scenario.late_s / 2
    return delays._replace(late_share=0.03, late_s=mean_s, max_late_s=scenario.late_s)


def _habits(rng: random.Random, providers: Sequence[str]) -> Habits:
    """Draw the habits of one of several providers; a single one has the usual habits."""
    if len(providers) == 1:
        return Habits(ScriptEngine())
    end_pause_ms = rng.choice(END_PAUSES_MS)
    return Habits(WritingEngine(rng.choice(WRITINGS)), end_pause_ms)


def _draw_speech(rng: random.Random, scenario: Scenario) -> tuple[Speech, float]:
    """Draw a turn, a long one, a turn. Return also the duration of the long one in seconds."""
    speech = Speech()
    longest_ms = rng.uniform(*scenario.long_s) * scenario.max_lag_s * 1_000
    often = rng.choice((0, 3, 8, 15) if "," in scenario.providers else (0, 0, 15, 40))
    short = [rng.uniform(200, 3_000) for _ in range(2 * scenario.short_turns)]
    half = scenario.short_turns
    for turn_ms in (*short[:half], longest_ms, *short[half:]):
        until = speech.ms + turn_ms
        while speech.ms < until:
            speech.say(10 * rng.randint(5, 35) if often and rng.randrange(often) == 0 else 0)
        speech.pause(10 * rng.randint(80, 300))
    return speech, longest_ms / 1_000
