"""Workers with one guard removed: the checkers must find what each of them does wrong.

`switched_off` removes a guard until its block ends. Runs are in one process, so it patches the
modules that the simulated workers use.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import patch
from weakref import WeakKeyDictionary

from schemas.audio import AudioEntry, Fields, parse_audio
from schemas.turns import TurnEndReason
from schemas.validation import EntryError
from tests.simulation.fleet.history import Finding
from tests.simulation.fleet.run import run_seed
from worker.bus import scripts
from worker.bus.client.cluster import ClusterClient
from worker.bus.committer import _CommitBatcher
from worker.bus.dead_letters import DeadLetterWriter
from worker.bus.liveness import Liveness
from worker.bus.lost_entries import OrphanRecovery
from worker.bus.ownership import OwnedSession
from worker.bus.permits import ConnectionPermits, Permit
from worker.bus.presence import SubscriberCounts
from worker.bus.scripts import Script
from worker.core.breaker import Breaker
from worker.core.connection_health import Keepalive
from worker.core.ledger import Ledger
from worker.core.records import Admitted, EventDraft, LedgerState
from worker.core.turn_tracker import TABLE, Action, TurnTracker
from worker.leases.acquire import SessionAcquirer
from worker.leases.heartbeat import LeaseKeeper
from worker.leases.retries import CrashRetries
from worker.leases.running import RunningSessions
from worker.session import ingest
from worker.session.boundary import TurnBoundaryFinder
from worker.session.sender import AudioSender
from worker.session.session import Session
from worker.session.state import SessionState

MAX_SEEDS: Final = 1_000
"""Number of seeds within which every mutant has to be found."""

Remove = Callable[[ExitStack], None]


class Mutant(NamedTuple):
    """A guard, and how it is removed."""

    guard: str
    remove: Remove


class Found(NamedTuple):
    """A seed whose run violates a guarantee, because a guard is removed."""

    seed: int
    finding: Finding


def find_mutant(name: str, seeds: int = MAX_SEEDS) -> Found | None:
    """Return the first seed whose run shows that a guard is removed; None if none does."""
    with switched_off(name):
        for seed in range(1, seeds + 1):
            findings = run_seed(seed).findings
            if findings:
                return Found(seed, findings[0])
    return None


@contextmanager
def switched_off(name: str) -> Iterator[None]:
    """Remove a guard until the block ends."""
    with ExitStack() as stack:
        MUTANTS[name].remove(stack)
        yield


def _in_script(script: Script[Any, Any], pattern: str, replacement: str = "") -> Remove:
    """Replace a part of a script."""

    def remove(stack: ExitStack) -> None:
        text, count = re.subn(pattern, replacement, script.text, flags=re.DOTALL | re.MULTILINE)
        if count != 1:
            raise ValueError(f"{script.name}: {count} places match {pattern!r}")
        stack.enter_context(patch.object(script, "text", text))
        sha = hashlib.sha1(text.encode()).hexdigest()
        stack.enter_context(patch.object(script, "sha", sha))

    return remove


def _all(*removals: Remove) -> Remove:
    def remove(stack: ExitStack) -> None:
        for each in removals:
            each(stack)

    return remove


def _with(*patches: Callable[[], AbstractContextManager[Any]]) -> Remove:
    def remove(stack: ExitStack) -> None:
        for make in patches:
            stack.enter_context(make())

    return remove


def _method(owner: type, name: str, replacement: object) -> Remove:
    return _with(lambda: patch.object(owner, name, replacement))


# -- what replaces the guards

_admit = Ledger.admit
_last_read = WeakKeyDictionary[Ledger, str]()


def _admit_and_commit(ledger: Ledger, entry_id: str, entry: AudioEntry, **options: Any) -> Admitted:
    admitted = _admit(ledger, entry_id, entry, **options)
    ledger.commit_to(ledger.read_bytes)
    return admitted


def _admit_and_note(ledger: Ledger, entry_id: str, entry: AudioEntry, **options: Any) -> Admitted:
    _last_read[ledger] = entry_id
    return _admit(ledger, entry_id, entry, **options)


def _read_on(ledger: Ledger) -> str:
    return _last_read.get(ledger, ledger.committed.entry_id)


def _admit_every_seq(ledger: Ledger, entry_id: str, entry: AudioEntry, **options: Any) -> Admitted:
    plain = AudioEntry(audio=entry.audio, mark=entry.mark, turn_end=entry.turn_end, end=entry.end)
    return _admit(ledger, entry_id, plain, **options)


_state: Callable[[Ledger], LedgerState] = Ledger.__dict__["state"].fget


def _state_without(**fields: Any) -> property:
    def state(ledger: Ledger) -> LedgerState:
        kept = _state(ledger)
        return LedgerState(
            committed=kept.committed,
            committed_bytes=kept.committed_bytes,
            producers=fields.get("producers", kept.producers),
            sequences=fields.get("sequences", kept.sequences),
            announced=fields.get("announced", kept.announced),
            end=kept.end,
        )

    return property(state)


async def _keep_permit(permits: ConnectionPermits, permit: Permit) -> None:
    permits.discard(permit.entry_id)


def _lease_ms(acquirer: SessionAcquirer) -> int:
    return acquirer._lease_ms


_read_records = Liveness._read_records


async def _believe_all_dead(liveness: Liveness) -> None:
    await _read_records(liveness)
    liveness.dead = set(liveness._peers)


_count = SubscriberCounts.count


async def _count_anywhere(counts: SubscriberCounts, channels: Sequence[str]) -> dict[str, int]:
    if not isinstance(counts._redis, ClusterClient):
        return await _count(counts, channels)
    found = dict[str, int]()
    for channel in channels:
        node: Any = await counts._to(await counts._redis.node_for(channel))
        _, found[channel] = await node.execute_command("PUBSUB", "SHARDNUMSUB", channel)
    return found


_check = Keepalive.check


def _all_sent_is_received(
    keepalive: Keepalive, socket: Any, now: float, sent: int, every_s: float
) -> int | None:
    received = _check(keepalive, socket, now, sent, every_s)
    return sent if received is None else received


def _cut_at_all_sent(finder: TurnBoundaryFinder, arrival: Any, *, begins: bool = False) -> int:
    return finder._sender.session_bytes


def _no_claims(keeper: LeaseKeeper, unclaimed: Mapping[str, int], *, may_claim: bool) -> None:
    return


async def _restore_nothing(*_: Any) -> bool:
    return False


_attempt = _CommitBatcher._attempt


async def _attempt_once(batcher: _CommitBatcher) -> None:
    try:
        await _attempt(batcher)
    finally:
        batcher._unanswered.clear()


def _rewind_without_replay(state: SessionState) -> None:
    state.configs.rewind(state.ledger.committed.entry_id)


_on_left = Session._on_left


def _leave_without_replay(session: Session) -> Any:
    with patch.object(SessionState, "rewind", _rewind_without_replay):
        return _on_left(session)


_send = AudioSender._send


def _drop_partial_sample(sender: AudioSender, stream: Any, audio: bytes, now: float) -> None:
    sender._partial_sample = b""
    _send(sender, stream, audio, now)


_send_filler = AudioSender.send_filler


def _fill_every_pause(sender: AudioSender, now: float, up_since: float, polled_at: float) -> None:
    _send_filler(sender, now, 0.0, now)


_TWICE = {
    key: Action.START if action is Action.REPLAY_START else action for key, action in TABLE.items()
}


def _end_at_once(
    tracker: TurnTracker, text: str, position: int, reason: TurnEndReason, idle_bytes: int
) -> list[EventDraft]:
    return tracker._close(tracker._final_text(text, position, idle_bytes), reason)


def _drop(*_: object, **__: object) -> None:
    return


async def _write_nothing(*_: object) -> None:
    return


def _never(*_: object) -> bool:
    return False


def _parse_all_or_nothing(fields: Fields) -> tuple[AudioEntry, list[EntryError]]:
    entry, errors = parse_audio(fields)
    return (AudioEntry(end=entry.end) if errors else entry), errors


def _none_due(_retries: CrashRetries, _now: float) -> list[OwnedSession]:
    return []


_probe_ended = Breaker.probe_ended


def _probe_failed(breaker: Breaker, now: float, *, succeeded: bool) -> None:
    _probe_ended(breaker, now, succeeded=False)


def _merge_nothing(tracker: TurnTracker, text: str, position: int) -> str:
    return text


MUTANTS: Final[Mapping[str, Mutant]] = {
    "no-fence": Mutant(
        "commit.lua rejects another claim than the current one",
        _all(
            _in_script(scripts.commit, r"^if state\[1\] ~= entry_id.*?^end\n"),
            # Each owner numbers its own commits: this could reject another owner's by chance.
            _in_script(scripts.commit, r"^if tonumber\(commit_number\) <.*?^end\n"),
        ),
    ),
    "stale-claim": Mutant(
        "claim.lua rejects a claim with an older count, or with the same one of another process",
        _in_script(scripts.claim, r"^  if entry_id == state\[3\] and \(delivery.*?^  end\n"),
    ),
    "repeated-events": Mutant(
        "commit.lua skips events that it has",
        _in_script(scripts.commit, r"if next_seq == seq \+ 1 then", "if true then"),
    ),
    "old-checkpoint": Mutant(
        "commit.lua ignores a delayed attempt of an older commit",
        _in_script(scripts.commit, r"^if tonumber\(commit_number\) <.*?^end\n"),
    ),
    "no-tombstone": Mutant(
        "commit.lua replaces the audio of an ended session",
        _in_script(scripts.commit, r'^  redis.call\("SET", audio_key.*?$'),
    ),
    "trims-all": Mutant(
        "commit.lua keeps the audio that is not committed",
        _in_script(
            scripts.commit,
            r'^  redis.call\("XTRIM", audio_key, "MINID", trim_before\)$',
            '  redis.call("XTRIM", audio_key, "MAXLEN", 1)',
        ),
    ),
    "no-replay": Mutant(
        "a new socket gets the audio that is not committed",
        _with(
            lambda: patch.object(Ledger, "admit", _admit_and_note),
            lambda: patch.object(Ledger, "admit_next", lambda *_: False),
            lambda: patch.object(Ledger, "read_after", property(_read_on)),
        ),
    ),
    "eager-commit": Mutant(
        "audio is committed with the events that cover it",
        _with(
            lambda: patch.object(Ledger, "admit", _admit_and_commit),
            lambda: patch.object(Ledger, "admit_next", lambda *_: False),
        ),
    ),
    "cut-at-arrival": Mutant(
        "a turn ends before the audio that was sent meanwhile",
        _method(TurnBoundaryFinder, "find_end", _cut_at_all_sent),
    ),
    "unanswered-silence": Mutant(
        "silence is committed once a ping after it was answered",
        _method(Keepalive, "check", _all_sent_is_received),
    ),
    "no-rewind": Mutant(
        "a lost socket moves the reader back",
        _method(SessionState, "rewind", _rewind_without_replay),
    ),
    "failover-without-replay": Mutant(
        "the next provider gets the audio that is not committed",
        _method(Session, "_on_left", _leave_without_replay),
    ),
    "kept-permit": Mutant(
        "an ended session releases its permit",
        _method(ConnectionPermits, "release", _keep_permit),
    ),
    "unlimited-permits": Mutant(
        "request_permits.lua grants no more permits than the limit",
        _in_script(
            scripts.request_permits,
            r'redis.call\("ZRANK", queue_key, member\) < limit',
            "true",
        ),
    ),
    "no-quiet-time": Mutant(
        "no lease expires for one lease after an outage of Redis",
        _method(SessionAcquirer, "_lease_ms_now", property(_lease_ms)),
    ),
    "believes-all-dead": Mutant(
        "only the sessions of dead or silent workers are taken over",
        _method(Liveness, "_read_records", _believe_all_dead),
    ),
    "counts-anywhere": Mutant(
        "subscribers are counted by the master that serves their channel",
        _method(SubscriberCounts, "count", _count_anywhere),
    ),
    "second-start": Mutant(
        "a replayed turn does not start again",
        _with(lambda: patch("worker.core.turn_tracker.TABLE", _TWICE)),
    ),
    "shrinking-text": Mutant(
        "a replay publishes no less than before",
        _with(
            lambda: patch.object(TurnTracker, "_merged", _merge_nothing),
            lambda: patch("worker.core.turn_tracker.says_more", lambda text, known: text != known),
        ),
    ),
    "early-end": Mutant(
        "a replay that ends a turn before its published text does not end it",
        _method(TurnTracker, "_end", _end_at_once),
    ),
    "repeated-seq": Mutant(
        "audio with a known `seq` is dropped",
        _with(
            lambda: patch.object(Ledger, "admit", _admit_every_seq),
            lambda: patch.object(Ledger, "admit_next", lambda *_: False),
        ),
    ),
    "forgotten-seq": Mutant(
        "the checkpoint has the last `seq` of each producer",
        _with(lambda: patch.object(Ledger, "state", _state_without(producers={}, sequences={}))),
    ),
    "repeated-mark": Mutant(
        "the checkpoint has the last entry whose mark was published",
        _with(lambda: patch.object(Ledger, "state", _state_without(announced="0-0"))),
    ),
    "silence-in-outage": Mutant(
        "silence is sent only while Redis answers",
        _method(AudioSender, "send_filler", _fill_every_pause),
    ),
    "torn-sample": Mutant(
        "a sample that two chunks share is sent whole",
        _method(AudioSender, "_send", _drop_partial_sample),
    ),
    "unclaimed": Mutant(
        "an entry whose reply was lost is claimed",
        _method(LeaseKeeper, "_claim_unclaimed", _no_claims),
    ),
    "unrestored": Mutant(
        "a worker restores the entry of a running session",
        _with(
            lambda: patch.object(RunningSessions, "restore_entry", _restore_nothing),
            lambda: patch.object(OrphanRecovery, "recover_known", _restore_nothing),
        ),
    ),
    "unsearched": Mutant(
        "workers look for live sessions without an entry",
        _method(OrphanRecovery, "recover_known", _restore_nothing),
    ),
    "unanswered-commit": Mutant(
        "a commit without an answer is sent again",
        _method(_CommitBatcher, "_attempt", _attempt_once),
    ),
    "no-dead-letter": Mutant(
        "a rejected entry becomes a dead letter",
        _method(DeadLetterWriter, "write", _write_nothing),
    ),
    "rejected-live-session": Mutant(
        "reject.lua leaves a session alone that has a state",
        _in_script(scripts.reject, r'^if redis.call\("EXISTS", state_key\).*?^end\n'),
    ),
    "bad-field-spoils-entry": Mutant(
        "the audio beside a bad field is used",
        _with(lambda: patch.object(ingest, "parse_audio", _parse_all_or_nothing)),
    ),
    "endless-retries": Mutant(
        "a session that fails again and again is ended, with a dead letter",
        _method(CrashRetries, "is_exhausted", _never),
    ),
    "no-retry": Mutant(
        "a session that failed once is claimed again",
        _method(CrashRetries, "take_due", _none_due),
    ),
    "breaker-never-opens": Mutant(
        "exchange_breaker.lua opens a breaker after 5 failures",
        _in_script(scripts.exchange_breaker, r"#failures >= max_failures", "false"),
    ),
    "breaker-never-probes": Mutant(
        "a session may try a provider whose breaker is open",
        _method(Breaker, "take_probe", _never),
    ),
    "breaker-never-closes": Mutant(
        "a probe that succeeds closes the breaker",
        _method(Breaker, "probe_ended", _probe_failed),
    ),
}
