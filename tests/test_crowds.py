"""Many sessions at once, and what one of them may cost the others."""

from collections.abc import Sequence
from itertools import accumulate

from schemas.turns import TurnEnd
from tests.stage import PCM16, Stage, check_order, words
from tests.waiting import eventually
from worker.host import CONNECTS_AT_ONCE
from worker.local.chaos.proxy import Proxy
from worker.local.engines.script import hush, say
from worker.local.server.seen import Seen
from worker.local.server.server import TurnsServer

CROWD = 200
FLOOD = 40
"""Chunks of 250 KiB: more than all buffers on the way hold."""


async def test_a_crowd_is_connected_at_a_bounded_rate(stage: Stage, stt: TurnsServer) -> None:
    stt.faults.set("connected=late:500ms")  # so that as many meet as may
    names = [f"call-{number}" for number in range(CROWD)]
    sound = say([7], PCM16)
    for name in names:
        await stage.append(name, audio=sound)
        await stage.append(name, end="1")
        await stage.announce(name)
    async with stage.worker():
        events = await stage.until_ended(*names)
    assert [words(events[name]) for name in names] == [[7]] * CROWD
    assert len(stt.connections) == CROWD
    assert 1 < _most_opening(stt.connections) <= CONNECTS_AT_ONCE


def _most_opening(connections: Sequence[Seen]) -> int:
    """Return how many were between upgrade and `connected` at the same time, at most."""
    steps = [(seen.opened_at, 1) for seen in connections]
    steps += [(seen.greeted_at or 0.0, -1) for seen in connections]
    return max(accumulate(step for _, step in sorted(steps)))


async def test_a_socket_that_takes_nothing_delays_nobody_else(
    stage: Stage, stt: TurnsServer
) -> None:
    others = [f"call-{number}" for number in range(3)]
    sound = say([1, 2], PCM16) + hush(900, PCM16) + say([3], PCM16)
    async with (
        Proxy.open(lambda: stt.port) as way,
        stage.worker(
            stt_url=stt.url.replace(str(stt.port), str(way.port)), replay_speed=0.0
        ) as worker,
    ):
        await stage.announce("stalled")
        await stage.append("stalled", audio=say([0], PCM16) + hush(900, PCM16))
        await stage.until("stalled", TurnEnd)
        (link,) = way.links
        link.stall()
        (session,) = worker.roster
        assert session._conversation is not None
        socket = session._conversation.stream.socket
        for _ in range(FLOOD):
            await stage.append("stalled", audio=hush(8_000, PCM16))
        await eventually(
            lambda: not socket.open or socket.blocked_since is not None, "the socket to be full"
        )
        for name in others:
            await stage.announce(name)
            await stage.play(name, sound, pause_s=0)
        heard = await stage.until_ended(*others)
        # By now it may have been given up for another; either way nothing of its own is lost.
        link.flow()
        await stage.append("stalled", end="1")
        heard |= await stage.until_ended("stalled")
    for name in others:
        check_order(heard[name])
        assert words(heard[name]) == [1, 2, 3]
    assert {event.connection for name in others for event in heard[name][1:]} == {1}
    check_order(heard["stalled"])
    assert words(heard["stalled"]) == [0]
