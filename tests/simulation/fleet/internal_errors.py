"""Internal errors of the worker: sessions whose processing fails, some each time.

An error is raised where a worker publishes the start of a turn. So it meets messages, checkpoints
and open turns, and does not depend on time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from tests.simulation.fleet.plan import FleetPlan
from worker.core.records import EventDraft
from worker.session.publisher import EventPublisher

_publish: Final = EventPublisher.publish


@contextmanager
def injected(plan: FleetPlan) -> Iterator[None]:
    """Raise the internal errors of a plan's sessions until the block ends."""
    failing = {each.script.name: each for each in plan.sessions if each.crashes}
    left = {name: session.crashes for name, session in failing.items()}

    def publish(publisher: EventPublisher, drafts: Sequence[EventDraft], *more: Any) -> None:
        session = failing.get(publisher._session)
        if session is not None and left[session.script.name]:
            for draft in drafts:
                if draft.kind == "turn.start" and draft.turn >= session.crash_turn:
                    left[session.script.name] -= 1
                    raise ZeroDivisionError("an internal error of the simulation")
        _publish(publisher, drafts, *more)

    if not failing:
        yield
        return
    with patch.object(EventPublisher, "publish", publish):
        yield
