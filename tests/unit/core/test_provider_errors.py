"""How each failure of the provider is classified, and the delay after it."""

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.provider_errors import Backoff, from_close, from_status, is_idle_close, is_too_big
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttTooBigError,
    SttTransientError,
)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "", SttPermanentError),
        (400, "model_not_found", SttPermanentError),
        (404, "", SttPermanentError),
        (414, "", SttPermanentError),
        (422, "", SttPermanentError),
        (431, "", SttPermanentError),
        (401, "", SttCredentialsError),
        (402, "", SttCredentialsError),
        (403, "", SttCredentialsError),
        (429, "", SttBusyError),
        (429, "concurrency_limited", SttBusyError),
        (400, "concurrency_limited", SttBusyError),
        (429, "quota_exceeded", SttCredentialsError),
        (400, "plan_upgrade_required", SttCredentialsError),
        (200, "", SttTransientError),
        (302, "", SttTransientError),
        (408, "", SttTransientError),
        (409, "", SttTransientError),
        (499, "", SttTransientError),
        (500, "", SttTransientError),
        (500, "anything_new", SttTransientError),
        (502, "", SttTransientError),
        (503, "", SttTransientError),
        (599, "", SttTransientError),
    ],
)
def test_refusal_is_classified(status: int, code: str, kind: type[SttError]) -> None:
    error = from_status(status, "Title: why", code=code, request_id="r1")
    assert type(error) is kind
    assert str(error) == "Title: why"
    assert (error.status, error.code, error.request_id) == (status, code, "r1")


@pytest.mark.parametrize(
    ("close_code", "kind"),
    [
        (1000, SttTransientError),
        (1001, SttTransientError),
        (1002, SttPermanentError),
        (1003, SttPermanentError),
        (1005, SttTransientError),
        (1006, SttTransientError),
        (1007, SttPermanentError),
        (1008, SttPermanentError),
        (1009, SttTooBigError),
        (1011, SttTransientError),
        (1012, SttTransientError),
        (1013, SttTransientError),
        (1015, SttTransientError),
        (4000, SttTransientError),
    ],
)
def test_close_is_classified(close_code: int, kind: type[SttError]) -> None:
    error = from_close(close_code, "Because", request_id="r1")
    assert type(error) is kind
    assert str(error) == f"the provider closed the socket with {close_code}: Because"
    assert (error.status, error.code, error.request_id) == (close_code, "", "r1")
    assert str(from_close(close_code, "")) == f"the provider closed the socket with {close_code}"


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
def test_idle_close_is_no_failure(close_code: int, reason: str, idle: bool) -> None:
    assert is_idle_close(close_code, reason) is idle
    assert is_idle_close(close_code, str(from_close(close_code, reason))) is idle


class Highest(random.Random):
    """Always draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def test_delay_doubles_up_to_maximum_and_resets() -> None:
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
def test_delay_is_below_doubling_maximum(
    first_s: float, ceiling_s: float, failures: int, seed: int
) -> None:
    backoff = Backoff(first_s, ceiling_s, random.Random(seed))
    for failure in range(failures):
        assert 0 <= backoff.next_s() <= min(ceiling_s, first_s * 2.0**failure)


def test_delay_survives_outage_of_days() -> None:
    backoff = Backoff()
    backoff.failures = 10**9
    assert 0 <= backoff.next_s() <= 5.0 < inf


def test_delays_of_two_sessions_differ() -> None:
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
def test_message_size_error_is_recognised(status: int, message: str, *, too_big: bool) -> None:
    assert is_too_big(status, message) is too_big


def test_message_size_close_is_recoverable() -> None:
    assert type(from_close(1008, "Frame too large (max 4096)")) is SttTooBigError
    assert type(from_close(1008, "Max message size 2000 exceeded")) is SttTooBigError
    assert type(from_close(1003, "Message too long")) is SttTooBigError
    assert type(from_close(1002, "frame length exceeds 4096 bytes")) is SttTooBigError
    assert type(from_close(1008, "Invalid turn thresholds")) is SttPermanentError
