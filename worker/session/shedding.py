"""Shedding: drops audio that is too late to be transcribed, and measures it for an `audio.gap`.

Only audio that was never sent is dropped, oldest first. If earlier audio was sent and no event
covers it yet, that audio is sent again on a new socket, which is then closed. The provider then
ends the turn with everything that consumers may have seen of it. The next socket begins with the
dropped audio.
"""

from worker.bus.clock import EntryAges
from worker.core.lateness import Lateness
from worker.core.ledger import Ledger
from worker.session.sender import AudioSender


class Shedding:
    """Decides which audio of one session to drop."""

    def __init__(
        self, ages: EntryAges, ledger: Ledger, sender: AudioSender, lateness: Lateness
    ) -> None:
        self._ages = ages
        self._ledger = ledger
        self._sender = sender
        self._lateness = lateness
        self._size = 0  # bytes being dropped
        self._tail = b""
        self._judged = False  # whether the first never-sent audio was judged
        self.cut_short = False
        """Whether the next audio is late, so that this socket sends no more."""

    def judge_held(self, now: float) -> bool:
        """Return whether audio read before the socket opened must be dropped."""
        held = self._ledger.segments(self._lateness.sent_until, self._ledger.read_bytes)
        first = next(held, None)
        if first is None:
            return False
        self._judged = not self._is_late(first.entry_id, now)
        return not self._judged

    def keep(self, entry_id: str, audio: bytes, now: float) -> bytes:
        """Return the part of newly admitted audio to send; the rest is late."""
        sent_until = self._lateness.sent_until
        start = self._ledger.read_bytes - len(audio)
        if start >= sent_until and (self._size or self._ledger.covers(start)):
            if self._is_late(entry_id, now):
                self._size += len(audio)
                self._tail = (self._tail + audio)[-8:]
                return b""
            self._judged = True
        elif not self._judged and self._ledger.read_bytes > sent_until:
            self._judged = True
            self.cut_short = self._is_late(entry_id, now)
            if self.cut_short:
                return audio[: max(0, sent_until - start)]
        return audio

    def note_sent(self, now: float) -> None:
        """Record how far the session was sent on this socket, and how old that audio is."""
        if self.cut_short:
            return  # the replay lasts until the provider has ended the turn
        fed = self._sender.session_bytes
        self._lateness.progressed(now, fed)
        if self._lateness.excuses and fed == self._lateness.sent_until:
            entry = self._ledger.entry_at(fed)
            if entry is not None:
                self._lateness.waited(now, self._ages.age_s(entry))

    def settle(self, position: int) -> float:
        """Commit the dropped audio up to session byte `position`; return its milliseconds.

        Returns 0 if none was dropped. The gap must be published in the same commit.
        """
        if not self._size:
            return 0.0
        ms = self._sender.ms_of(self._size)
        self._ledger.commit_to(position)
        rest = position - self._ledger.committed_bytes  # the beginning of a sample
        self._sender.resume_at(self._tail[len(self._tail) - rest :])
        self._size, self._tail = 0, b""
        return ms

    def forget(self) -> None:
        """Reset: everything uncommitted will be read again."""
        self._size, self._tail = 0, b""
        self._judged = self.cut_short = False

    def _is_late(self, entry_id: str, now: float) -> bool:
        age_s = self._ages.age_s(entry_id)
        late = self._lateness.is_late(now, age_s)
        if not late:
            self._lateness.waited(now, age_s)
        return late
