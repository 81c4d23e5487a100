"""The parts of one session, and how they are connected."""

import time
from dataclasses import dataclass
from typing import Self

from worker.bus.clock import EntryAges
from worker.bus.ownership import Ownership
from worker.context import WorkerContext
from worker.core.lateness import Lateness
from worker.core.ledger import Ledger
from worker.core.notices import Notices
from worker.core.polling import PollSchedule
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_config import TurnConfigHistory
from worker.core.turn_tracker import TurnTracker
from worker.session.boundary import TurnBoundaryFinder
from worker.session.checkpoint import Checkpoint, CheckpointBuilder
from worker.session.connector import Connector
from worker.session.defects import Defects
from worker.session.ingest import AudioIngest
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.upkeep import Upkeep

LAG_JITTER_MS = 250
"""Maximum difference of the provider's lag between two sockets."""


@dataclass(frozen=True)
class Parts:
    """The parts of one session; each part refers only to parts listed above it."""

    ledger: Ledger
    lateness: Lateness
    sender: AudioSender
    tracker: TurnTracker
    configs: TurnConfigHistory
    checkpoint: CheckpointBuilder
    publisher: EventPublisher
    receiver: MessageReceiver
    ages: EntryAges
    reports: Reports
    ingest: AudioIngest
    poll_schedule: PollSchedule
    upkeep: Upkeep
    defects: Defects
    connector: Connector

    @classmethod
    def assemble(
        cls,
        context: WorkerContext,
        ownership: Ownership,
        audio_key: str,
        seq: int,
        snapshot: Checkpoint,
    ) -> Self:
        """Create the parts of a session from its `snapshot` and the last event number `seq`."""
        entry = ownership.entry
        ledger = Ledger(entry.encoding.width, snapshot.ledger)
        pacer = Pacer(context.timeouts.replay_speed)
        sender = AudioSender(
            entry.encoding, entry.sample_rate, ledger, pacer, context.stats, context.frame_limit
        )
        tracker = TurnTracker(snapshot.turns, sender.bytes_of(LAG_JITTER_MS))
        configs = TurnConfigHistory(snapshot.config)
        lateness = Lateness(context.timeouts.max_lag_s, snapshot.sent_state)
        notices = Notices(snapshot.notices)
        checkpoint = CheckpointBuilder(
            snapshot, ledger, notices, lateness, tracker, configs, sender, context.provider_lag
        )
        publisher = EventPublisher(context, ownership, seq, checkpoint.context, checkpoint.build)
        boundary = TurnBoundaryFinder(entry, ledger, sender, context.stalls, context.provider_lag)
        throttle = UpdateThrottle(context.timeouts.update_interval_ms)
        receiver = MessageReceiver(tracker, boundary, ledger, sender, publisher, throttle)
        poll_schedule = PollSchedule(time.monotonic())
        ages = EntryAges(context.clock, ownership.run, untimed=notices.untimed)
        reports = Reports(context, audio_key, entry.session, notices, publisher)
        ingest = AudioIngest(
            context, ledger, ages, configs, sender, lateness, receiver, publisher, reports
        )
        upkeep = Upkeep(
            context,
            ownership.name,
            entry.lane,
            poll_schedule,
            configs,
            ledger,
            sender,
            tracker,
            receiver,
            publisher,
        )
        defects = Defects(ownership.name, context.stats)
        connector = Connector(context, ownership, configs, publisher, defects)
        return cls(
            ledger,
            lateness,
            sender,
            tracker,
            configs,
            checkpoint,
            publisher,
            receiver,
            ages,
            reports,
            ingest,
            poll_schedule,
            upkeep,
            defects,
            connector,
        )
