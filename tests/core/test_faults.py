"""What each failure of the service means, and how long it is waited after."""

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.faults import Backoff, closed, is_idle_close, is_too_big, refusal
from worker.errors import (
    SttBusy,
    SttCredentials,
    SttError,
    SttPermanent,
    SttTooBig,
    SttTransient,
)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "", SttPermanent),
        (400, "model_not_found", SttPermanent),
        (404, "", SttPermanent),
        (414, "", SttPermanent),
        (422, "", SttPermanent),
        (431, "", SttPermanent),
        (401, "", SttCredentials),
        (402, "", SttCredentials),
        (403, "", SttCredentials),
        (429, "", SttBusy),
        (429, "concurrency_limited", SttBusy),
        (400, "concurrency_limited", SttBusy),
        (429, "quota_exceeded", SttCredentials),
        (400, "plan_upgrade_required", SttCredentials),
        (200, "", SttTransient),
        (302, "", SttTransient),
        (408, "", SttTransient),
        (409, "", SttTransient),
        (499, "", SttTransient),
        (500, "", SttTransient),
        (500, "anything_new", SttTransient),
        (502, "", SttTransient),
        (503, "", SttTransient),
        (599, "", SttTransient),
    ],
)
def test_a_refusal_is_classified(status: int, code: str, kind: type[SttError]) -> None:
    error = refusal(status, "Title: why", code=code, request_id="r1")
    assert type(error) is kind
    assert str(error) == "Title: why"
    assert (error.status, error.code, error.request_id) == (status, code, "r1")


@pytest.mark.parametrize(
    ("close_code", "kind"),
    [
        (1000, SttTransient),
        (1001, SttTransient),
        (1002, SttPermanent),
        (1003, SttPermanent),
        (1005, SttTransient),
        (1006, SttTransient),
        (1007, SttPermanent),
        (1008, SttPermanent),
        (1009, SttTooBig),
        (1011, SttTransient),
        (1012, SttTransient),
        (1013, SttTransient),
        (1015, SttTransient),
        (4000, SttTransient),
    ],
)
def test_a_close_is_classified(close_code: int, kind: type[SttError]) -> None:
    error = closed(close_code, "Because", request_id="r1")
    assert type(error) is kind
    assert str(error) == f"the service closed the socket with {close_code}: Because"
    assert (error.status, error.code, error.request_id) == (close_code, "", "r1")
    assert str(closed(close_code, "")) == f"the service closed the socket with {close_code}"


@pytest.mark.parametrize(
    ("close_code", "reason", "idle"),
    [
        (1001, "Idle timeout", True),
        (1001, "session IDLE", True),
        (1001, "", False),
        (1001, "Service restart", False),
        (1000, "Idle timeout", False),
        (1008, "Idle timeout", False),
    ],
)
def test_an_idle_close_is_no_failure(close_code: int, reason: str, idle: bool) -> None:
    assert is_idle_close(close_code, reason) is idle
    assert is_idle_close(close_code, str(closed(close_code, reason))) is idle


class Highest(random.Random):
    """Draws the upper bound, always."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def test_waits_double_up_to_the_ceiling_and_begin_again() -> None:
    backoff = Backoff(0.1, 5.0, Highest())
    assert [backoff.next_s() for _ in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert backoff.failures == 9
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next_s() == 0.1


@given(
    first_s=st.floats(0.001, 100),
    ceiling_s=st.floats(0.001, 100),
    failures=st.integers(0, 40),
    seed=st.integers(),
)
def test_every_wait_lies_below_the_doubling_ceiling(
    first_s: float, ceiling_s: float, failures: int, seed: int
) -> None:
    backoff = Backoff(first_s, ceiling_s, random.Random(seed))
    for failure in range(failures):
        assert 0 <= backoff.next_s() <= min(ceiling_s, first_s * 2.0**failure)


def test_an_outage_of_days_is_no_overflow() -> None:
    backoff = Backoff()
    backoff.failures = 10**9
    assert 0 <= backoff.next_s() <= 5.0 < inf


def test_two_sessions_do_not_wait_alike() -> None:
    one, other = Backoff(), Backoff()
    assert [one.next_s() for _ in range(8)] != [other.next_s() for _ in range(8)]


@pytest.mark.parametrize(
    ("status", "message", "too_big"),
    [
        (413, "", True),
        (400, "Message too large", True),
        (400, "the audio chunk is too big: 6400 bytes", True),
        (422, "Payload Too Large", True),
        (400, "Audio message of 3200 bytes exceeds the maximum of 2000 bytes", True),
        (400, "Maximum payload size exceeded", True),
        (400, "received too big message", True),
        (400, "over size limit (3200 > 1024 bytes)", True),
        (400, "message rate exceeded", False),
        (400, "maximum session length exceeded", False),
        (400, "Invalid message", False),
        (400, "too many messages", False),
        (500, "Message too large", False),
    ],
)
def test_an_error_about_the_size_of_a_message(status: int, message: str, *, too_big: bool) -> None:
    assert is_too_big(status, message) is too_big


def test_a_close_whose_reason_is_the_size_is_no_end() -> None:
    assert type(closed(1008, "Frame too large (max 4096)")) is SttTooBig
    assert type(closed(1008, "Max message size 2000 exceeded")) is SttTooBig
    assert type(closed(1003, "Message too long")) is SttTooBig
    assert type(closed(1002, "frame length exceeds 4096 bytes")) is SttTooBig
    assert type(closed(1008, "Invalid turn thresholds")) is SttPermanent
