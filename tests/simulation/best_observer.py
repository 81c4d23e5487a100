"""The best possible observer of a provider that sends no times: where did a turn end?

The worker knows the audio that it sent, when it sent it, and when messages arrived. It knows
neither how late a message is nor at which pauses the provider ends turns. A provider decides that
by what was said. The observer below knows more: the exact distributions of the delays, of the
silences after which the provider proposes and makes an end, and of words that no update shows. It
computes the exact probability of each pause, given all messages of the call so far, by a sum over
all ways in which the provider may have sent them.

It picks the most probable pause. No rule that decides from the same data is wrong less often: each
choice of a less probable pause adds to the expected number of wrong choices. That number is the
sum of the observer's doubts, `1 - max(probabilities)`. So it is a limit for every worker. Less is
possible only with data that the protocol does not have, such as the times of words, or by
recognizing the words in the audio, which is the provider's work.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import exp
from typing import NamedTuple

ONSET_MS = 40
"""Sound after which the provider starts or resumes a turn."""

IN_ORDER_S = 0.00005
"""Minimum time between two messages on one socket."""


class Delays(NamedTuple):
    """The distribution of the time from the sending of audio to the arrival of a message."""

    lag_s: float
    jitter_s: float
    """Every message is late by up to this, evenly distributed."""
    late_share: float
    """Share of messages that are later than that."""
    late_s: float
    """Mean time by which those are later, exponentially distributed."""

    def density(self, delay_s: float) -> float:
        """Return the probability density of a delay."""
        x = delay_s - self.lag_s
        if x < 0:
            return 0.0
        on_time = 1.0 if x <= self.jitter_s else 0.0
        tail = exp(-max(0.0, x - self.jitter_s) / self.late_s) - exp(-x / self.late_s)
        return ((1 - self.late_share) * on_time + self.late_share * tail) / self.jitter_s

    def share_until(self, delay_s: float) -> float:
        """Return the probability of a delay of at most `delay_s`."""
        x = delay_s - self.lag_s
        if x <= 0:
            return 0.0
        on_time = min(1.0, x / self.jitter_s)
        rise = min(x, self.jitter_s)
        tail = exp(-max(0.0, x - self.jitter_s) / self.late_s) - exp(-x / self.late_s)
        late = (rise - self.late_s * tail) / self.jitter_s
        return (1 - self.late_share) * on_time + self.late_share * late


class Manner(NamedTuple):
    """What the observer knows of the provider's decisions."""

    proposes: float
    """Probability that the provider proposes the end of a turn at a pause that is long enough."""
    ends: float
    """Probability that it then ends the turn, if the pause goes on."""
    proposal_ms: Sequence[int]
    """Silences after which it may send `turn.eager_end`, all equally probable."""
    end_ms: Sequence[int]
    """Silences from there after which it may send `turn.end`, all equally probable."""
    shown: float
    """Share of words that a `turn.update` shows; the next message with text contains the others."""


class Word(NamedTuple):
    """A spoken word, in milliseconds of the call."""

    begins: int
    ends: int


class Seen(NamedTuple):
    """A message of the provider, as it arrived."""

    at: float
    kind: str
    changed: bool = True
    """Whether it has words that no message before it has."""


class Sent(NamedTuple):
    """When the provider was sent the call up to a millisecond of it."""

    at: float
    ms: int


class _State(NamedTuple):
    messages: int
    """Number of messages that the provider has sent."""
    turn: str
    """Last message that began, resumed or ended a turn."""
    hidden: bool = False
    """Whether there are words that no message has shown."""
    ended_at: int = -1
    """The pause in which the turn in question ended."""


class BestObserver:
    """Follows one call whose audio and delays it knows."""

    def __init__(
        self, words: Sequence[Word], sent: Iterable[Sent], delays: Delays, manner: Manner
    ) -> None:
        self._words = words
        self._delays = delays
        self._manner = manner
        moments = list(sent)
        self._sent_ms = [moment.ms for moment in moments]
        self._sent_at = [moment.at for moment in moments]

    def probabilities(self, messages: Sequence[Seen], end: int) -> dict[int, float]:
        """Return, for each pause, the probability that message `end` was sent because of it.

        Pause 0 follows word 0. `messages` are all that have arrived; the last one arrived now.
        """
        self._messages, self._ending = messages, end
        found: dict[int, float] = defaultdict(float)
        states = {_State(0, "turn.end"): 1.0}
        for at in range(len(self._words)):
            following: dict[_State, float] = defaultdict(float)
            for state, weight in states.items():
                for after, share in self._paths(state, at):
                    if after.messages > len(messages):
                        found[after.ended_at] += weight * share
                    else:
                        following[after] += weight * share
            total = sum(found.values()) + sum(following.values())
            states = {state: weight / total for state, weight in following.items()}
            found = defaultdict(float, {pause: weight / total for pause, weight in found.items()})
        for state, weight in states.items():  # the call is over
            if state.messages == len(messages):
                found[state.ended_at] += weight
        total = sum(found.values())
        return {pause: weight / total for pause, weight in found.items() if weight}

    def _paths(self, state: _State, at: int) -> Iterator[tuple[_State, float]]:
        """Yield what the provider may send in a word and the pause after it; with probabilities."""
        for begun, share in self._begin(state, self._words[at].begins + ONSET_MS):
            for spoken, shown in self._show(begun, self._words[at].ends):
                for paused, proposed in self._pause(spoken, at):
                    yield paused, share * shown * proposed

    def _begin(self, state: _State, ms: int) -> Iterator[tuple[_State, float]]:
        match state.turn:
            case "turn.end":
                yield from self._send(state, "turn.start", ms)
            case "turn.eager_end":
                yield from self._send(state, "turn.resume", ms)
            case _:
                yield state, 1.0

    def _show(self, state: _State, ms: int) -> Iterator[tuple[_State, float]]:
        if self._is_over(state):
            yield state, 1.0
            return
        yield state._replace(hidden=True), 1 - self._manner.shown
        for after, share in self._send(state, "turn.update", ms):
            yield after, share * self._manner.shown

    def _pause(self, state: _State, at: int) -> Iterator[tuple[_State, float]]:
        if self._is_over(state):
            yield state, 1.0
            return
        manner, begins = self._manner, self._words[at].ends
        last = at + 1 == len(self._words)
        ends = self._sent_ms[-1] if last else self._words[at + 1].begins
        quiet = 1.0
        for proposed_ms, proposing in self._moments(begins, ends, manner.proposal_ms):
            chosen = manner.proposes * proposing
            quiet -= chosen
            for proposed, share in self._send(state, "turn.eager_end", proposed_ms):
                yield from self._end(proposed, at, proposed_ms, ends, chosen * share)
        yield state, quiet

    def _end(
        self, state: _State, at: int, begins: int, ends: int, share: float
    ) -> Iterator[tuple[_State, float]]:
        if self._is_over(state):
            yield state, share
            return
        quiet = 1.0
        for end_ms, ending in self._moments(begins, ends, self._manner.end_ms):
            chosen = self._manner.ends * ending
            quiet -= chosen
            for ended, sent in self._send(state, "turn.end", end_ms):
                here = state.messages == self._ending
                yield ended._replace(ended_at=at) if here else ended, share * chosen * sent
        yield state, share * quiet

    def _moments(
        self, begins: int, ends: int, silences_ms: Sequence[int]
    ) -> Iterator[tuple[int, float]]:
        """Yield when the provider may decide before a pause ends; with probabilities."""
        moments: dict[int, int] = defaultdict(int)
        for silence_ms in silences_ms:
            if begins + silence_ms <= ends:
                moments[begins + silence_ms] += 1
        for moment, count in moments.items():
            yield moment, count / len(silences_ms)

    def _send(self, state: _State, kind: str, ms: int) -> Iterator[tuple[_State, float]]:
        """Yield the state after a message, sent once the provider has received `ms` of the call.

        The probability is that of its arrival; of no arrival until now, if it is not among the
        messages that have arrived.
        """
        if self._is_over(state):
            yield state, 1.0
            return
        sent_at = self._sent_at[bisect_left(self._sent_ms, ms)]
        after = state._replace(messages=state.messages + 1, turn=kind, hidden=False)
        if state.messages == len(self._messages):
            yield after, 1 - self._delays.share_until(self._messages[-1].at - sent_at)
            return
        message = self._messages[state.messages]
        if message.kind != kind:
            return
        if kind in ("turn.start", "turn.resume"):
            after = after._replace(hidden=state.hidden)
        elif kind != "turn.update" and message.changed != state.hidden:
            return
        if kind == "turn.update":
            after = after._replace(turn=state.turn)
        delay_s = message.at - sent_at
        earliest = self._messages[state.messages - 1].at + IN_ORDER_S if state.messages else 0.0
        if message.at > earliest + IN_ORDER_S / 10:
            share = self._delays.density(delay_s)
        else:  # it waited for the message before it
            share = self._delays.share_until(delay_s)
        if share:
            yield after, share

    def _is_over(self, state: _State) -> bool:
        """Whether this state is beyond what has arrived."""
        return state.messages > len(self._messages)
