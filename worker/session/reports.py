"""Reports: publishes and logs errors in a session's input, a bounded number of times.

Consumers receive a `session.error` or an `audio.gap`. The same errors are logged or written as dead
letters, equally often. `Notices` decides how often.
"""

import logging
from collections.abc import Sequence

from schemas.audio import AudioEntry, Fields
from schemas.validation import EntryError
from worker.context import WorkerContext
from worker.core.notices import Notices, RepeatRun, Tally
from worker.core.records import Doubt
from worker.session.publisher import EventPublisher

log = logging.getLogger(__name__)

_DOUBTS = {
    Doubt.BACK: "it went back from {before}",
    Doubt.REUSED: "it was sent before, with other audio",
    Doubt.AHEAD: "it jumped ahead from {before}; the amount of missing audio is unknown",
    Doubt.STRIDE: "it rises by more than 1 with every entry, so holes in it are not published",
}
_ADVICE = (
    "`seq` counts entries with audio, a mark or a forced end, and a restarted producer needs a new "
    "`src`"
)


class Reports:
    """Reports for one session."""

    def __init__(
        self,
        context: WorkerContext,
        audio_key: str,
        session: str,
        notices: Notices,
        publisher: EventPublisher,
    ) -> None:
        self._context = context
        self._key = audio_key
        self._session = session
        self._notices = notices
        self._publisher = publisher
        self._repeat_logged = False
        self._unreadable = 0

    def report_refused(self, entry_id: str, fields: Fields, errors: Sequence[EntryError]) -> None:
        """Report the invalid fields of an audio entry."""
        reason, detail = errors[0].reason, "; ".join(map(str, errors))
        named = sorted({f"`{error.field}`" for error in errors if error.field})
        subject = f"audio entries, field {' and '.join(named)}" if named else "empty audio entries"
        count = self._notices.count(f"audio_{reason}", subject)
        if count:
            if count > 1:
                detail += f"; {count:,} such entries so far"
            self._publisher.publish_error(f"audio_{reason}", f"audio entry {entry_id}: {detail}")
            self._context.dead_letters.put(
                entry_id, self._key, self._session, reason, detail, fields
            )

    def provider_error(self, code: str, message: str, status: int) -> None:
        """Report an in-band error after which the provider continues."""
        count = self._notices.count(code, message[:200])
        if count:
            so_far = f" ({count:,} times so far)" if count > 1 else ""
            self._publisher.publish_error(code, f"{message}{so_far}", status=status)

    def unusable_setting(self, line: str) -> None:
        """Report a turn setting that the provider cannot use."""
        self.provider_error("config_unusable", line, 0)

    def report_unreadable(self, defect: str) -> None:
        """Count a provider message that cannot be decoded, or only in part; log the first.

        `defect` contains none of the message's content.
        """
        self._unreadable += 1
        self._context.stats.provider_unreadable += 1
        if self._unreadable == 1:
            log.warning(
                "%s: unreadable message from the provider (%s); the session continues with its "
                "readable parts; further ones are counted, not logged",
                *(self._publisher.name, defect),
            )

    def report_doubtful(self, entry_id: str, entry: AudioEntry, doubt: Doubt, before: int) -> None:
        """Report that the audio of an entry was accepted although its `seq` is doubtful."""
        count = self._notices.count("audio_miscounted", f"`seq` that {doubt.value}")
        if not count:
            return
        so_far = f"; {count:,} such entries so far" if count > 1 else ""
        message = (
            f"audio entry {entry_id}: `seq` {entry.seq} of `src` {entry.src!r} is doubtful: "
            f"{_DOUBTS[doubt].format(before=before)}. Its audio is transcribed. {_ADVICE}{so_far}"
        )
        self._warn("audio_miscounted", message)

    def report_repeated(self, entry_id: str, entry: AudioEntry, ms: float, *, proven: bool) -> None:
        """Report that the audio of an entry was dropped as a repeat."""
        self._context.stats.chunks_repeated += 1
        if not self._repeat_logged:
            # With a src this is usually an append that was retried after a lost reply, as intended.
            log.log(
                logging.INFO if entry.src else logging.WARNING,
                "%s: audio entry %s dropped: it repeats seq %s of src %r; further repeats are "
                "counted, not logged. A restarted producer needs %s",
                *(self._publisher.name, entry_id, entry.seq, entry.src),
                "another src" if entry.src else "a src of its own",
            )
        self._repeat_logged = True
        if not proven:
            self._repeats(self._notices.repeated(entry_id, ms), "so far")

    @property
    def repeating(self) -> bool:
        """Whether the last entries were dropped as repeats."""
        return self._notices.repeating

    def end_repeats(self) -> None:
        """Record that new audio followed repeats."""
        self._repeats(self._notices.repeats_end(session_ends=False), "until new audio came")

    def report_missing(self, ms: float, now: float) -> None:
        """Report that audio was never appended."""
        self._gap(self._notices.missed(ms, now))

    def report_untimed(self, entry_id: str) -> None:
        """Report, once, that the ids of the session's audio entries are not times."""
        self._notices.untimed = True
        message = (
            f"audio entry {entry_id}: its id is not the time at which it was appended, so how late "
            "the session is cannot be measured, and no audio is dropped for its age. Append with "
            "the id `*`"
        )
        self._warn("audio_untimed", message)

    def tick(self, now: float) -> None:
        """Publish reports whose interval is over."""
        self._gap(self._notices.gap_due(now))

    def close(self) -> None:
        """Publish the remaining reports at the end of the session."""
        self._repeats(self._notices.repeats_end(session_ends=True), "until the session ended")
        self._gap(self._notices.gap_rest())
        for tally in self._notices.unpublished():
            self._publisher.publish_error(tally.code, _summary(tally))
        if self._unreadable > 1:
            log.warning(
                "%s: unreadable messages from the provider: %d",
                *(self._publisher.name, self._unreadable),
            )

    def _repeats(self, run: RepeatRun | None, when: str) -> None:
        if run is not None:
            message = (
                f"{run.entries:,} audio entries in a row, {run.ms / 1000:.1f} s from {run.first} "
                f"on, were dropped {when}: their `seq` was sent before. {_ADVICE}"
            )
            self._warn("audio_repeated", message)

    def _gap(self, missing_ms: int) -> None:
        if missing_ms:
            self._publisher.publish_gap(missing_ms, "producer")

    def _warn(self, code: str, message: str) -> None:
        self._publisher.publish_error(code, message)
        log.warning("%s: %s", self._publisher.name, message)


def _summary(tally: Tally) -> str:
    rest = tally.seen - tally.published
    return f"{tally.subject}: {tally.seen:,} in all, {rest:,} of them since the last such event"
