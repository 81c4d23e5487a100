"""`turnbus bench recovery`: how soon sessions continue after a kill, a drain or a lost socket."""

import sys
from functools import partial
from typing import Annotated

from msgspec import Meta

from worker.bench.plan import RECOVERY_FAULTS, RecoveryFault, RecoveryPlan
from worker.cli.command import Argument, Command, Option, run_async

_DEFAULT = RecoveryPlan()


class Recovery(Command):
    """Measure how soon sessions continue after a fault.

    Redis and the workers are separate processes; the STT server runs in this one, with its script
    engine 150 ms late.
      kill   SIGKILL of a worker whose sessions are inside a turn: time until the STT server
             has a new socket of each session
      drain  SIGTERM to a worker whose sessions are between turns: time until it exits and
             every session has another worker
      cut    reset of a session's socket inside a turn: delay of its turn.end, compared with
             a session that has the same audio and keeps its socket
    Exit code 1 if a word is lost, repeated, damaged or moved, or an event is out of order.

    examples:
      turnbus bench recovery
      turnbus bench recovery kill --kill-sessions 100 --repeat 5
      turnbus bench recovery drain --drain-sessions 500 --chunk-ms 200 --json
    """

    what: Annotated[RecoveryFault | None, Argument("only this (default: all three)")] = None
    kill_sessions: Annotated[
        int, Meta(ge=1, le=2_000), Option("sessions of the killed worker", "N")
    ] = _DEFAULT.kill_sessions
    drain_sessions: Annotated[
        int, Meta(ge=1, le=2_000), Option("sessions of the stopped worker", "N")
    ] = _DEFAULT.drain_sessions
    trials: Annotated[
        int,
        Meta(ge=1, le=500),
        Option("sockets reset in each of four scenarios, some at the same time", "N"),
    ] = _DEFAULT.trials
    repeat: Annotated[
        int,
        Meta(ge=1, le=100),
        Option("runs, each from scratch; all their values are reported together", "N"),
    ] = _DEFAULT.repeat
    chunk_ms: Annotated[
        int,
        Meta(ge=10, le=300, multiple_of=10, description="that is a multiple of 10"),
        Option("audio per append", "MS"),
    ] = _DEFAULT.chunk_ms
    json: Annotated[bool, Option("print one JSON object")] = False

    def run(self) -> int:
        """Run the benchmark. Raises TurnbusError if it cannot be run."""
        from worker.bench.recovery.report import json_of, text_of
        from worker.bench.recovery.run import recovery
        from worker.bench.terminal import TerminalProgress

        plan = RecoveryPlan(
            what=RECOVERY_FAULTS if self.what is None else (self.what,),
            kill_sessions=self.kill_sessions,
            drain_sessions=self.drain_sessions,
            trials=self.trials,
            chunk_ms=self.chunk_ms,
            repeat=self.repeat,
        )
        with TerminalProgress() as progress:
            report = run_async(partial(recovery, plan, progress))
        sys.stdout.write(json_of(report).decode() + "\n" if self.json else text_of(report))
        return 0 if report.ok else 1
