"""An internal error is raised as often as the plan has it, and only at its session."""

from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from tests.simulation.fleet.internal_errors import injected
from tests.simulation.fleet.test_checkers import PLAN, SESSION
from worker.core.records import EventDraft
from worker.session.publisher import EventPublisher

START, LATER = EventDraft("turn.start", 0), EventDraft("turn.start", 1)


def publisher(session: str) -> EventPublisher:
    return cast("EventPublisher", SimpleNamespace(_session=session))


def test_session_fails_from_its_turn_on_and_so_often() -> None:
    session = replace(SESSION, crashes=2, crash_turn=1)
    published = []
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(
            "tests.simulation.fleet.internal_errors._publish",
            lambda _, drafts: published.extend(drafts),
        )
        with injected(replace(PLAN, sessions=(session,))):
            EventPublisher.publish(publisher("call-0"), [START])
            EventPublisher.publish(publisher("another"), [LATER])
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    EventPublisher.publish(publisher("call-0"), [LATER])
            EventPublisher.publish(publisher("call-0"), [LATER])
    assert published == [START, LATER, LATER]


def test_plan_without_internal_errors_changes_nothing() -> None:
    before = EventPublisher.publish
    with injected(PLAN):
        assert EventPublisher.publish is before
    with injected(replace(PLAN, sessions=(replace(SESSION, crashes=1),))):
        assert EventPublisher.publish is not before
    assert EventPublisher.publish is before
