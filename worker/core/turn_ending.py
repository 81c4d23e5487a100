"""The end of a turn at a provider that sends times: where it is, and how it is commanded.

The command ends the turn with the text that the provider has, so all audio has to be transcribed
first. The provider's clock is the audio: silence is sent until it has answered. If silence that was
sent after the command is transcribed and no answer came, none will come. The text is complete: the
worker then ends the turn with it, and the stream, because the provider is still inside the turn.
"""

from enum import Enum

SETTLE_MS = 300.0
"""Silence after the last audio that has to be transcribed too: text lags behind the audio."""

MAX_ANSWER_MS = 2_000.0
"""Audio sent after the command by whose transcription the provider must have answered it."""

MAX_TAIL_MS = 100.0
"""Maximum audio after a turn's last word that is committed with it: words end gradually."""


def turn_cut_ms(last_word_ms: float | None, transcribed_ms: float) -> float:
    """Return where the audio of an ended turn ends, in milliseconds of the socket's audio.

    That is the end of its last word, with a part of the silence that follows it. Without times of
    words it is the end of what was transcribed.
    """
    if last_word_ms is None:
        return transcribed_ms
    return last_word_ms + min(MAX_TAIL_MS, max(0.0, transcribed_ms - last_word_ms) / 2)


class Step(Enum):
    """What to do next."""

    WAIT = "wait for more events"
    COMMAND = "send the command that ends the turn"
    DONE = "no turn is open, and all audio is transcribed"
    UNANSWERED = "the command is not answered, and all audio is transcribed"


class TurnEnding:
    """Ends what is open after the audio sent so far."""

    __slots__ = ("_answer_until_ms", "_target_ms", "_transcribed", "_with_command")

    def __init__(self, sent_ms: float, *, with_command: bool) -> None:
        """`sent_ms` is the audio sent on the socket; without the command, its text is enough."""
        self._target_ms = sent_ms + SETTLE_MS
        self._with_command = with_command
        self._transcribed = False
        self._answer_until_ms: float | None = None  # set once the command is sent

    def advance(
        self, transcribed_ms: float | None, sent_ms: float, *, in_turn: bool, answered: bool
    ) -> Step:
        """Return the next step after an event; `sent_ms` is the audio sent so far.

        `answered` is whether the event answers the command, if that was sent: the end of a turn, or
        that there is none.
        """
        if self._answer_until_ms is not None:
            if answered:
                return Step.DONE
            overdue = transcribed_ms is not None and transcribed_ms >= self._answer_until_ms
            return Step.UNANSWERED if overdue else Step.WAIT
        if transcribed_ms is not None and transcribed_ms >= self._target_ms:
            self._transcribed = True
        if not self._transcribed:
            return Step.WAIT
        if not (in_turn and self._with_command):
            return Step.DONE
        self._answer_until_ms = sent_ms + MAX_ANSWER_MS
        return Step.COMMAND
