"""The history of each session's state in Redis, checked as operations on one register.

Redis runs one script at a time, so the calls have one order. In it a session has one owner at a
time: the last successful claim. Only that owner's commits succeed. The fence, the number of the
last event and the committed position never move back.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from worker.bus import scripts
from worker.core import stream_ids
from worker.core.records import Position


class Finding(msgspec.Struct, frozen=True):
    """A violated guarantee."""

    rule: str
    session: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.session} {self.detail}".replace("  ", " ")


class ScriptRun(NamedTuple):
    """One call of a script that Redis executed."""

    at_s: float
    """Virtual seconds since the start."""
    name: str
    keys: Sequence[bytes]
    args: Sequence[bytes]
    reply: Any
    """What the script returned, also if the reply was lost."""


class Fence(NamedTuple):
    """A claim of a session; claims are ordered by entry and count."""

    entry: tuple[int, int]
    deliveries: int
    nonce: bytes

    def __str__(self) -> str:
        ms, number = self.entry
        return f"{ms}-{number} count {self.deliveries} nonce {self.nonce.decode()[:6]}"


class _Ledger(msgspec.Struct, frozen=True):
    committed: Position = Position()
    committed_bytes: int = 0


class _Snapshot(msgspec.Struct, frozen=True):
    """The committed position in a checkpoint."""

    ledger: _Ledger = _Ledger()


_decode_snapshot: Final = msgspec.json.Decoder(_Snapshot).decode

_COMMIT: Final = {name: nth for nth, name in enumerate(scripts.commit.args)}
_CLAIM: Final = {name: nth for nth, name in enumerate(scripts.claim.args)}
_EVENTS_AT: Final = len(_COMMIT)


class _Register:
    """The state of one session, as its successful claims and commits leave it."""

    def __init__(self) -> None:
        self.fence: Fence | None = None
        self.seq = 0
        self.position = 0
        self.commit_number = 0
        self.ended = False


class History:
    """Accepts every script call in Redis's order, and collects what violates the guarantees."""

    def __init__(self, stored_commit: Callable[[bytes], int | None] = lambda _: None) -> None:
        """`stored_commit` returns the number of the last commit that Redis has in a state."""
        self._stored_commit = stored_commit
        self.late_commits = 0
        self.findings: Final[list[Finding]] = []
        self.runs: Final[list[str]] = []
        """The claims and commits in words, for a person who looks at a failure."""
        self._registers: dict[bytes, _Register] = defaultdict(_Register)
        self._reported: set[tuple[str, str]] = set()
        self.rollbacks = 0
        """How often Redis lost the end of its history."""
        self.commits = 0
        self.claims = 0

    def add(self, run: ScriptRun) -> None:
        """Accept one call."""
        if isinstance(run.reply, Exception):
            return
        if run.name == "commit":
            self._on_commit(run)
        elif run.name == "claim":
            self._on_claim(run)

    def rolled_back(self) -> None:
        """Accept that Redis lost the end of its history: the registers begin anew.

        An owner whose last events are lost is refused with `gap` from then on.
        """
        self._registers.clear()
        self.rollbacks += 1

    def _on_claim(self, run: ScriptRun) -> None:
        session = run.args[_CLAIM["session"]].decode()
        fence = _fence(run.args, _CLAIM)
        verdict, seq = run.reply[0].decode(), run.reply[1]
        self._note(run, session, f"claim {fence}: {verdict}, seq {seq}")
        if verdict not in ("new", "taken"):
            return
        self.claims += 1
        register = self._registers[run.keys[0]]
        if verdict == "new" and register.fence is not None and not register.ended:
            self._found("owner", session, f"the live session was claimed as a new one by {fence}")
        if verdict == "taken" and register.ended:
            self._found("end", session, f"the ended session was claimed by {fence}")
        if register.fence is not None and not _supersedes(fence, register.fence):
            self._found("fence", session, f"{fence} was claimed after {register.fence}")
        if verdict == "taken" and register.fence is not None and seq != register.seq:
            self._found("seq", session, f"a claim found seq {seq} instead of {register.seq}")
        if register.fence != fence:
            register.commit_number = 0
        register.fence = fence
        register.seq = seq

    def _on_commit(self, run: ScriptRun) -> None:
        args = run.args
        session = args[_COMMIT["session"]].decode()
        fence = _fence(args, _COMMIT)
        number, first = int(args[_COMMIT["commit_number"]]), int(args[_COMMIT["first_seq"]])
        verdict, seq = run.reply[0].decode(), run.reply[1]
        events = (len(args) - _EVENTS_AT) // 3
        register = self._registers[run.keys[0]]
        position, oldest_kept = _position(args)
        self._note(
            run,
            session,
            f"commit {number} {fence}: {verdict}, seq {seq}, events from {first}: {events}, "
            f"position {position}{', ending' if args[_COMMIT['ending']] else ''}",
        )
        if verdict != "ok":
            if verdict == "gap" and not self.rollbacks:
                self._found("seq", session, f"events from {first} after seq {seq}")
            return
        self.commits += 1
        if register.fence is None:
            register.fence = fence  # claimed before Redis lost the end of its history
            register.seq = seq
        elif fence != register.fence:
            self._found("owner", session, f"{fence} committed while {register.fence} owned it")
        if seq < register.seq or seq > max(register.seq, first + events - 1):
            detail = f"seq {seq} after {register.seq} and events {first} to {first + events - 1}"
            self._found("seq", session, detail)
        register.seq = max(seq, register.seq)
        if register.ended:
            return  # a retry of the last commit
        register.ended = bool(args[_COMMIT["ending"]])
        if number < register.commit_number:
            self.late_commits += 1
            stored = self._stored_commit(run.keys[0])
            if stored is not None and stored != register.commit_number:
                detail = f"an attempt of commit {number} replaced commit {register.commit_number}"
                self._found("position", session, detail)
            return  # an attempt that arrived late changes nothing
        if position is None:
            return
        register.commit_number = number
        if position < register.position:
            self._found(
                "position", session, f"position {position} after {register.position} by {fence}"
            )
        register.position = position
        trim_before = args[_COMMIT["trim_before"]].decode()
        if trim_before and stream_ids.order(trim_before) > stream_ids.order(oldest_kept):
            detail = f"audio below {trim_before} was trimmed; {oldest_kept} is not committed"
            self._found("position", session, detail)

    def _note(self, run: ScriptRun, session: str, what: str) -> None:
        self.runs.append(f"{run.at_s:.4f} {session} {what}")

    def _found(self, rule: str, session: str, detail: str) -> None:
        if (rule, session) not in self._reported:  # one of a kind is enough
            self._reported.add((rule, session))
            self.findings.append(Finding(rule, session, detail))


def _fence(args: Sequence[bytes], places: dict[str, int]) -> Fence:
    return Fence(
        stream_ids.order(args[places["entry_id"]].decode()),
        int(args[places["delivery_count"]]),
        bytes(args[places["nonce"]]),
    )


def _supersedes(fence: Fence, known: Fence) -> bool:
    """Return whether a claim may replace the known one; the same claim may be repeated."""
    return fence == known or fence[:2] > known[:2]


def _position(args: Sequence[bytes]) -> tuple[int | None, str]:
    """Return the committed position in bytes, and the id of the first entry that is needed.

    The last commit of a session has an empty checkpoint.
    """
    snapshot = args[_COMMIT["snapshot"]]
    if not snapshot:
        return None, stream_ids.START
    ledger = _decode_snapshot(snapshot).ledger
    return ledger.committed_bytes, ledger.committed.entry_id
