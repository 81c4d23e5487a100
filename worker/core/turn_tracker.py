"""The turn tracker: what consumers are told, given what the provider says.

Two views of the turn are kept. `Shown` is the consumers' view and outlives sockets and workers;
`Heard` is the provider's on the current socket, and starts afresh with every socket. While both
agree the tracker passes events through; where they differ (a new socket hears an open turn again,
or the provider breaks its own rules) the table below decides, so that consumers always see each
turn start once, end once, and never shrink.

Positions are bytes of the session's own audio fed to the recognizer when the event arrived.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Literal

import msgspec
from msgspec.structs import replace

from worker.core.transcripts import (
    covers,
    is_blank,
    join,
    leading_space,
    new_text,
    same_but_space,
    says_more,
    without_leading_space,
    without_trailing_space,
    word_count,
)

DraftKind = Literal["turn.start", "turn.update", "turn.eager_end", "turn.resume", "turn.end"]
EndReason = Literal["model", "close", "watchdog"]


class EventDraft(msgspec.Struct, frozen=True):
    """An event to publish, before it is numbered and stamped."""

    kind: DraftKind
    turn: int
    transcript: str | None = None
    reason: EndReason | None = None


class PublishedState(Enum):
    """What consumers believe."""

    NONE = "none"
    SPEAKING = "speaking"
    EAGER = "eager"


class ProviderState(Enum):
    """What the provider believes on the current socket."""

    NONE = "none"
    SPEAKING = "speaking"
    EAGER = "eager"


class ProviderInput(Enum):
    """What the provider can say about a turn."""

    START = "turn.start"
    UPDATE = "turn.update"
    EAGER_END = "turn.eager_end"
    RESUME = "turn.resume"
    END = "turn.end"


class Action(Enum):
    """What the tracker does about it."""

    START = "publish the start of a turn"
    REPLAY_START = "hear the open turn again, publish nothing"
    UPDATE = "publish the text if it grew, after a resume if the end had been announced"
    EAGER_END = "publish an eager end if it is news"
    RESUME = "publish a resume if the eager end was published"
    END = "publish the end, unless a replay has not yet come far enough"
    VIOLATION = "ignore and count: the provider broke its rules"


_OPEN = (PublishedState.SPEAKING, PublishedState.EAGER)
_HEARING = (ProviderState.SPEAKING, ProviderState.EAGER)

TABLE: Mapping[tuple[PublishedState, ProviderState, ProviderInput], Action] = {
    # No turn anywhere: only a start means anything.
    (PublishedState.NONE, ProviderState.NONE, ProviderInput.START): Action.START,
    # Consumers have an open turn that this socket has not heard yet: a replay.
    **{(shown, ProviderState.NONE, ProviderInput.START): Action.REPLAY_START for shown in _OPEN},
    # Both are inside the turn.
    **{
        (shown, heard, ProviderInput.UPDATE): Action.UPDATE for shown in _OPEN for heard in _HEARING
    },
    **{
        (shown, heard, ProviderInput.EAGER_END): Action.EAGER_END
        for shown in _OPEN
        for heard in _HEARING
    },
    **{(shown, ProviderState.EAGER, ProviderInput.RESUME): Action.RESUME for shown in _OPEN},
    **{(shown, heard, ProviderInput.END): Action.END for shown in _OPEN for heard in _HEARING},
}
"""Shown x Heard x Input -> Action. A pair that is absent is a `VIOLATION`."""


class OpenTurn(msgspec.Struct, frozen=True, omit_defaults=True):
    """The open turn as consumers know it: what a new owner must continue."""

    transcript: str = ""
    """Longest text published."""
    transcript_position: int = msgspec.field(name="mark", default=0)
    """Position at which that text arrived."""
    eager: bool = False
    """An eager end is published and neither resumed nor ended."""
    eager_transcript: str | None = None
    """Text of the last published eager end of this turn."""
    committed_text: str = msgspec.field(name="settled", default="")
    """What its audio before the committed position was transcribed to."""
    parting: str | None = None
    """What the provider put between that and the next word; None if it is not known."""


class TurnState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What survives the worker: the number of the next or open turn, and the open turn."""

    turn: int = 0
    open: OpenTurn | None = None


class TurnTracker:
    """Feeds on provider events, gives drafts to publish."""

    def __init__(self, state: TurnState | None = None, jitter: int = 0) -> None:
        """`jitter` is by how many positions the service may lag more on one socket than another."""
        self.state = state or TurnState()
        self._jitter = jitter
        self.violations = 0
        """Provider events that broke the protocol's own rules and were ignored."""
        self._proposed = False  # the provider's eager end is one that consumers saw
        self.socket_opened()

    @property
    def open(self) -> bool:
        """A turn is open for consumers."""
        return self.state.open is not None

    @property
    def provider_in_turn(self) -> bool:
        """A turn is open for the provider on this socket."""
        return self._provider is not ProviderState.NONE

    @property
    def grows(self) -> bool:
        """Whether an update can only add to the text: nothing is proposed or heard again."""
        return (
            self.published is PublishedState.SPEAKING
            and self.provider_in_turn
            and not self._replaying
        )

    @property
    def last_growth(self) -> int:
        """Position at which the open turn's text last grew; 0 without an open turn."""
        return self.state.open.transcript_position if self.state.open else 0

    @property
    def published(self) -> PublishedState:
        """The consumers' view."""
        if self.state.open is None:
            return PublishedState.NONE
        return PublishedState.EAGER if self.state.open.eager else PublishedState.SPEAKING

    def socket_opened(self) -> None:
        """Begin on a new socket: the provider knows nothing of an open turn."""
        self._provider = ProviderState.NONE
        # What of the turn this provider turn does not hear: what was settled before the socket
        # opened, and provider turns that a replay ended too early.
        self._prefix = self.state.open.committed_text if self.state.open else ""
        self._parting = self.state.open.parting if self.state.open else None
        self._continued = False  # the provider ended its turn, and goes on in the next
        self._is_replay = self.open  # the open turn was begun on another socket
        self._replaying = self.open  # what consumers saw is being heard again
        self._caught_up = word_count(self._prefix)  # words that say again what consumers saw

    def on_input(self, said: ProviderInput, text: str | None, position: int) -> list[EventDraft]:
        """Take one provider event and return what to publish. `text` is None without text."""
        match TABLE.get((self.published, self._provider, said), Action.VIOLATION):
            case Action.START:
                self._provider = ProviderState.SPEAKING
                self.state = TurnState(self.state.turn, OpenTurn(transcript_position=position))
                return [EventDraft("turn.start", self.state.turn)]
            case Action.REPLAY_START:
                self._provider = ProviderState.SPEAKING
                return []
            case Action.UPDATE:
                return self._update(self.full_transcript(text or ""), position)
            case Action.EAGER_END:
                return self._eager_end(self.full_transcript(text or ""), position)
            case Action.RESUME:
                return self._resume()
            case Action.END:
                return self._end(self.full_transcript(text or ""), position, "model")
            case Action.VIOLATION:
                self.violations += 1
                return []

    def will_end(self, text: str, position: int) -> bool:
        """Say whether a provider `turn.end` with this text and position would end the turn."""
        action = TABLE.get((self.published, self._provider, ProviderInput.END))
        return action is Action.END and self._replay_caught_up(self.full_transcript(text), position)

    def force_end(self, reason: EndReason) -> list[EventDraft]:
        """End the open turn, if any, with the longest text known."""
        if self.state.open is None:
            return []
        known = self.state.open.transcript
        # A replay that ended early may have heard more than what was published.
        return self._close(self._prefix if covers(self._prefix, known) else known, reason)

    def commit_prefix(self, text: str, parting: str | None = None) -> None:
        """Note that the audio that `text`, said of the open turn, covers will not be heard again.

        A new socket goes on after it. `parting` is what the provider put between `text` and the
        next word; by default, what consumers saw there.
        """
        known = self.state.open
        if known is None:
            return
        rest = known.transcript[len(text) :]
        if parting is None and known.transcript.startswith(text) and not is_blank(rest):
            parting = leading_space(rest)
        self._revise(replace(known, committed_text=text, parting=parting))

    def full_transcript(self, text: str) -> str:
        """Return the open turn's text, given what the provider says of its turn on this socket.

        On a new socket the provider knows nothing of what was before, so the white space before
        its text is not that of the open turn; what the open turn had in its place is.
        """
        before, known = self._prefix, self._known.transcript if self.open else ""
        if is_blank(text):
            return before or text
        if self._continued:
            begun = without_trailing_space(before)
            space = leading_space(known[len(begun) :]) if known.startswith(begun) else ""
            return begun + space + without_leading_space(text) if space else before + text
        if before and self._parting is None:
            return join(before, text)
        if before:
            return f"{before}{self._parting}{without_leading_space(text)}"
        if self._is_replay and not is_blank(known):
            return leading_space(known) + without_leading_space(text)
        return text

    def _merged(self, text: str, position: int) -> str:
        """Return what consumers should see of the turn by now: never less than they saw."""
        known = self._known
        if not self._is_replay:
            return text if covers(text, known.transcript) else known.transcript
        words = word_count(text)
        if position <= known.transcript_position + self._jitter:
            self._caught_up = words
        if not self._replay_caught_up(text, position):
            return known.transcript
        caught_up, self._caught_up = self._caught_up, words
        alike = text.startswith(without_trailing_space(known.transcript))
        if says_more(text, known.transcript) or (alike and covers(text, known.transcript)):
            return text
        # Worded shorter than before, and yet it may say more.
        return join(known.transcript, new_text(known.transcript, text, caught_up))

    def _replay_caught_up(self, text: str, position: int) -> bool:
        """Tell whether a replay has caught up with what consumers saw."""
        known = self._known
        return position >= known.transcript_position or text.startswith(
            without_trailing_space(known.transcript)
        )

    @property
    def _known(self) -> OpenTurn:
        if self.state.open is None:
            raise AssertionError("the table asks about an open turn only")
        return self.state.open

    def _revise(self, known: OpenTurn) -> None:
        self.state = TurnState(self.state.turn, known)

    def _update(self, text: str, position: int) -> list[EventDraft]:
        known = self._known
        shown = self._merged(text, position)
        if not says_more(shown, known.transcript):
            return []
        self._replaying = False
        drafts = [EventDraft("turn.update", self.state.turn, shown)]
        if known.eager:
            drafts.insert(0, EventDraft("turn.resume", self.state.turn))
        self._revise(replace(known, transcript=shown, transcript_position=position, eager=False))
        return drafts

    def _eager_end(self, text: str, position: int) -> list[EventDraft]:
        known = self._known
        self._provider = ProviderState.EAGER
        shown = self._merged(text, position)
        grown = says_more(shown, known.transcript)
        # Lag differs from socket to socket, so the position alone does not tell an old proposal.
        begun = without_trailing_space(text)
        old = (
            self._replaying
            and begun != without_trailing_space(known.transcript)
            and known.transcript.startswith(begun)
        )
        self._proposed = self._replay_caught_up(text, position) and not old
        if not self._proposed:
            return []
        seen = known.eager_transcript
        if seen is not None and same_but_space(shown, seen) and (known.eager or self._replaying):
            return []  # consumers have this very proposal already
        drafts = [EventDraft("turn.eager_end", self.state.turn, shown)]
        if known.eager:
            drafts.insert(0, EventDraft("turn.resume", self.state.turn))
        self._revise(
            replace(
                known,
                transcript=shown,
                transcript_position=position if grown else known.transcript_position,
                eager=True,
                eager_transcript=shown,
            )
        )
        return drafts

    def _resume(self) -> list[EventDraft]:
        known = self._known
        self._provider = ProviderState.SPEAKING
        if not (known.eager and self._proposed):
            return []
        self._revise(replace(known, eager=False))
        return [EventDraft("turn.resume", self.state.turn)]

    def _end(self, text: str, position: int, reason: EndReason) -> list[EventDraft]:
        if not self._replay_caught_up(text, position):
            # The replay broke the turn where consumers saw it go on: its next turn continues.
            self._prefix, self._continued = text, True
            self._provider = ProviderState.NONE
            return []
        return self._close(self._merged(text, position), reason)

    def _close(self, text: str, reason: EndReason) -> list[EventDraft]:
        turn = self.state.turn
        self.state = TurnState(turn + 1)
        self._provider = ProviderState.NONE
        self._prefix = ""
        self._is_replay = self._replaying = False
        return [EventDraft("turn.end", turn, text, reason)]
