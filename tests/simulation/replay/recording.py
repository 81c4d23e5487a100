"""Records what the Redis of a simulated fleet runs: commands, their times and their replies."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar
from unittest.mock import patch

from tests.simulation.fleet.draw import draw_plan
from tests.simulation.fleet.run import run as run_plan
from tests.simulation.redis.commands import Args, Wait
from tests.simulation.redis.dialect import Dialect
from tests.simulation.redis.model import RedisModel
from tests.simulation.redis.resp import NilArray, Reply

T = TypeVar("T", bound=Reply | Wait)


class Ran(NamedTuple):
    """A command, or a transaction from MULTI to EXEC."""

    now_us: int
    commands: Sequence[Args]
    reply: Reply
    """The last reply; the null array if the client waits."""
    full: bool
    """Whether memory was full."""
    writes: int
    """Length of the model's log before."""


class Restarted(NamedTuple):
    """A kill of the server, which came back from its log."""

    now_us: int
    lost_writes: int
    writes: int
    """Length of the model's log before."""


Step: TypeAlias = Ran | Restarted


def record(seed: int, dialect: Dialect) -> list[Step]:
    """Run the fleet of a seed on a model of this server; return what the model ran."""
    steps: list[Step] = []
    create, run, resume = RedisModel.__init__, RedisModel.run, RedisModel.resume
    run_transaction, restart = RedisModel.run_transaction, RedisModel.restart

    def keep(model: RedisModel, commands: Sequence[Args], call: Callable[[], T]) -> T:
        model._set_time()
        at, now_us = len(steps), model.db.now_us
        full, writes = model.faults.full, model.log.length
        result = call()
        reply = NilArray() if isinstance(result, Wait) else result
        # A fault that waited for this script has run its own commands meanwhile.
        steps.insert(at, Ran(now_us, commands, reply, full, writes))
        return result

    def creating(
        model: RedisModel, clock: Callable[[], float], rng: random.Random, _: Dialect
    ) -> None:
        create(model, clock, rng, dialect)

    def running(model: RedisModel, args: Args) -> Reply | Wait:
        return keep(model, [args], partial(run, model, args))

    def resuming(model: RedisModel, args: Args, wait: Wait) -> Reply:
        found = keep(model, [args], lambda: resume(model, args, wait) or wait)
        return None if isinstance(found, Wait) else found

    def running_transaction(model: RedisModel, commands: Sequence[Args]) -> Reply:
        whole = [[b"MULTI"], *commands, [b"EXEC"]]
        return keep(model, whole, partial(run_transaction, model, commands))

    def restarting(model: RedisModel, lost_writes: int = 0) -> None:
        writes = model.log.length
        restart(model, lost_writes)
        steps.append(Restarted(model.db.now_us, lost_writes, writes))

    with patch.multiple(
        RedisModel,
        __init__=creating,
        run=running,
        resume=resuming,
        run_transaction=running_transaction,
        restart=restarting,
    ):
        run_plan(draw_plan(seed))  # one server, never a cluster
    return steps
