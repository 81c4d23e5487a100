"""The ingest: validates a session's audio entries, in order, and passes on the valid parts."""

import time

import msgspec

from schemas.audio import AudioEntry, parse_audio
from schemas.validation import EntryError
from worker.bus.audio_reader import Entries
from worker.bus.clock import EntryAges
from worker.context import WorkerContext
from worker.core import stream_ids
from worker.core.lateness import Lateness
from worker.core.ledger import Admitted, Ledger
from worker.core.turn_config import TurnConfigHistory
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.shedding import Shedding


class AudioIngest:
    """Passes one session's entries from the reader to the sender."""

    def __init__(
        self,
        context: WorkerContext,
        ledger: Ledger,
        ages: EntryAges,
        configs: TurnConfigHistory,
        sender: AudioSender,
        lateness: Lateness,
        receiver: MessageReceiver,
        publisher: EventPublisher,
        reports: Reports,
    ) -> None:
        self._context = context
        self._ledger = ledger
        self._ages = ages
        self._configs = configs
        self._sender = sender
        self._receiver = receiver
        self._publisher = publisher
        self._reports = reports
        self._shedding = Shedding(ages, ledger, sender, lateness)
        self.cursor = ledger.read_after
        """Entry id after which to read."""
        # The newest of all entries read: entries that are read again are not new.
        self._newest = stream_ids.order(stream_ids.START)
        self.last_entry_at = self.last_new_entry_at = time.monotonic()
        """Time of the last entry, and of the last entry that was not read before."""

    @property
    def end_reached(self) -> bool:
        """Whether everything up to the producer's `end` was read."""
        end = self._ledger.end
        return end is not None and stream_ids.order(self.cursor) >= stream_ids.order(end)

    @property
    def cut_short(self) -> bool:
        """Whether the audio that follows is too late for this socket."""
        return self._shedding.cut_short

    def judge_held(self, now: float) -> bool:
        """Return whether audio read before the socket opened must be dropped."""
        return self._shedding.judge_held(now)

    def note_sent(self, now: float) -> None:
        """Record how far the session was sent on this socket."""
        self._shedding.note_sent(now)

    def rewind(self) -> None:
        """Go back to the committed position."""
        self._shedding.forget()
        self._configs.rewind(self._ledger.committed.entry_id)
        self.cursor = self._ledger.read_after

    def accept(self, entries: Entries, now: float, *, live: bool) -> None:
        """Accept entries that follow the cursor; `live` is whether a socket is open."""
        for raw_id, fields in entries:
            self.cursor = raw_id.decode()
            entry, errors = parse_audio(fields)
            if entry.config is not None:
                try:
                    self._configs.apply(self.cursor, entry.config)
                except EntryError as error:  # valid alone, but not with the current settings
                    errors.append(error)
                    entry = msgspec.structs.replace(entry, config=None)
            reported = bool(errors) and self._ledger.mark_reported(self.cursor)
            if reported:
                self._reports.refused(self.cursor, fields, errors)
            self._accept(self.cursor, entry, now, reported=reported, live=live)
            if self.cut_short:
                break
        self.last_entry_at = now
        newest = stream_ids.order(self.cursor)
        if newest > self._newest:
            self._newest = newest
            self.last_new_entry_at = now

    def report_dropped(self) -> None:
        """Report the dropped audio, when no kept audio has followed it."""
        self._report_dropped(self._ledger.read_bytes)

    def _accept(
        self, entry_id: str, entry: AudioEntry, now: float, *, reported: bool, live: bool
    ) -> None:
        """Accept the valid parts of an entry; `reported` is whether an error was just reported."""
        admitted = self._ledger.admit(entry_id, entry)
        if admitted.notable and (reported or self._ledger.mark_reported(entry_id)):
            self._report(entry_id, entry, admitted, now)
        if entry.config is not None:
            self._sender.enqueue_config(entry.config)
        audio = admitted.audio
        if not audio:
            return
        if self._reports.repeating and self._ledger.is_news(entry_id):
            self._reports.taken()
        if self._ages.doubts(entry_id):
            self._reports.untimed(entry_id)
        if live:
            audio = self._shedding.keep(entry_id, audio, now)
        if not audio:
            return
        self._report_dropped(self._ledger.read_bytes - len(admitted.audio))
        self._context.stats.chunks += 1
        straight = live and self._sender.empty
        self._sender.enqueue(audio)
        if straight and not self._ages.untimed:
            lag = self._ages.age_s(entry_id)
            if not self._sender.delayed_within(
                lag
            ):  # otherwise the session is late, not this chunk
                self._context.stats.chunk_lag.observe(lag)

    def _report(self, entry_id: str, entry: AudioEntry, admitted: Admitted, now: float) -> None:
        """Report what the entry's `seq` shows."""
        ms = self._sender.ms_of(len(entry.audio))
        if admitted.repeated:
            self._reports.repeated(entry_id, entry, ms, proven=admitted.proven)
        if admitted.missing:
            self._reports.missing(admitted.missing * ms, now)
        if admitted.doubt:
            self._reports.doubtful(entry_id, entry, admitted.doubt, admitted.before)

    def _report_dropped(self, position: int) -> None:
        missing_ms = self._shedding.settle(position)
        if missing_ms:
            self._receiver.end_turn_early()
            self._publisher.publish_gap(int(missing_ms), "backlog")
