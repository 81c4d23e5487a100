"""The turns of one socket of Flux, as events: also if a message was lost, or is not readable.

Each message about a turn has the turn's index and its whole text, and one comes for each 250 ms of
audio. So the next message shows what was lost. A larger index means that the open turn has ended:
with the last text received, and its words. Text without an open turn means that a turn has started.
"""

from collections.abc import Mapping

from schemas.flux import TurnInfo
from worker.core.turn_tracker import ProviderInput
from worker.stt.events import AudioTranscribed, TimedWord, TurnEvent, UnknownMessage
from worker.stt.flux_messages import timed_words, transcribed_s

_KINDS: Mapping[str | None, ProviderInput] = {
    "StartOfTurn": ProviderInput.START,
    "Update": ProviderInput.UPDATE,
    "EagerEndOfTurn": ProviderInput.EAGER_END,
    "TurnResumed": ProviderInput.RESUME,
    "EndOfTurn": ProviderInput.END,
}

_BESIDE_A_START = (ProviderInput.START, ProviderInput.EAGER_END)
"""Events that are not replaced by the start of their turn, if that was lost; the start has text."""

TurnMessage = TurnEvent | AudioTranscribed | UnknownMessage


class FluxTurns:
    """Returns the events of each message about a turn."""

    def __init__(self) -> None:
        self._index = 0
        """Index of the open turn, or of the next one."""
        self._last: TurnInfo | None = None
        """Last message with the text of the open turn; None if no turn is open."""

    def events(self, info: TurnInfo) -> list[TurnMessage]:
        """Return the events of a message, those of lost messages before it.

        A message about a turn that ended before is ignored. If messages have no index, none is
        known to be lost.
        """
        kind, index = _KINDS.get(info.event), info.turn_index
        if kind is None or (index is not None and index < self._index):
            return [UnknownMessage()]
        events: list[TurnMessage] = []
        if index is not None and index > self._index:
            events += self.end_open()
            self._index = index
        if kind is ProviderInput.UPDATE and not info.transcript:
            events.append(_without_text(info))
            return events
        begins = self._last is None and index is not None and bool(info.transcript)
        if begins and kind is not ProviderInput.START:
            events.append(_event(ProviderInput.START, info))
        is_open = begins or kind is ProviderInput.START or self._last is not None
        if is_open and info.transcript is not None:
            self._last = info
        if kind is ProviderInput.END:
            self._last = info
            events += self.end_open()
        elif not begins or kind in _BESIDE_A_START:
            events.append(_event(kind, info))
        return events

    def end_open(self) -> list[TurnEvent]:
        """Return the end of the open turn, if any, with the text and words of its last message."""
        last, self._last = self._last, None
        if last is None:
            return []
        self._index += 1
        return [_end(last)]


def _transcribed_ms(info: TurnInfo) -> float | None:
    seconds = transcribed_s(info)
    return None if seconds is None else seconds * 1_000


def _without_text(info: TurnInfo) -> AudioTranscribed | UnknownMessage:
    transcribed_ms = _transcribed_ms(info)
    return UnknownMessage() if transcribed_ms is None else AudioTranscribed(transcribed_ms)


def _event(kind: ProviderInput, info: TurnInfo) -> TurnEvent:
    return TurnEvent(kind, info.transcript, _transcribed_ms(info))


def _end(info: TurnInfo) -> TurnEvent:
    words = tuple(
        TimedWord(word.word or "", start * 1_000, end * 1_000, word.confidence)
        for word, start, end in timed_words(info)
    )
    return TurnEvent(ProviderInput.END, info.transcript, _transcribed_ms(info), words)
