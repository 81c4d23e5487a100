"""The ingest: validates a session's audio entries, in order, and passes on the valid parts.

Audio that is too late to be transcribed is dropped, and published as an `audio.gap`. Only audio
that was never sent is dropped, oldest first.

If earlier audio was sent and no event covers it yet, consumers may have seen a part of its turn. So
the worker sends that audio again on a new socket, and flushes it: the provider ends the turn. Then
the worker drops the late audio, and the next socket begins after it.

A forced end (`turn_end`) works alike: nothing after it is read until the turn has ended there. Its
entry is read again afterwards, and is then fulfilled. So it needs no state in the checkpoint.
"""

import time
from itertools import permutations

import msgspec

from schemas.audio import MAX_AUDIO_BYTES, MAX_DIGITS, AudioEntry, parse_audio
from schemas.pcm import MAX_SAMPLE_BYTES
from schemas.validation import EntryError
from worker.bus.audio_reader import Entries
from worker.bus.clock import EntryAges
from worker.context import WorkerContext
from worker.core import stream_ids
from worker.core.polling import PollSchedule
from worker.core.records import Admitted
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.state import SessionState

_NAMES = (b"audio", b"seq", b"src")
_ORDINARY = {
    names: tuple(2 * names.index(name) + 1 if name in names else 0 for name in _NAMES)
    for names in ((b"audio",), *permutations(_NAMES[:2]), *permutations(_NAMES))
}
"""Indexes of the values of `audio`, `seq` and `src`, 0 if absent, by the names in their order."""


UNKNOWN_CHUNK_MS = 100.0
"""Duration of a missing chunk, if the worker has read no chunk to compare it with."""


class AudioIngest:
    """Passes one session's entries from the reader to the sender."""

    def __init__(
        self,
        context: WorkerContext,
        state: SessionState,
        ages: EntryAges,
        sender: AudioSender,
        receiver: MessageReceiver,
        publisher: EventPublisher,
        reports: Reports,
    ) -> None:
        self._context = context
        self._ledger = state.ledger
        self._tracker = state.tracker
        self._configs = state.configs
        self._lateness = state.lateness
        self._ages = ages
        self._sender = sender
        self._receiver = receiver
        self._publisher = publisher
        self._reports = reports
        self.poll_schedule = PollSchedule(time.monotonic())
        """Schedule by which the reader polls the session's stream."""
        self.cursor = self._ledger.read_after
        """Entry id after which to read."""
        # The newest of all entries read: entries that are read again are not new.
        self._newest = stream_ids.order(stream_ids.START)
        self.last_entry_at = self._last_new_entry_at = time.monotonic()
        """Time of the last entry."""
        self._dropped_bytes = 0
        self._dropped_tail = b""  # the last of the dropped bytes, which may begin a sample
        self._first_unsent_checked = False  # whether the first never-sent audio was checked
        self.cut_short = False
        """Whether the audio that follows is too late for this socket."""
        self.turn_end_reached = False
        """Whether everything up to a forced end was read, which is not fulfilled yet."""
        self.steady = False
        """Whether an ordinary entry may be passed on: the last one was new, and nothing is late."""
        # The `src` of the last entry that was examined, as received and decoded.
        self._raw_src, self._src = b"", ""

    @property
    def end_reached(self) -> bool:
        """Whether everything up to the producer's `end` was read."""
        end = self._ledger.end
        return end is not None and stream_ids.order(self.cursor) >= stream_ids.order(end)

    @property
    def awaits_flush(self) -> bool:
        """Whether nothing more is read before this socket, or the next one, is flushed."""
        return self.cut_short or self.turn_end_reached

    @property
    def up_since(self) -> float:
        """Start of Redis's current availability. A Redis outage is not a pause of the producer."""
        return max(
            self._context.health.since, self._context.reader.lane(self._publisher.lane).up_since
        )

    def producer_idle_s(self, since: float = 0.0) -> float:
        """Return how long the producer is known to have been silent, from `since` on.

        The time counts up to the last poll. A Redis outage does not count: the producer could not
        append during it.
        """
        since = max(since, self._last_new_entry_at, self.up_since)
        return self.poll_schedule.last_polled_at - since

    def rewind(self) -> None:
        """Go back to the committed position."""
        self._dropped_bytes, self._dropped_tail = 0, b""
        self._first_unsent_checked = self.steady = False
        self.cut_short = self.turn_end_reached = False
        self._newest = max(self._newest, stream_ids.order(self.cursor))
        self.cursor = self._ledger.read_after

    def accept(self, entries: Entries, now: float, *, live: bool) -> None:
        """Accept entries that follow the cursor; `live` is whether a socket is open."""
        for at, (entry_id, fields) in enumerate(entries):
            if not (self.steady and self._pass_on(entry_id, fields, now)):
                self.examine(entries[at:], now, live=live)
                return

    def _pass_on(self, entry_id: bytes, fields: list[bytes], now: float) -> bool:
        """Pass on an ordinary entry of a live session; False if `examine` has to decide.

        Nearly all entries are ordinary: they hold only audio and the next `seq`. For them this does
        the same as `examine`, with a third of the work.
        """
        at = _ORDINARY.get(tuple(fields[::2]))
        if at is None:
            return False
        audio_at, seq_at, src_at = at
        audio, src, seq = fields[audio_at], self._src, None
        if not 0 < len(audio) <= MAX_AUDIO_BYTES:
            return False
        if seq_at:
            digits = fields[seq_at]
            if not digits.isdigit() or digits.startswith(b"0") or len(digits) > MAX_DIGITS:
                return False
            if (fields[src_at] if src_at else b"") != self._raw_src:
                return False
            seq = int(digits)
        else:
            src = ""
        age_s = self._ages.age_at(entry_id, now)
        if age_s is None or self._ledger.covers(self._ledger.read_bytes):
            return False
        cursor = entry_id.decode()
        if not self._ledger.admit_next(cursor, audio, src, seq):
            return False
        self.cursor = cursor
        self.last_entry_at = self._last_new_entry_at = now
        sender, stats = self._sender, self._context.stats
        stats.chunks += 1
        if sender.is_drained and not sender.delayed_within(age_s, now):
            stats.chunk_lag.observe(age_s)
        if not sender.send_at_once(audio, now):
            sender.enqueue(audio)
        return True

    def examine(self, entries: Entries, now: float, *, live: bool) -> None:
        """Accept entries of any kind."""
        for raw_id, row in entries:
            self.cursor = raw_id.decode()
            fields = dict(zip(row[::2], row[1::2], strict=True))
            entry, errors = parse_audio(fields)
            if entry.config is not None:
                try:
                    self._configs.apply(self.cursor, entry.config)
                except EntryError as error:  # valid alone, but not with the current settings
                    errors.append(error)
                    entry = msgspec.structs.replace(entry, config=None)
            mark_refused = b"mark" in fields and entry.mark is None
            admitted = self._ledger.admit(self.cursor, entry, mark_refused=mark_refused)
            marked = entry.mark is not None and not admitted.ignored
            news = self._ledger.is_news(self.cursor)
            if errors or admitted.notable or marked:
                self._ledger.mark_reported(self.cursor)
            if news and errors:
                self._reports.report_refused(self.cursor, fields, errors)
            if news and admitted.notable:
                self._report_sequence(self.cursor, entry, admitted, now)
            if entry.config is not None:
                self._sender.enqueue_config(entry.config)
            if admitted.audio:
                self._accept_audio(self.cursor, admitted.audio, now, news=news, live=live)
            if not admitted.ignored:
                self._accept_signals(entry, news=news)
            self._raw_src, self._src = fields.get(b"src", b""), entry.src
            if self.awaits_flush:
                break
        self.last_entry_at = now
        newest = stream_ids.order(self.cursor)
        if newest > self._newest:
            self._newest = newest
            self._last_new_entry_at = now
            self.steady = (
                live
                and not errors
                and self._first_unsent_checked
                and not self._dropped_bytes
                and not self.awaits_flush
                and self._ledger.end is None
                and not self._reports.repeating
                and not self._ages.untimed
            )

    def check_buffered(self, now: float) -> bool:
        """Check the audio read before the socket opened; return whether it is too late."""
        unsent = self._ledger.segments(self._lateness.sent_until, self._ledger.read_bytes)
        first = next(unsent, None)
        if first is None:
            return False
        age_s = self._ages.age_s(first.entry_id)
        self._first_unsent_checked = not self._is_late(age_s, now)
        return not self._first_unsent_checked

    def on_turn_ended(self) -> None:
        """Continue after an entry whose forced end is fulfilled on the same socket."""
        self.turn_end_reached = False

    def note_sent(self, now: float) -> None:
        """Record how far the session was sent on this socket, and how old that audio is."""
        if self.cut_short:
            return  # the replay lasts until the provider has ended the turn
        sent = self._sender.session_bytes
        self._lateness.progressed(now, sent)
        if self._lateness.delayed_by_replays and sent == self._lateness.sent_until:
            entry_id = self._ledger.entry_at(sent)
            if entry_id is not None:
                self._lateness.limit_replay_time(now, self._ages.age_s(entry_id))

    def report_dropped(self) -> None:
        """Report the dropped audio, when no kept audio has followed it."""
        if self._dropped_bytes:
            self._commit_dropped(self._ledger.read_bytes)

    def _accept_audio(
        self, entry_id: str, admitted: bytes, now: float, *, news: bool, live: bool
    ) -> None:
        """Accept the new audio of an entry; `news` is whether no worker reported the entry."""
        audio = admitted
        if news and self._reports.repeating:
            self._reports.end_repeats()
        timed = not self._ages.untimed
        age_s = self._ages.observe(entry_id)
        if timed and self._ages.untimed:
            self._reports.report_untimed(entry_id)
        if live:
            audio = self._without_late_audio(audio, age_s, now)
        if not audio:
            return
        if self._dropped_bytes:
            self._commit_dropped(self._ledger.read_bytes - len(admitted))
        self._context.stats.chunks += 1
        sent_at_once = live and self._sender.is_drained
        self._sender.enqueue(audio)
        # If the audio was delayed, the session is late, not this chunk.
        if sent_at_once and timed and not self._sender.delayed_within(age_s, now):
            self._context.stats.chunk_lag.observe(age_s)

    def _accept_signals(self, entry: AudioEntry, *, news: bool) -> None:
        """Accept what comes after an entry's audio; `news` is whether its mark is to be published.

        A forced end is fulfilled if all audio before it is committed, and the turn that was open
        there is over. The text of a turn that began after it has grown later.
        """
        if entry.mark is None and not entry.turn_end:
            return
        self.report_dropped()
        here = self._ledger.read_bytes
        if entry.mark is not None and news:
            self._receiver.publish_text()
            self._publisher.publish_mark(entry.mark, int(self._sender.ms_of(here)))
        if entry.turn_end and not self.cut_short:
            open_here = self._tracker.open and self._tracker.last_growth <= here
            self.turn_end_reached = open_here or not self._ledger.covers(here)

    def _report_sequence(
        self, entry_id: str, entry: AudioEntry, admitted: Admitted, now: float
    ) -> None:
        """Report what the entry's `seq` shows."""
        ms = self._sender.ms_of(len(entry.audio))
        if not ms and admitted.missing:
            ms = self._sender.chunk_ms or UNKNOWN_CHUNK_MS
        if admitted.repeated:
            self._reports.report_repeated(entry_id, entry, ms, proven=admitted.proven)
        if admitted.missing:
            self._reports.report_missing(admitted.missing * ms, now)
        if admitted.doubt:
            self._reports.report_doubtful(entry_id, entry, admitted.doubt, admitted.before)

    def _without_late_audio(self, audio: bytes, age_s: float, now: float) -> bytes:
        """Return the part of newly admitted audio to send; the rest is late."""
        sent_until = self._lateness.sent_until
        start = self._ledger.read_bytes - len(audio)
        if start >= sent_until and (self._dropped_bytes or self._ledger.covers(start)):
            if self._is_late(age_s, now):
                self._dropped_bytes += len(audio)
                self._dropped_tail = (self._dropped_tail + audio)[-MAX_SAMPLE_BYTES:]
                return b""
            self._first_unsent_checked = True
        elif not self._first_unsent_checked and self._ledger.read_bytes > sent_until:
            self._first_unsent_checked = True
            self.cut_short = self._is_late(age_s, now)
            if self.cut_short:
                return audio[: max(0, sent_until - start)]
        return audio

    def _is_late(self, age_s: float, now: float) -> bool:
        late = self._lateness.is_late(now, age_s)
        if not late:
            self._lateness.limit_replay_time(now, age_s)
        return late

    def _commit_dropped(self, position: int) -> None:
        """Commit the dropped audio, up to session byte `position`, and publish the gap with it."""
        missing_ms = self._sender.ms_of(self._dropped_bytes)
        self._receiver.commit(position)
        rest = position - self._ledger.committed_bytes  # the beginning of a sample
        self._sender.resume_at(self._dropped_tail[len(self._dropped_tail) - rest :])
        self._dropped_bytes, self._dropped_tail = 0, b""
        self._receiver.end_turn_early()
        self._publisher.publish_gap(int(missing_ms), "backlog")
