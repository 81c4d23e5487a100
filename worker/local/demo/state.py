"""State of the demo, updated from the events. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

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
from worker.local.demo.speech_ends import SpeechEnds

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
    providers: list[str] = field(default_factory=list)
    """Providers of its events, in order."""

    @property
    def moved(self) -> bool:
        """Whether the turn moved from one provider to another."""
        return len(self.providers) > 1


class SessionState:
    """State of one session."""

    def __init__(self, role: DemoSession) -> None:
        self.role = role
        self.turns: dict[int, Turn] = {}
        self.run = ""
        """Id of the session entry in Redis, once a worker owns the session."""
        self.workers: list[str] = []
        """Workers that owned the session, in order; the last one owns it now."""
        self.providers: list[str] = []
        """Providers of its events, in order; the last one serves it now."""
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
    def has_text(self) -> bool:
        """Whether a turn is open and has text."""
        return any(turn.text for turn in self.turns.values() if turn.state != "ended")

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
        self._note_provider(event)

    def _note_provider(self, event: Event) -> None:
        if event.connection:
            _append_new(self.providers, event.provider)
        if isinstance(event, TurnStart | TurnUpdate | TurnEagerEnd | TurnResume | TurnEnd):
            _append_new(self.turns[event.turn].providers, event.provider)

    def set_owner(self, worker: str) -> bool:
        """Record the owner; return whether it changed."""
        return _append_new(self.workers, worker)


def _append_new(names: list[str], name: str) -> bool:
    """Append a name unless it is the last one; return whether it was appended."""
    news = not names or names[-1] != name
    if news:
        names.append(name)
    return news


class DemoState:
    """State of all sessions, workers and providers. Times are Unix seconds."""

    def __init__(
        self,
        cast: list[DemoSession],
        workers: tuple[str, ...],
        providers: tuple[str, ...],
        began_at: float,
    ) -> None:
        self.rows = {role.session: SessionState(role) for role in cast}
        self.workers = workers
        self.providers = providers
        self.began_at = began_at
        self.killed: str | None = None
        self.killed_at = 0.0
        self.moved: list[str] = []
        """Sessions that moved from the killed worker to another."""
        self.moved_at = 0.0
        self.failed: str | None = None
        """Provider that was killed."""
        self.failed_at = 0.0
        self.continued_at: dict[str, float] = {}
        """When each session first received an event of another provider."""
        self.back_at: float | None = None
        """When the killed provider was back."""
        self.avoided_at: float | None = None
        """When the breaker of the killed provider was open."""
        self.returned: list[str] = []
        """Sessions that the killed provider served again."""
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

    @property
    def away(self) -> str | None:
        """Provider that was killed and is not back."""
        return self.failed if self.back_at is None else None

    def served_by(self, provider: str) -> list[SessionState]:
        """Return the live sessions of a provider."""
        return [row for row in self.rows.values() if row.live and provider in row.providers[-1:]]

    def turns_with_text(self) -> list[SessionState]:
        """Return the sessions in which a turn is open and has text."""
        return [row for row in self.rows.values() if row.has_text]

    def on_event(self, event: Event, at: float) -> None:
        """Apply the next event of the turns stream."""
        row = self.rows[event.session]
        before = row.providers[-1:]
        row.on_event(event, at)
        if self.failed in before and row.providers[-1] != self.failed:
            self.continued_at[event.session] = at
            after = f"first event {at - self.failed_at:.1f} s after the kill"
            self.notices.append((at, f"{event.session} continues at {row.providers[-1]}: {after}"))
        elif self.back_at is not None and self.failed in row.providers[-1:] != before:
            self.returned.append(event.session)
            self.notices.append((at, f"{event.session} is at {self.failed} again"))

    def on_kill(self, worker: str, at: float) -> None:
        """Record that a worker was killed."""
        self.killed, self.killed_at = worker, at
        orphans = " ".join(row.role.session for row in self.owned_by(worker))
        self.notices.append((at, f"{worker} killed (SIGKILL) while it owned {orphans}"))

    def on_provider_kill(self, at: float) -> None:
        """Record that the preferred provider was killed."""
        self.failed, self.failed_at = self.providers[0], at
        inside = " ".join(row.role.session for row in self.turns_with_text())
        self.notices.append((at, f"{self.failed} killed (SIGKILL) inside a turn of {inside}"))

    def on_provider_back(self, at: float) -> None:
        """Record that the killed provider runs again."""
        self.back_at = at
        self.notices.append((at, f"{self.failed} runs again"))

    def set_avoided(self, at: float, *, avoided: bool) -> None:
        """Record whether the breaker of the killed provider is open."""
        if avoided and self.avoided_at is None:
            self.avoided_at = at
            text = f"the breaker of {self.failed} is open: new sockets go to {self.providers[1]}"
            self.notices.append((at, text))

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
