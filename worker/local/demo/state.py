"""State of the demo, updated from the events. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    SessionMark,
    SessionStarted,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnStart,
    TurnUpdate,
)
from worker.local.demo.sessions import DemoSession
from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder

_FRAMES_PER_S: Final = 100
_KEEP_FRAMES: Final = 60 * _FRAMES_PER_S  # turns of older audio have ended
_PAUSE_FRAMES: Final = 30  # a shorter pause does not end speech
_CLICK_FRAMES: Final = 8  # a sound of at most this length is not speech
_SWING_DB: Final = 25.0  # speech varies by 20 dB
_QUIET_DB: Final = -60.0  # softer sound is not speech
_SURE_AFTER_S: Final = 0.3  # minimum silence before any recognizer ends a turn


class SpeechEnds:
    """Detects the ends of speech in one session's audio, by energy alone."""

    def __init__(self, audio: AudioFormat) -> None:
        self._decoder = PcmDecoder(audio)
        self._frame = audio.sample_rate // _FRAMES_PER_S
        self._rest = np.empty(0, np.float32)
        self._levels: NDArray[np.float32] = np.empty(0, np.float32)  # dB of each 10 ms
        self._first = 0  # number of frames dropped before these

    def add(self, chunk: bytes) -> None:
        """Append audio."""
        samples = np.concatenate((self._rest, self._decoder.decode(chunk)))
        whole = len(samples) // self._frame * self._frame
        self._rest = samples[whole:]
        frames = samples[:whole].reshape(-1, self._frame)
        levels = 10 * np.log10((frames**2).mean(axis=1) + 1e-9)
        self._levels = np.concatenate((self._levels, levels))
        over = len(self._levels) - _KEEP_FRAMES
        if over > 0:
            self._levels = self._levels[over:]
            self._first += over

    def ends(self) -> list[float]:
        """Return the ends of speech in the last minute, in seconds of the audio.

        Speech that has not ended yet is assumed to end with the last chunk.
        """
        if not len(self._levels):
            return []
        floor = max(float(np.percentile(self._levels, 95)) - _SWING_DB, _QUIET_DB)
        loud = np.flatnonzero(self._levels > floor)
        parts = np.split(loud, np.flatnonzero(np.diff(loud) > _PAUSE_FRAMES) + 1)
        return [
            (self._first + float(part[-1]) + 1) / _FRAMES_PER_S
            for part in parts
            if len(part) > _CLICK_FRAMES
        ]


@dataclass
class Turn:
    """One turn, as far as its events were read."""

    text: str = ""
    state: Literal["open", "eager", "ended"] = "open"
    eager_ends: list[str] = field(default_factory=list)
    """Text at each eager end."""
    resumes: int = 0
    end_delay_s: float | None = None
    """Delay from the end of speech until the demo reads `turn.end`."""


class SessionState:
    """State of one session."""

    def __init__(self, role: DemoSession) -> None:
        self.role = role
        self.turns: dict[int, Turn] = {}
        self.run = ""
        """Id of the session entry in Redis, once a worker owns the session."""
        self.workers: list[str] = []
        """Workers that owned the session, in order; the last one owns it now."""
        self.connections = 0
        self.missing_ms = 0
        self.errors: list[str] = []
        self.ended = False
        self._speech = SpeechEnds(role.line.format)
        self._sent: list[float] = []
        self._measured_s = 0.0

    @property
    def live(self) -> bool:
        """Whether the session has begun and not ended."""
        return bool(self.run) and not self.ended

    @property
    def in_turn(self) -> bool:
        """Whether a turn is open."""
        return any(turn.state != "ended" for turn in self.turns.values())

    @property
    def played(self) -> float:
        """Share of the audio sent, 0 to 1; if the duration is unknown, 0 until the end."""
        if self.role.seconds is None:
            return float(self.ended)
        return min(1.0, len(self._sent) * self.role.line.chunk_ms / 1000 / self.role.seconds)

    def sending(self, chunk: bytes, at: float) -> None:
        """Record that the next chunk is being sent, at this Unix time in seconds."""
        self._speech.add(chunk)
        self._sent.append(at)

    def end_delay(self, audio_ms: int, at: float) -> float | None:
        """Return the delay from the end of speech to `at`, for a turn that ended at `audio_ms`.

        None if there is no such end, or if it was returned before.
        """
        position_s = audio_ms / 1000
        for end in reversed(self._speech.ends()):
            # The position may be in the next turn, and after a pause in it. If the recognizer is
            # behind, the last pause before the position may not be the one that ended the turn.
            if self._measured_s < end < position_s and at - self._spoken_at(end) > _SURE_AFTER_S:
                self._measured_s = end
                return at - self._spoken_at(end)
        return None

    def _spoken_at(self, second: float) -> float:
        """Return the Unix time of a position in the audio: a chunk is sent once it is complete."""
        chunk_s = self.role.line.chunk_ms / 1000
        chunk = min(int(second / chunk_s), len(self._sent) - 1)
        return self._sent[chunk] - ((chunk + 1) * chunk_s - second)

    def on_event(self, event: Event, at: float) -> None:
        """Apply the next event, read at this Unix time."""
        self.connections = max(self.connections, event.connection)
        match event:
            case SessionStarted(run=run, worker=worker):
                self.run = run
                self.set_owner(worker)
            case TurnStart(turn=number):
                self.turns[number] = Turn()
            case TurnUpdate(turn=number, transcript=text):
                self.turns[number].text = text
            case TurnEagerEnd(turn=number, transcript=text):
                turn = self.turns[number]
                turn.text, turn.state = text, "eager"
                turn.eager_ends.append(text)
            case TurnResume(turn=number):
                self.turns[number].state = "open"
                self.turns[number].resumes += 1
            case TurnEnd(turn=number, transcript=text):
                turn = self.turns[number]
                turn.text, turn.state = text, "ended"
                turn.end_delay_s = self.end_delay(event.audio_ms, at)
            case AudioGap(missing_ms=missing):
                self.missing_ms += missing
            case SessionError(message=message):
                self.errors.append(message)
            case SessionMark():
                pass
            case SessionEnded():
                self.ended = True

    def set_owner(self, worker: str) -> bool:
        """Record the owner; return whether it changed."""
        news = not self.workers or self.workers[-1] != worker
        if news:
            self.workers.append(worker)
        return news


class DemoState:
    """State of all sessions and workers. Times are Unix seconds."""

    def __init__(self, cast: list[DemoSession], workers: tuple[str, ...], began_at: float) -> None:
        self.rows = {role.session: SessionState(role) for role in cast}
        self.workers = workers
        self.began_at = began_at
        self.killed: str | None = None
        self.killed_at = 0.0
        self.moved: list[str] = []
        """Sessions that moved from the killed worker to another."""
        self.moved_at = 0.0
        self.notices: list[tuple[float, str]] = []
        """Messages not caused by events, with their times."""

    @property
    def over(self) -> bool:
        """Whether every session has ended."""
        return all(row.ended for row in self.rows.values())

    def owned_by(self, worker: str) -> list[SessionState]:
        """Return the live sessions of a worker."""
        return [row for row in self.rows.values() if row.live and row.workers[-1] == worker]

    def busiest(self) -> str | None:
        """Return the worker that has the most open turns; None if there is no open turn."""
        load = {w: sum(row.in_turn for row in self.owned_by(w)) for w in self.workers}
        worker = max(load, key=lambda name: load[name])
        return worker if load[worker] else None

    def on_event(self, event: Event, at: float) -> None:
        """Apply the next event of the turns stream."""
        self.rows[event.session].on_event(event, at)

    def on_kill(self, worker: str, at: float) -> None:
        """Record that a worker was killed."""
        self.killed, self.killed_at = worker, at
        orphans = " ".join(row.role.session for row in self.owned_by(worker))
        self.notices.append((at, f"{worker} killed (SIGKILL) while it owned {orphans}"))

    def on_warning(self, text: str, at: float) -> None:
        """Record a warning about the audio."""
        self.notices.append((at, text))

    def set_owner(self, owners: Mapping[str, str], at: float) -> None:
        """Record the owners: id of a session's entry -> worker."""
        moved = [
            row.role.session
            for row in self.rows.values()
            if row.live and row.run in owners and row.set_owner(owners[row.run])
        ]
        if not moved:
            return
        notice = f"{self.rows[moved[0]].workers[-1]} took over {' '.join(moved)}"
        if self.killed is not None:
            self.moved += moved
            self.moved_at = at
            notice += f", {at - self.killed_at:.1f} s after the kill"
        self.notices.append((at, notice))
