"""Many sessions at once, and how far one session may affect the others."""

from collections.abc import Sequence
from itertools import accumulate

from schemas.turns import TurnEnd
from tests.support.harness import PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker.bench.proxy import Proxy
from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.stt.health import MAX_CONCURRENT_CONNECTS

CROWD = 200
FLOOD = 40
"""Chunks of 250 KiB: more than all buffers on the path hold."""


async def test_many_sessions_connect_at_a_bounded_rate(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("connected=late:500ms")  # so that as many connects overlap as the limit allows
    names = [f"call-{number}" for number in range(CROWD)]
    sound = synthesize_words([7], PCM16)
    for name in names:
        await harness.append(name, audio=sound)
        await harness.append(name, end="1")
        await harness.announce(name)
    async with harness.worker():
        events = await harness.until_ended(*names)
    assert [words(events[name]) for name in names] == [[7]] * CROWD
    assert len(stt.connections) == CROWD
    assert 1 < _most_opening(stt.connections) <= MAX_CONCURRENT_CONNECTS


def _most_opening(connections: Sequence[ConnectionStats]) -> int:
    """Return the maximum number of connections between upgrade and `connected` at one time."""
    steps = [(seen.opened_at, 1) for seen in connections]
    steps += [(seen.greeted_at or 0.0, -1) for seen in connections]
    return max(accumulate(step for _, step in sorted(steps)))


async def test_blocked_socket_delays_no_other_session(harness: Harness, stt: TurnsServer) -> None:
    others = [f"call-{number}" for number in range(3)]
    sound = (
        synthesize_words([1, 2], PCM16)
        + synthesize_silence(900, PCM16)
        + synthesize_words([3], PCM16)
    )
    async with (
        Proxy.open(lambda: stt.port) as way,
        harness.worker(
            stt_url=stt.url.replace(str(stt.port), str(way.port)), replay_speed=0.0
        ) as worker,
    ):
        await harness.announce("stalled")
        await harness.append(
            "stalled", audio=synthesize_words([0], PCM16) + synthesize_silence(900, PCM16)
        )
        await harness.until("stalled", TurnEnd)
        (link,) = way.links
        link.stall()
        (session,) = worker.running
        assert session._connection is not None
        socket = session._connection.stream.socket
        for _ in range(FLOOD):
            await harness.append("stalled", audio=synthesize_silence(8_000, PCM16))
        await eventually(
            lambda: not socket.open or socket.blocked_since is not None, "the socket to be full"
        )
        for name in others:
            await harness.announce(name)
            await harness.play(name, sound, pause_s=0)
        received = await harness.until_ended(*others)
        # The blocked socket may have been replaced by now; no audio of its session is lost.
        link.flow()
        await harness.append("stalled", end="1")
        received |= await harness.until_ended("stalled")
    for name in others:
        check_order(received[name])
        assert words(received[name]) == [1, 2, 3]
    assert {event.connection for name in others for event in received[name][1:]} == {1}
    check_order(received["stalled"])
    assert words(received["stalled"]) == [0]
