"""Run chaos from a checkout: `python -m tests.chaos --seed 7 --turns 300`."""

import sys
import tempfile
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

from worker.commands import run_async
from worker.local.bench.view import TerminalProgress
from worker.local.chaos.plan import Plan
from worker.local.chaos.report import text_of
from worker.local.chaos.run import chaos


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    default = Plan()
    for name in ("seed", "turns", "sessions", "workers", "lease_ms", "connections"):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=getattr(default, name))
    for name in ("latency_ms", "every_s"):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=float, default=getattr(default, name))
    parser.add_argument("--rewording", action="store_true")
    parser.add_argument("--faults", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--module", default="worker")
    arguments = vars(parser.parse_args())
    logs, module = arguments.pop("logs"), arguments.pop("module")
    plan = Plan(**arguments)
    with tempfile.TemporaryDirectory() as directory, TerminalProgress() as progress:
        report = run_async(partial(chaos, plan, logs or Path(directory), progress, module))
    sys.stdout.write(text_of(report))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
