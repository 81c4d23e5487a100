"""The inbox: takes a session's audio entries, in order, and passes on what is good of them."""

import time

import msgspec

from schemas.audio import AudioEntry, read_audio
from schemas.faults import EntryFault
from worker.bus.clock import EntryAges
from worker.bus.reader import Entries
from worker.core import ids
from worker.core.configs import Configs
from worker.core.lateness import Lateness
from worker.core.ledger import Admission, Ledger
from worker.host import Host
from worker.sessions.hearing import Hearing
from worker.sessions.narrator import Narrator
from worker.sessions.reports import Reports
from worker.sessions.shedding import Shedding
from worker.sessions.uplink import Uplink


class Inbox:
    """One session's entries on their way from the reader to the uplink."""

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        ages: EntryAges,
        configs: Configs,
        uplink: Uplink,
        lateness: Lateness,
        hearing: Hearing,
        narrator: Narrator,
        reports: Reports,
    ) -> None:
        self._host = host
        self._ledger = ledger
        self._ages = ages
        self._configs = configs
        self._uplink = uplink
        self._hearing = hearing
        self._narrator = narrator
        self._reports = reports
        self._shedding = Shedding(ages, ledger, uplink, lateness)
        self.cursor = ledger.read_after
        """Entry id after which to read."""
        self._newest = ids.order(ids.START)  # of all entries ever read; a replay is no news
        self.fed_at = self.news_at = time.monotonic()
        """When any entry came last, and when one that was not read before."""

    @property
    def read_to_end(self) -> bool:
        """Whether everything up to the producer's `end` was read."""
        end = self._ledger.end
        return end is not None and ids.order(self.cursor) >= ids.order(end)

    @property
    def cut_short(self) -> bool:
        """Whether the audio that follows is too late for this socket."""
        return self._shedding.cut_short

    def judge_held(self, now: float) -> bool:
        """Say whether audio that was read before the socket opened has to be dropped."""
        return self._shedding.judge_held(now)

    def note_sent(self, now: float) -> None:
        """Note how far this socket was sent the session."""
        self._shedding.note_sent(now)

    def set_back(self) -> None:
        """Read again from the committed position on."""
        self._shedding.forget()
        self._configs.rewind(self._ledger.committed.entry)
        self.cursor = self._ledger.read_after

    def take(self, entries: Entries, now: float, *, live: bool) -> None:
        """Take entries that follow the cursor; `live` tells whether a socket is there for them."""
        for raw_id, fields in entries:
            self.cursor = raw_id.decode()
            entry, faults = read_audio(fields)
            if entry.config is not None:
                try:
                    self._configs.accept(self.cursor, entry.config)
                except EntryFault as fault:  # good by itself, not with what is in force
                    faults.append(fault)
                    entry = msgspec.structs.replace(entry, config=None)
            news = bool(faults) and self._ledger.announce(self.cursor)
            if news:
                self._reports.refused(self.cursor, fields, faults)
            self._take(self.cursor, entry, now, news=news, live=live)
            if self.cut_short:
                break
        self.fed_at = now
        newest = ids.order(self.cursor)
        if newest > self._newest:
            self._newest = newest
            self.news_at = now

    def tell_shed(self) -> None:
        """Say how much was dropped, nothing that is kept having followed."""
        self._tell_shed(self._ledger.taken)

    def _take(
        self, entry_id: str, entry: AudioEntry, now: float, *, news: bool, live: bool
    ) -> None:
        """Take what is good of an entry; `news` is whether a fault of it was just reported."""
        admitted = self._ledger.admit(entry_id, entry)
        if admitted.notable and (news or self._ledger.announce(entry_id)):
            self._report(entry_id, entry, admitted, now)
        if entry.config is not None:
            self._uplink.take_config(entry.config)
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
        self._tell_shed(self._ledger.taken - len(admitted.audio))
        self._host.stats.chunks += 1
        straight = live and self._uplink.empty
        self._uplink.take(audio)
        if straight and not self._ages.untimed:
            lag = self._ages.age_s(entry_id)
            if not self._uplink.waited_within(lag):  # else its session is late, not this chunk
                self._host.stats.chunk_lag.observe(lag)

    def _report(self, entry_id: str, entry: AudioEntry, admitted: Admission, now: float) -> None:
        """Report what the entry's `seq` says."""
        ms = self._uplink.ms_of(len(entry.audio))
        if admitted.repeated:
            self._reports.repeated(entry_id, entry, ms, proven=admitted.proven)
        if admitted.missing:
            self._reports.missing(admitted.missing * ms, now)
        if admitted.doubt:
            self._reports.doubtful(entry_id, entry, admitted.doubt, admitted.before)

    def _tell_shed(self, position: int) -> None:
        missing_ms = self._shedding.settle(position)
        if missing_ms:
            self._hearing.break_off()
            self._narrator.gap(int(missing_ms), "backlog")
