"""State of the demo, updated from the events. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    SessionStarted,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnStart,
    TurnUpdate,
)
from worker.local.demo.energy import SpeechEnds
from worker.local.demo.sessions import DemoSession

_SURE_AFTER_S: Final = 0.3  # minimum silence before any recognizer ends a turn


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
