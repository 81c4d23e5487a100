"""The board: where every session stands, as told by the bus. Pure."""

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

_SURE_AFTER_S: Final = 0.3  # no recognizer ends a turn on less silence


@dataclass
class Turn:
    """One turn as far as it is known."""

    text: str = ""
    state: Literal["open", "eager", "ended"] = "open"
    eager_ends: list[str] = field(default_factory=list)
    """The text at each eager end."""
    resumes: int = 0
    end_delay_s: float | None = None
    """From the end of speech to our reading `turn.end`."""


class SessionState:
    """One session."""

    def __init__(self, role: DemoSession) -> None:
        self.role = role
        self.turns: dict[int, Turn] = {}
        self.run = ""
        """Id of its entry on the bus, once a worker has it."""
        self.workers: list[str] = []
        """Every worker that owned it, in order; the last one owns it now."""
        self.connections = 0
        self.missing_ms = 0
        self.errors: list[str] = []
        self.ended = False
        self._speech = SpeechEnds(role.line.format)
        self._sent: list[float] = []
        self._measured_s = 0.0

    @property
    def live(self) -> bool:
        """Whether it has begun and is not over."""
        return bool(self.run) and not self.ended

    @property
    def in_turn(self) -> bool:
        """Whether a turn is open."""
        return any(turn.state != "ended" for turn in self.turns.values())

    @property
    def played(self) -> float:
        """How much of its audio was sent, 0 to 1; 0 until its end where its length is unknown."""
        if self.role.seconds is None:
            return float(self.ended)
        return min(1.0, len(self._sent) * self.role.line.chunk_ms / 1000 / self.role.seconds)

    def sending(self, chunk: bytes, at: float) -> None:
        """Record that the next chunk is being sent, at this Unix time in seconds."""
        self._speech.add(chunk)
        self._sent.append(at)

    def end_delay(self, audio_ms: int, at: float) -> float | None:
        """Tell how long before `at` the speech ended whose turn ended `audio_ms` into the audio.

        None where there was no such end, or it was told of before.
        """
        heard_s = audio_ms / 1000
        for end in reversed(self._speech.ends()):
            # What was heard may reach into the next turn, and past a pause in it: where the
            # recognizer is behind, the last pause before is not always the one that it means.
            if self._measured_s < end < heard_s and at - self._spoken_at(end) > _SURE_AFTER_S:
                self._measured_s = end
                return at - self._spoken_at(end)
        return None

    def _spoken_at(self, second: float) -> float:
        """Tell the Unix time of a moment of the audio: a chunk is sent once it is complete."""
        chunk_s = self.role.line.chunk_ms / 1000
        chunk = min(int(second / chunk_s), len(self._sent) - 1)
        return self._sent[chunk] - ((chunk + 1) * chunk_s - second)

    def on_event(self, event: Event, at: float) -> None:
        """Take the next event, read at this Unix time."""
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
        """Take note of who owns it; tell whether that is news."""
        news = not self.workers or self.workers[-1] != worker
        if news:
            self.workers.append(worker)
        return news


class DemoState:
    """All sessions and workers. Times are Unix seconds."""

    def __init__(self, cast: list[DemoSession], workers: tuple[str, ...], began_at: float) -> None:
        self.rows = {role.session: SessionState(role) for role in cast}
        self.workers = workers
        self.began_at = began_at
        self.killed: str | None = None
        self.killed_at = 0.0
        self.moved: list[str] = []
        """Sessions that the killed worker had and another one owns now."""
        self.moved_at = 0.0
        self.notices: list[tuple[float, str]] = []
        """What happened beside the events, and when."""

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
        """Take the next event of the turns stream."""
        self.rows[event.session].on_event(event, at)

    def on_kill(self, worker: str, at: float) -> None:
        """Record that a worker was killed."""
        self.killed, self.killed_at = worker, at
        orphans = " ".join(row.role.session for row in self.owned_by(worker))
        self.notices.append((at, f"{worker} killed (SIGKILL) while it had {orphans}"))

    def set_owner(self, owners: Mapping[str, str], at: float) -> None:
        """Take who owns what: id of a session's entry -> worker."""
        moved = [
            row.role.session
            for row in self.rows.values()
            if row.live and row.run in owners and row.set_owner(owners[row.run])
        ]
        if not moved:
            return
        told = f"{self.rows[moved[0]].workers[-1]} took over {' '.join(moved)}"
        if self.killed is not None:
            self.moved += moved
            self.moved_at = at
            told += f", {at - self.killed_at:.1f} s after the kill"
        self.notices.append((at, told))
