"""The parts of one session, and how they hang together."""

import time
from dataclasses import dataclass
from typing import Self

from worker.bus.clock import EntryAges
from worker.bus.intake import Ownership
from worker.core.configs import Configs
from worker.core.holdback import Holdback
from worker.core.lateness import Lateness
from worker.core.ledger import Ledger
from worker.core.notices import Notices
from worker.core.pacing import Pacer
from worker.core.rhythm import Rhythm
from worker.core.turns import TurnTracker
from worker.host import Host
from worker.sessions.defects import Defects
from worker.sessions.dialer import Dialer
from worker.sessions.hearing import Hearing
from worker.sessions.inbox import Inbox
from worker.sessions.narrator import Narrator
from worker.sessions.reports import Reports
from worker.sessions.seam import Seam
from worker.sessions.standing import Snapshot, Standing
from worker.sessions.upkeep import Upkeep
from worker.sessions.uplink import Uplink

JITTER_MS = 250
"""By how much the service's lag differs from socket to socket."""


@dataclass(frozen=True)
class Parts:
    """What one session is made of; each part knows only parts above it."""

    ledger: Ledger
    lateness: Lateness
    uplink: Uplink
    tracker: TurnTracker
    configs: Configs
    standing: Standing
    narrator: Narrator
    hearing: Hearing
    ages: EntryAges
    reports: Reports
    inbox: Inbox
    rhythm: Rhythm
    upkeep: Upkeep
    defects: Defects
    dialer: Dialer

    @classmethod
    def assemble(
        cls, host: Host, ownership: Ownership, audio_key: str, seq: int, snapshot: Snapshot
    ) -> Self:
        """Make the parts of a session that stands where `snapshot` says, after event `seq`."""
        entry = ownership.session
        ledger = Ledger(entry.encoding.width, snapshot.ledger)
        pacer = Pacer(host.pace.replay_speed)
        uplink = Uplink(
            entry.encoding, entry.sample_rate, ledger, pacer, host.stats, host.frame_limit
        )
        tracker = TurnTracker(snapshot.turns, uplink.bytes_of(JITTER_MS))
        configs = Configs(snapshot.config)
        lateness = Lateness(host.pace.max_lag_s, snapshot.sent_state)
        notices = Notices(snapshot.notices)
        standing = Standing(
            snapshot, ledger, notices, lateness, tracker, configs, uplink, host.usual_lag
        )
        narrator = Narrator(host, ownership, seq, standing.place, standing.written)
        seam = Seam(entry, ledger, uplink, host.wakefulness, host.usual_lag)
        holdback = Holdback(host.pace.update_interval_ms)
        hearing = Hearing(tracker, seam, ledger, uplink, narrator, holdback)
        rhythm = Rhythm(time.monotonic())
        ages = EntryAges(host.clock, ownership.run, untimed=notices.untimed)
        reports = Reports(host, audio_key, entry.session, notices, narrator)
        inbox = Inbox(host, ledger, ages, configs, uplink, lateness, hearing, narrator, reports)
        upkeep = Upkeep(
            host,
            ownership.name,
            entry.lane,
            rhythm,
            configs,
            ledger,
            uplink,
            tracker,
            hearing,
            narrator,
        )
        defects = Defects(ownership.name, host.stats)
        dialer = Dialer(host, ownership, configs, narrator, defects)
        return cls(
            ledger,
            lateness,
            uplink,
            tracker,
            configs,
            standing,
            narrator,
            hearing,
            ages,
            reports,
            inbox,
            rhythm,
            upkeep,
            defects,
            dialer,
        )
