"""The load run of the gateway finds what is wrong with the frames in Redis."""

import pytest

from tests.bench.gateway_calls import CHUNK_FRAMES, FRAME_S, Share, payload
from tests.bench.gateway_load import Appended, compare

SENT_AT = [1_000.0 + at * FRAME_S for at in range(60)]


def entry(*frames: int, call: int = 0, after_ms: int = 5) -> Appended:
    audio = b"".join(payload(call, frame) for frame in frames)
    return Appended(round(1_000 * SENT_AT[frames[-1]]) + after_ms, audio)


def chunks(*, without: int = -1) -> list[Appended]:
    begins = range(0, len(SENT_AT), CHUNK_FRAMES)
    return [entry(*range(at, at + CHUNK_FRAMES)) for at in begins if at != without]


def test_complete_call_is_correct() -> None:
    counts, short, added, added_at_start = compare({0: SENT_AT}, {0: chunks()})
    assert (counts.total(), short) == (0, 0)
    assert added == pytest.approx([5, 5])
    assert added_at_start == pytest.approx([5] * 10)


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        (chunks(without=10), {"lost": 5}),
        ([*chunks(), entry(59)], {"repeated": 1}),
        ([*chunks(), entry(7)], {"misplaced": 1}),
        ([*chunks(), entry(3, call=1)], {"misplaced": 1}),
        ([*chunks(), Appended(0, b"\1" * 160)], {"misplaced": 1}),
    ],
)
def test_wrong_frames_are_counted(entries: list[Appended], found: dict[str, int]) -> None:
    counts, *_ = compare({0: SENT_AT}, {0: entries})
    assert {name: count for name, count in counts.items() if count} == found


def test_frames_are_due_in_the_order_in_which_they_are_sent() -> None:
    share = Share("ws://x", [0, 1, 6], 10, 20, 0.0, "")
    assert [*share.order()] == sorted(share.order(), key=lambda each: share.due(*each))
    assert sorted(share.order()) == [(call, frame) for call in (0, 1, 6) for frame in range(20)]
