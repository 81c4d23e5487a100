"""The history of each provider's breaker, which workers share on Redis, checked by its rules.

Providers, "The breaker": it opens after 5 failures within 10 s without a success between them, at
most 4 of them of one session. One session of the fleet at a time tries the provider again, and its
success closes the breaker.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.simulation.fleet.history import Finding, ScriptRun
from worker.bus import scripts
from worker.bus.breaker import EXPIRY_S

FAILURES: Final = 5
FAILURES_OF_A_SESSION: Final = 4
WINDOW_S: Final = 10.0
ROUNDED_S: Final = 0.01
"""Maximum error of a time in Redis."""

PROBE_S: Final = 15.0
"""Time after which a probe without a result counts as gone."""

MAX_WAIT_S: Final = 36.0
"""Maximum time between two probes: 30 s, and 20 % more."""

_UNKNOWN: Final = b"?"
"""Holder of a probe that was granted before Redis lost its history."""

_ARGS: Final = {name: nth for nth, name in enumerate(scripts.exchange_breaker.args)}
_SESSIONS_AT: Final = len(_ARGS)


class Report(NamedTuple):
    """One exchange of a worker with Redis."""

    at_s: float
    provider: str
    holder: bytes
    succeeded: bool
    probe: str
    wants_probe: bool
    sessions: tuple[bytes, ...]
    state: str
    granted: bool


class _Known:
    """What is known of one breaker."""

    def __init__(self) -> None:
        self.is_open = False
        self.failures: list[tuple[float, bytes]] = []
        self.prober = b""
        self.probe_until_s = 0.0
        self.tried_s = 0.0
        """Time of the opening, or of the last probe."""
        self.unsure_until_s = 0.0
        """Time until which Redis may count failures that are not known."""
        self.expires_s = 0.0
        """Earliest time at which Redis removes an open breaker that no session tries."""

    def tried(self, now: float) -> None:
        """Record the opening, or a probe."""
        self.tried_s, self.expires_s = now, now + EXPIRY_S - ROUNDED_S


class BreakerHistory:
    """Accepts every exchange in Redis's order, and collects what violates the rules."""

    def __init__(self) -> None:
        self.findings: Final[list[Finding]] = []
        self.openings = 0
        self._known: defaultdict[str, _Known] = defaultdict(_Known)
        self._unknown: set[str] = set()

    def add(self, run: ScriptRun) -> None:
        """Accept a script call, if it is an exchange."""
        if run.name != "exchange_breaker" or isinstance(run.reply, Exception):
            return
        report = _report(run)
        known = self._known[report.provider]
        if report.provider in self._unknown:
            self._unknown.discard(report.provider)
            self._adopt(known, report)
            known.expires_s = report.at_s
            known.unsure_until_s = report.at_s + WINDOW_S
            if report.state == "probing":
                known.prober, known.probe_until_s = _UNKNOWN, report.at_s + PROBE_S
            return
        if known.is_open and _has_expired(known, report):
            known = self._known[report.provider] = _Known()
        for detail in self._problems(known, report):
            self.findings.append(Finding("breaker", "", f"{report.provider} at {detail}"))
        self._adopt(known, report)

    def forget(self) -> None:
        """Accept that Redis lost the end of its history, or that its clock jumped."""
        for name in (*self._known,):
            self._known[name] = _Known()
            self._unknown.add(name)

    def _problems(self, known: _Known, report: Report) -> Iterator[str]:
        now = report.at_s
        closes = report.probe == "ok"
        before = [] if report.succeeded or closes else known.failures
        if closes or not known.is_open:
            surely = len(_counted(before, report, WINDOW_S - ROUNDED_S))
            at_most = len(_counted(before, report))
            if surely >= FAILURES and report.state == "closed":
                yield f"{now:.1f} s: closed after {surely} failures"
            unsure = now < known.unsure_until_s
            if at_most < FAILURES and report.state != "closed" and not unsure:
                yield f"{now:.1f} s: {report.state} after {at_most} failures"
        elif report.state == "closed":
            yield f"{now:.1f} s: closed without a probe that succeeded"
        elif now > known.tried_s + EXPIRY_S + ROUNDED_S:
            yield f"{now:.1f} s: {report.state}, and no probe since {known.tried_s:.1f} s"
        elif report.granted and known.prober not in (b"", _UNKNOWN, report.holder):
            if now < known.probe_until_s:
                yield f"{now:.1f} s: two workers have a probe"
        elif report.wants_probe and report.state == "open" and now > known.tried_s + MAX_WAIT_S:
            yield f"{now:.1f} s: no probe since {known.tried_s:.1f} s"

    def _adopt(self, known: _Known, report: Report) -> None:
        now = report.at_s
        before = [] if report.succeeded or report.probe == "ok" else known.failures
        known.failures = _counted(before, report)
        if report.state == "closed":
            known.is_open, known.prober = False, b""
            return
        if not known.is_open or report.probe == "ok":
            self.openings += 1
            known.is_open, known.prober = True, b""
            known.tried(now)
        known.failures = []
        if report.probe == "failed" and known.prober in (report.holder, _UNKNOWN):
            known.prober = b""
            known.tried(now)
        if known.prober == _UNKNOWN and report.state == "open":
            known.probe_until_s = now
        changed = known.prober not in (_UNKNOWN, report.holder)
        if report.granted and (changed or now >= known.probe_until_s):
            known.prober, known.probe_until_s = report.holder, now + PROBE_S
            known.tried(now)


def _has_expired(known: _Known, report: Report) -> bool:
    """Return whether Redis removed an open breaker, which a report may have opened again."""
    if report.at_s < known.expires_s or report.probe == "ok":
        return False
    return report.state == "closed" or len(_counted([], report)) >= FAILURES


def _counted(
    before: list[tuple[float, bytes]], report: Report, window_s: float = WINDOW_S + ROUNDED_S
) -> list[tuple[float, bytes]]:
    """Return the failures that count, with those of a report."""
    recent = [each for each in before if report.at_s - each[0] <= window_s]
    for session in report.sessions:
        if sum(session == other for _, other in recent) < FAILURES_OF_A_SESSION:
            recent.append((report.at_s, session))
    return recent


def _report(run: ScriptRun) -> Report:
    args = run.args
    state, granted = run.reply
    return Report(
        at_s=run.at_s,
        provider=run.keys[0].decode().partition("{")[2].rstrip("}"),
        holder=bytes(args[_ARGS["holder"]]),
        succeeded=args[_ARGS["succeeded"]] == b"1",
        probe=args[_ARGS["probe"]].decode(),
        wants_probe=args[_ARGS["wants_probe"]] == b"1",
        sessions=tuple(map(bytes, args[_SESSIONS_AT:])),
        state=bytes(state).decode(),
        granted=bool(granted),
    )
