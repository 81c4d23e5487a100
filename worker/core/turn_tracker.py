"""The turn tracker: turns the provider's turn events into the events that consumers receive.

It keeps two views of the turn. `PublishedState` is the consumers' view and outlives sockets and
workers. `ProviderState` is the provider's view on the current socket, and starts empty on each one.
While both agree, the tracker passes events through. They differ if an open turn is replayed on a
new socket, or if the provider breaks its own rules. Then the table below decides, so that consumers
always see each turn start once, end once, and never shrink.

Positions are bytes of the session's own audio sent to the provider when the event arrived. If the
provider sends times, they are exact: the audio that it has transcribed. A session may move between
providers of both kinds. The two positions of a text then differ by the provider's lag. While no
audio is sent, positions stand still. Then the time since the last audio decides, in bytes.
"""

from collections.abc import Mapping
from enum import Enum, StrEnum

from msgspec.structs import replace

from schemas.turns import TurnEndReason
from worker.core.records import EventDraft, OpenTurn, TurnState
from worker.core.transcripts import (
    SPACES,
    covers,
    is_blank,
    join,
    leading_space,
    new_text,
    same_but_space,
    says_more,
    word_count,
)


class PublishedState(StrEnum):  # a StrEnum hashes and compares in C
    """State of the turn as published to consumers."""

    NONE = "none"
    SPEAKING = "speaking"
    EAGER = "eager"


class ProviderState(StrEnum):
    """State of the turn at the provider, on the current socket."""

    NONE = "none"
    SPEAKING = "speaking"
    EAGER = "eager"


class ProviderInput(StrEnum):
    """Turn events that the provider sends."""

    START = "turn.start"
    UPDATE = "turn.update"
    EAGER_END = "turn.eager_end"
    RESUME = "turn.resume"
    END = "turn.end"


class Action(Enum):
    """What the tracker does on an event."""

    START = "publish the start of a turn"
    REPLAY_START = "replay the open turn, publish nothing"
    UPDATE = "publish the text if it grew, after a resume if an eager end is published"
    EAGER_END = "publish an eager end if it is new"
    RESUME = "publish a resume if the eager end was published"
    END = "publish the end, unless a replay has not caught up"
    VIOLATION = "ignore and count: the provider broke its own rules"


TABLE: Mapping[tuple[PublishedState, ProviderState, ProviderInput], Action] = {
    # No turn is open: only a start is valid.
    (PublishedState.NONE, ProviderState.NONE, ProviderInput.START): Action.START,
    # Consumers have an open turn.
    **{
        (published, provider, kind): action
        for published in (PublishedState.SPEAKING, PublishedState.EAGER)
        for provider, kind, action in (
            # It was not sent on this socket yet: a replay.
            (ProviderState.NONE, ProviderInput.START, Action.REPLAY_START),
            # Both are inside the turn.
            (ProviderState.SPEAKING, ProviderInput.UPDATE, Action.UPDATE),
            (ProviderState.SPEAKING, ProviderInput.EAGER_END, Action.EAGER_END),
            (ProviderState.SPEAKING, ProviderInput.END, Action.END),
            (ProviderState.EAGER, ProviderInput.UPDATE, Action.UPDATE),
            (ProviderState.EAGER, ProviderInput.EAGER_END, Action.EAGER_END),
            (ProviderState.EAGER, ProviderInput.RESUME, Action.RESUME),
            (ProviderState.EAGER, ProviderInput.END, Action.END),
        )
    },
}
"""Published state x provider state x input -> action. A missing key is a `VIOLATION`."""


class TurnTracker:
    """Accepts provider events and returns drafts to publish."""

    __slots__ = (
        "_bare_text",
        "_caught_up",
        "_continued",
        "_eager_published",
        "_exact",
        "_is_replay",
        "_jitter",
        "_known_here",
        "_lag",
        "_may_shrink",
        "_parting",
        "_prefix",
        "_provider",
        "_reached_known",
        "_replaying",
        "state",
        "violations",
    )

    def __init__(self, state: TurnState | None = None, jitter: int = 0) -> None:
        """`jitter` is the maximum difference of the provider's lag between sockets, in bytes."""
        self.state = state or TurnState()
        self._jitter = jitter
        self.violations = 0
        """Number of provider events that broke the protocol and were ignored."""
        self._eager_published = False  # whether the provider's eager end was published
        self.socket_opened()

    @property
    def open(self) -> bool:
        """Whether a turn is open for consumers."""
        return self.state.open is not None

    @property
    def provider_in_turn(self) -> bool:
        """Whether a turn is open for the provider on this socket."""
        return self._provider is not ProviderState.NONE

    @property
    def grows(self) -> bool:
        """Whether an update can only add to the text: no eager end or replay is in progress."""
        known = self.state.open
        speaking = known is not None and not known.eager
        return speaking and self._provider is not ProviderState.NONE and not self._replaying

    @property
    def last_growth(self) -> int:
        """Position at which the open turn's text last grew; 0 without an open turn."""
        return self.state.open.transcript_position if self.state.open else 0

    @property
    def begins_committed(self) -> bool:
        """Whether the beginning of the open turn is committed, so that it is not sent again."""
        return self.state.open is not None and self.state.open.committed_text != ""

    @property
    def published(self) -> PublishedState:
        """State of the turn as published to consumers."""
        known = self.state.open
        if known is None:
            return PublishedState.NONE
        return PublishedState.EAGER if known.eager else PublishedState.SPEAKING

    def socket_opened(
        self,
        *,
        may_shrink: bool = False,
        bare_text: bool = False,
        exact: bool = False,
        lag: int = 0,
    ) -> None:
        """Start on a new socket, where the provider has no state of an open turn.

        `may_shrink` is whether the provider revises the text of a turn, so that its last is best.
        `bare_text` is whether it writes no space at the beginning of a turn that follows another.
        `exact` is whether positions are exact; `lag` is that of a provider without times, in bytes.
        """
        self._exact = exact
        self._lag = lag
        self._may_shrink = may_shrink
        self._bare_text = bare_text
        self._provider = ProviderState.NONE
        # Text of the turn that precedes this provider turn: text committed before the socket
        # opened, and provider turns that a replay ended too early.
        self._prefix = self.state.open.committed_text if self.state.open else ""
        self._parting = self.state.open.parting if self.state.open else None
        self._continued = False  # the provider ended its turn early; its next turn continues
        self._reached_known = False  # that end came when as much was sent as for the known text
        self._is_replay = self.open  # the open turn began on another socket
        self._replaying = self.open  # the text that consumers saw is being replayed
        self._known_here = False  # the text that consumers saw has grown on this socket
        self._caught_up = word_count(self._prefix)  # words that repeat what consumers saw

    def on_input(
        self,
        kind: ProviderInput,
        text: str | None,
        position: int,
        reason: TurnEndReason = "model",
        idle_bytes: int = 0,
    ) -> list[EventDraft]:
        """Handle one provider event and return drafts to publish; `text` is None without text.

        `reason` is that of the turn's end, if the event ends it. `idle_bytes` is the time since the
        last audio was sent, in bytes; 0 if the provider sends times.
        """
        match TABLE.get((self.published, self._provider, kind), Action.VIOLATION):
            case Action.UPDATE:  # most events
                return self._update(self.full_transcript(text or ""), position, idle_bytes)
            case Action.START:
                self._provider = ProviderState.SPEAKING
                begun = OpenTurn(transcript_position=position, exact=self._exact)
                self.state = TurnState(self.state.turn, begun)
                return [EventDraft("turn.start", self.state.turn)]
            case Action.REPLAY_START:
                self._provider = ProviderState.SPEAKING
                return []
            case Action.EAGER_END:
                return self._eager_end(self.full_transcript(text or ""), position, idle_bytes)
            case Action.RESUME:
                return self._resume()
            case Action.END:
                return self._end(self.full_transcript(text or ""), position, reason, idle_bytes)
        self.violations += 1
        return []

    def will_end(self, text: str, position: int, idle_bytes: int = 0) -> bool:
        """Return whether a provider `turn.end` with this text and position would end the turn."""
        action = TABLE.get((self.published, self._provider, ProviderInput.END))
        if action is not Action.END:
            return False
        return self._replay_caught_up(self.full_transcript(text), position, idle_bytes)

    def force_end(self, reason: TurnEndReason) -> list[EventDraft]:
        """End the open turn, if any, with its published text.

        A replay that ended early may have transcribed more. If its text is shorter, its last words
        are new only if the audio of the published text was sent before.
        """
        if self.state.open is None:
            return []
        known, text = self.state.open.transcript, self._prefix
        if not self._continued:
            text = known
        elif not says_more(text, known):
            added = new_text(known, text, self._caught_up) if self._reached_known else ""
            text = join(known, added)
        return self._close(text, reason)

    def commit_prefix(self, text: str, parting: str | None = None) -> None:
        """Record that the audio of `text`, the beginning of the open turn, will not be replayed.

        A new socket continues after it. `parting` is the separator between `text` and the next
        word; the default is the published one.
        """
        known = self.state.open
        if known is None:
            return
        rest = known.transcript[len(text) :]
        if parting is None and known.transcript.startswith(text) and not is_blank(rest):
            parting = leading_space(rest)
        self._revise(replace(known, committed_text=text, parting=parting))

    def full_transcript(self, text: str) -> str:
        """Return the open turn's text, given the provider's text of its turn on this socket.

        On a new socket the provider does not know the text before. So the white space at the start
        of its text is replaced by the white space that the open turn has at that place.
        """
        before = self._prefix
        if not before and not self._continued and not self._is_replay:
            return text  # the usual case: the turn began on this socket
        known = self._known.transcript if self.open else ""
        if is_blank(text):
            return before or text
        if self._continued:
            begun = before.rstrip(SPACES)
            space = leading_space(known[len(begun) :]) if known.startswith(begun) else ""
            if space:
                return begun + space + text.lstrip(SPACES)
            return join(before, text) if self._bare_text else before + text
        if before and self._parting is None:
            return join(before, text)
        if before:
            return f"{before}{self._parting}{text.lstrip(SPACES)}"
        if self._is_replay and not is_blank(known):
            return leading_space(known) + text.lstrip(SPACES)
        return text

    def _merged(self, text: str, position: int, idle_bytes: int) -> str:
        """Return the text that consumers should see now: never less than they saw."""
        known = self._known
        if not self._is_replay:
            return text if covers(text, known.transcript) else known.transcript
        words = word_count(text)
        if position <= self._known_position + self._jitter:
            self._caught_up = words
        if not self._replay_caught_up(text, position, idle_bytes):
            return known.transcript
        caught_up, self._caught_up = self._caught_up, words
        alike = text.startswith(known.transcript.rstrip(SPACES))
        if says_more(text, known.transcript) or (alike and covers(text, known.transcript)):
            return text
        # The new wording is shorter, and may still contain more words.
        return join(known.transcript, new_text(known.transcript, text, caught_up))

    def _replay_caught_up(self, text: str, position: int, idle_bytes: int) -> bool:
        """Return whether a replay has caught up with the text that consumers saw."""
        known = self._known
        if not self._is_replay or self._known_here:
            return True  # positions only grow
        if text.startswith(known.transcript.rstrip(SPACES)):
            return True
        if self._exact or position < known.transcript_position:
            return position >= self._known_position
        idle_position = position + idle_bytes
        if known.exact:
            return idle_position >= self._known_position
        # All audio may have been sent when the texts arrived. One with fewer words that came sooner
        # after it covers less.
        if word_count(text) >= word_count(known.transcript):
            return True
        return idle_position >= known.transcript_position + known.idle_bytes

    @property
    def _known_position(self) -> int:
        """Position on this socket of the text that consumers saw."""
        known = self._known
        if known.exact == self._exact:
            return known.transcript_position
        return known.transcript_position + (self._lag if known.exact else -self._lag)

    @property
    def _known(self) -> OpenTurn:
        if self.state.open is None:
            raise AssertionError("no turn is open")
        return self.state.open

    def _revise(self, known: OpenTurn) -> None:
        self.state = TurnState(self.state.turn, known)

    def _update(self, text: str, position: int, idle_bytes: int) -> list[EventDraft]:
        known = self._known
        # Outside a replay a text that says more covers the known one: there is nothing to merge.
        merged = self._merged(text, position, idle_bytes) if self._is_replay else text
        if not says_more(merged, known.transcript):
            return []
        self._replaying, self._known_here = False, True
        drafts = self._after_resume(EventDraft("turn.update", self.state.turn, merged))
        self._revise(
            replace(
                known,
                transcript=merged,
                transcript_position=position,
                idle_bytes=idle_bytes,
                exact=self._exact,
                eager=False,
            )
        )
        return drafts

    def _eager_end(self, text: str, position: int, idle_bytes: int) -> list[EventDraft]:
        known = self._known
        self._provider = ProviderState.EAGER
        merged = self._merged(text, position, idle_bytes)
        grown = says_more(merged, known.transcript)
        # Lag differs between sockets, so the position alone does not identify an old eager end.
        begun = text.rstrip(SPACES)
        old = (
            self._replaying
            and begun != known.transcript.rstrip(SPACES)
            and known.transcript.startswith(begun)
        )
        self._eager_published = self._replay_caught_up(text, position, idle_bytes) and not old
        if not self._eager_published:
            return []
        seen = known.eager_transcript
        if seen is not None and same_but_space(merged, seen) and (known.eager or self._replaying):
            return []  # consumers received this eager end already
        self._known_here = self._known_here or grown
        drafts = self._after_resume(EventDraft("turn.eager_end", self.state.turn, merged))
        self._revise(
            replace(
                known,
                transcript=merged,
                transcript_position=position if grown else known.transcript_position,
                idle_bytes=idle_bytes if grown else known.idle_bytes,
                exact=self._exact if grown else known.exact,
                eager=True,
                eager_transcript=merged,
            )
        )
        return drafts

    def _after_resume(self, draft: EventDraft) -> list[EventDraft]:
        """Return the draft, after a resume if an eager end is published."""
        return [EventDraft("turn.resume", draft.turn), draft] if self._known.eager else [draft]

    def _resume(self) -> list[EventDraft]:
        known = self._known
        self._provider = ProviderState.SPEAKING
        if not (known.eager and self._eager_published):
            return []
        self._revise(replace(known, eager=False))
        return [EventDraft("turn.resume", self.state.turn)]

    def _end(
        self, text: str, position: int, reason: TurnEndReason, idle_bytes: int
    ) -> list[EventDraft]:
        if not self._replay_caught_up(text, position, idle_bytes):
            # The replay ended the turn too early for consumers: the provider's next turn continues.
            self._prefix, self._continued = text, True
            self._reached_known = position >= self._known.transcript_position
            self._caught_up = word_count(text)
            self._provider = ProviderState.NONE
            return []
        return self._close(self._final_text(text, position, idle_bytes), reason)

    def _final_text(self, text: str, position: int, idle_bytes: int) -> str:
        """Return the text with which the turn ends, given the provider's last text."""
        if not self._may_shrink or is_blank(text):
            return self._merged(text, position, idle_bytes)
        known = self._known.transcript
        # White space is no revision: the turn may have begun at a provider that writes more of it.
        return known if same_but_space(text, known) and not covers(text, known) else text

    def _close(self, text: str, reason: TurnEndReason) -> list[EventDraft]:
        turn = self.state.turn
        self.state = TurnState(turn + 1)
        self._provider = ProviderState.NONE
        self._prefix = ""
        self._is_replay = self._replaying = False
        return [EventDraft("turn.end", turn, text, reason)]
