"""The inbox: takes a session's audio entries, in order, and passes on what is good of them."""

import logging
import time
from collections.abc import Sequence

import msgspec

from schemas.audio import AudioEntry, Fields, read_audio
from schemas.faults import EntryFault
from worker.bus.reader import Entries
from worker.core import ids
from worker.core.configs import Configs
from worker.core.ledger import Ledger
from worker.host import Host
from worker.sessions.hearing import Hearing
from worker.sessions.narrator import Narrator
from worker.sessions.shedding import Shedding
from worker.sessions.uplink import Uplink

log = logging.getLogger(__name__)


class Inbox:
    """One session's entries on their way from the reader to the uplink."""

    def __init__(
        self,
        host: Host,
        audio_key: str,
        session: str,
        ledger: Ledger,
        configs: Configs,
        uplink: Uplink,
        hearing: Hearing,
        narrator: Narrator,
    ) -> None:
        self._host = host
        self._key = audio_key
        self._session = session
        self._ledger = ledger
        self._configs = configs
        self._uplink = uplink
        self._hearing = hearing
        self._narrator = narrator
        self._shedding = Shedding(host.pace.max_lag_s, host.clock, ledger, uplink)
        self.cursor = ledger.read_after
        """Entry id after which to read."""
        self._repeats_told = False
        self._newest = ids.order(ids.START)  # of all entries ever read; a replay is no news
        self.fed_at = self.news_at = time.monotonic()
        """When any entry came last, and when one that was not read before."""

    @property
    def read_to_end(self) -> bool:
        """Whether everything up to the producer's `end` was read."""
        end = self._ledger.end
        return end is not None and ids.order(self.cursor) >= ids.order(end)

    @property
    def is_late(self) -> bool:
        """Whether what is to be sent next is too old to be transcribed."""
        return self._shedding.is_late(self._ledger.oldest)

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
            told = bool(faults) and self._ledger.announce(self.cursor)
            if told:
                self._refuse(self.cursor, fields, faults)
            self._take(self.cursor, entry, told=told, live=live)
        self.fed_at = now
        newest = ids.order(self.cursor)
        if newest > self._newest:
            self._newest = newest
            self.news_at = now

    def tell_shed(self) -> None:
        """Say how much was dropped, nothing that is kept having followed."""
        self._tell_shed(self._ledger.taken)

    def _take(self, entry_id: str, entry: AudioEntry, *, told: bool, live: bool) -> None:
        """Take what is good of an entry; `told` is whether what is not was told just now."""
        admitted = self._ledger.admit(entry_id, entry)
        if admitted.repeated and ids.order(entry_id) > self._newest:
            self._count_repeated(entry_id, entry)
        if admitted.missing and (told or self._ledger.announce(entry_id)):
            chunk_ms = self._uplink.ms_of(len(entry.audio))
            self._narrator.gap(int(admitted.missing * chunk_ms), "producer")
        if entry.config is not None:
            self._uplink.take_config(entry.config)
        if not admitted.audio:
            return
        if live and self._shedding.drops(entry_id, admitted.audio):
            return
        self._tell_shed(self._ledger.taken - len(admitted.audio))
        self._host.stats.chunks += 1
        straight = live and self._uplink.empty
        self._uplink.take(admitted.audio)
        if straight:
            lag = self._host.clock.age_s(entry_id)
            if not self._uplink.waited_within(lag):  # else its session is late, not this chunk
                self._host.stats.chunk_lag.observe(lag)

    def _count_repeated(self, entry_id: str, entry: AudioEntry) -> None:
        self._host.stats.repeated += 1
        if not self._repeats_told:
            # With a src it is most likely an append repeated after a lost reply, as it should be.
            log.log(
                logging.INFO if entry.src else logging.WARNING,
                "%s: audio entry %s repeats seq %s of src %r, and so do others maybe; they are "
                "dropped. A producer that starts again needs %s",
                *(self._narrator.publisher.name, entry_id, entry.seq, entry.src),
                "another src" if entry.src else "a src of its own",
            )
        self._repeats_told = True

    def _tell_shed(self, position: int) -> None:
        missing_ms = self._shedding.settle(position)
        if missing_ms:
            self._hearing.break_off()
            self._narrator.gap(int(missing_ms), "backlog")

    def _refuse(self, entry_id: str, fields: Fields, faults: Sequence[EntryFault]) -> None:
        """Tell what is wrong with an entry; what is not is used."""
        reason, detail = faults[0].reason, "; ".join(map(str, faults))
        self._narrator.error(f"audio_{reason}", f"audio entry {entry_id}: {detail}")
        self._host.bury(entry_id, self._key, self._session, reason, detail, fields)
