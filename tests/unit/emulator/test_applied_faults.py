"""Each fault as a bare client sees it; outages; and the report of connections."""

import errno
import json
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.abc import ByteReceiveStream
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from tests.contract.wire import (
    GOOD,
    PHONE,
    Event,
    closed,
    dial,
    next_event,
    rest_of,
    serving,
    until_open,
    upgrade_request,
)
from tests.support.polling import PATIENCE_S
from worker.errors import TurnbusError
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import ApplyResult, TurnsServer
from worker.local.emulator.settings import ServerSettings

# Two turns: w1 w2, and w3, which ends only on `close`.
AUDIO = (
    synthesize_words([1, 2], PHONE) + synthesize_silence(600, PHONE) + synthesize_words([3], PHONE)
)
START, EAGER, END = "turn.start", "turn.eager_end", "turn.end"
FIRST = ["connected", START, "w1", "w1 w2", EAGER, END]
SECOND = [START, " w3", END]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Cuts and outages act below the event loop, and `turnbus stt-server` runs on uvloop."""
    return "asyncio", {"use_uvloop": request.param}


def summaries(events: list[Event]) -> list[str]:
    """Summarise events by type; updates by their text, errors by their status."""
    return [
        event["transcript"]
        if event["type"] == "turn.update"
        else str(event.get("status_code", event["type"]))
        for event in events
    ]


async def play(server: TurnsServer, *, close: bool) -> tuple[list[str], int, str]:
    """Return the events of a client that sends all audio at once, and may send `close`."""
    # With `close`, this client never writes once a fault may strike, or it would lose events.
    async with dial(server) as ws:
        with suppress(ConnectionClosed):  # the connection may end before it began
            await ws.send(AUDIO)
        events, code, reason = await (closed(ws) if close else rest_of(ws))
    return summaries(events), code, reason


async def until_closed(server: TurnsServer) -> None:
    with anyio.fail_after(PATIENCE_S):
        while any(seen.closed_at is None for seen in server.connections):
            await anyio.sleep(0.01)


ENDS_BY_ITSELF = [
    ("cut@opened", [], 1006, ""),
    ("cut=fin@opened", [], 1006, ""),
    ("cut@mid-turn", FIRST[:3], 1006, ""),
    ("cut=fin@mid-turn", FIRST[:3], 1006, ""),
    ("cut@between-turns", FIRST, 1006, ""),
    ("cut@bytes=1", FIRST[:1], 1006, ""),
    ("close=1012@mid-turn", FIRST[:3], 1012, "Service restart"),
    ("close=1001@between-turns", FIRST, 1001, "Going away"),
    ("close=4000", [], 4000, ""),
    ("error=500", ["500"], 1011, "Internal Server Error"),
    ("error=500@mid-turn", [*FIRST[:3], "500"], 1011, "Internal Server Error"),
    ("error=503:1013@mid-turn", [*FIRST[:3], "503"], 1013, "Service Unavailable"),
    ("error=429", ["429"], 1008, "Concurrency limit reached"),
    ("pace=1.0", ["connected", "400"], 1008, "Audio too fast"),
    ("pace=1.0:burst=100ms:1011", ["connected", "400"], 1011, "Audio too fast"),
]


@pytest.mark.parametrize(("spec", "events", "code", "reason"), ENDS_BY_ITSELF)
async def test_fault_ends_connection(spec: str, events: list[str], code: int, reason: str) -> None:
    async with serving() as server:
        server.faults.set(f"{spec},count=1")
        assert await play(server, close=False) == (events, code, reason)
        await until_closed(server)
        assert server.connections[0].faults == [f"{spec},count=1"]
        assert server.connections[0].close_code == code
        # The next connection is served normally.
        assert await play(server, close=True) == ([*FIRST, *SECOND], 1000, "")
        assert server.connections[1].faults == []


TO_THE_END = [
    ("cut@flush", FIRST + SECOND[:2], 1006),
    ("cut=fin@flush", FIRST + SECOND[:2], 1006),
    ("cut@flushed", FIRST + SECOND, 1006),
    ("close=1012@flush", FIRST + SECOND[:2], 1012),
    ("error=500@flushed", [*FIRST, *SECOND, "500"], 1011),
    ("error=400:open@mid-turn", [*FIRST, *SECOND], 1000),
    ("connected=late:50ms", FIRST + SECOND, 1000),
    ("connected=late:1s:deaf", FIRST[:1], 1000),
    ("no-turn-end", [event for event in FIRST + SECOND if event != END], 1000),
    ("duplicate", ["connected", *(e for e in FIRST[1:] + SECOND for _ in range(2))], 1000),
    ("shrink", [*FIRST[:3], "", "w1 w2", "w1", EAGER, END, START, " w3", "", END], 1000),
    ("slow-read=1m/s", FIRST + SECOND, 1000),
    ("pace=1.0:burst=60s", FIRST + SECOND, 1000),
    ("pace=1.0:open", ["connected", "400"], 1000),
]


@pytest.mark.parametrize(("spec", "events", "code"), TO_THE_END)
async def test_fault_after_close_sends_expected_events(
    spec: str, events: list[str], code: int
) -> None:
    async with serving() as server:
        server.faults.set(spec)
        received, left, _ = await play(server, close=True)
        took = server.connections[0].faults
    if spec.startswith("error=400:open"):
        received.remove("400")  # comes somewhere after the update that it waited for
    assert (received, left) == (events, code)
    assert took == ([] if spec == "pace=1.0:burst=60s" else [spec])


async def test_cut_by_bytes_is_exact() -> None:
    async with serving() as server:
        server.faults.set("cut@bytes=1234")
        async with dial(server) as ws:
            await ws.send(AUDIO[:1000])
            await next_event(ws)
            await ws.send(AUDIO[1000:])
            assert (await rest_of(ws))[1] == 1006
        await until_open(server, 0)
        assert server.connections[0].audio_bytes == 1234


@pytest.mark.parametrize(
    ("spec", "error"),
    [("cut@opened", anyio.BrokenResourceError), ("cut=fin@opened", anyio.EndOfStream)],
)
async def test_cut_resets_or_ends_tcp(spec: str, error: type[Exception]) -> None:
    async with serving() as server:
        server.faults.set(spec)
        async with await anyio.connect_tcp("127.0.0.1", server.port) as tcp:
            await tcp.send(upgrade_request())
            answer = bytearray()
            with pytest.raises(error):
                await _receive_all(tcp, answer)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\n")


async def _receive_all(tcp: ByteReceiveStream, received: bytearray) -> None:
    while True:
        received += await tcp.receive()


@pytest.mark.parametrize("spec", ["cut@handshake", "cut=fin@handshake"])
async def test_cut_handshake_gets_no_answer(spec: str) -> None:
    async with serving() as server:
        server.faults.set(spec)
        with pytest.raises((ConnectionResetError, InvalidMessage)):
            await dial(server)
        assert (list(server.connections), server.state().faults) == ([], (ApplyResult(spec, 1),))


@pytest.mark.parametrize("status", [401, 402, 403, 429, 500, 503])
async def test_refused_upgrade_has_body_of_its_status(status: int) -> None:
    async with serving() as server:
        server.faults.set(f"http={status}")
        with pytest.raises(InvalidStatus) as refused:
            await dial(server)
    response = refused.value.response
    assert response.status_code == status
    body = json.loads(response.body or b"")
    assert body.pop("request_id") == response.headers["X-Request-Id"]
    assert body.keys() == {"error_code", "title", "message"}
    codes = {402: "quota_exceeded", 429: "concurrency_limited"}
    assert body["error_code"] == codes.get(status)


async def test_refusal_of_older_version_is_plain_text() -> None:
    async with serving() as server:
        server.faults.set("http=500")
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, headers={"X-API-Key": "any", "Cartesia-Version": "2025-04-16"})
    assert (refused.value.response.body or b"").startswith(b"Internal Server Error: ")


async def test_refused_upgrades_do_not_count() -> None:
    async with serving(ServerSettings(port=0, api_keys=frozenset({"one"}))) as server:
        server.faults.set("http=503,count=1")
        for key, status in [("two", 401), ("one", 503)]:
            with pytest.raises(InvalidStatus) as refused:
                await dial(server, headers={"X-API-Key": key, "Cartesia-Version": "2026-03-01"})
            assert refused.value.response.status_code == status
        assert server.state().refused == {"401": 1, "503": 1}


async def silent(ws: ClientConnection) -> bool:
    """Return whether the server neither answers a ping nor closes."""
    pong = await ws.ping()
    with anyio.move_on_after(0.2) as waited:
        await pong
    return waited.cancelled_caught


async def test_half_open_connection_stays_open_and_silent() -> None:
    async with serving() as server:
        server.faults.set("half-open@mid-turn")
        ws = await dial(server)
        await ws.send(AUDIO)
        assert summaries([await next_event(ws) for _ in range(3)]) == FIRST[:3]
        assert await silent(ws)
        await ws.send(AUDIO)
        await ws.send('{"type":"close"}')
        assert await silent(ws)
        assert server.open_connections == 1
        server.cut_all()
        assert await rest_of(ws) == ([], 1006, "")
        await until_open(server, 0)


async def test_half_open_connection_ends_on_idle_or_stop() -> None:
    async with serving(ServerSettings(port=0, idle_timeout_s=0.2)) as server:
        server.faults.set("half-open@opened")
        ws = await dial(server)
        assert await rest_of(ws) == ([], 1006, "")
    async with serving() as server:
        server.faults.set("half-open@opened")
        ws = await dial(server)
        assert await silent(ws)
    assert await rest_of(ws) == ([], 1006, "")


async def test_unanswered_handshake_lasts_until_either_side_ends() -> None:
    async with serving() as server, anyio.create_task_group() as tasks:
        server.faults.set("half-open@handshake")
        with pytest.raises(TimeoutError):
            async with dial(server, open_timeout=1):
                pass

        async def knock() -> None:
            with pytest.raises((ConnectionResetError, InvalidMessage)):
                await dial(server)

        tasks.start_soon(knock)
        with anyio.fail_after(PATIENCE_S):
            while server.state().faults[0].connections < 2:
                await anyio.sleep(0.01)
        server.cut_all()


async def test_mute_connection_answers_only_pings() -> None:
    async with serving() as server:
        server.faults.set("connected=never")
        async with dial(server) as ws:
            await ws.send(AUDIO)
            await ws.send("no command")
            with anyio.move_on_after(0.2) as waited:
                await ws.recv()
            assert waited.cancelled_caught
            await (await ws.ping())
            assert server.connections[0].audio_bytes == len(AUDIO)


async def test_slow_reading_blocks_client() -> None:
    async with serving() as server:
        server.faults.set("slow-read=1/s")
        async with dial(server) as ws, anyio.create_task_group() as tasks:
            tasks.start_soon(_flood, ws)
            assert (await next_event(ws))["type"] == "connected"
            with anyio.fail_after(30):
                while ws.transport.get_write_buffer_size() == 0:
                    await anyio.sleep(0.01)
            assert server.connections[0].audio_bytes == 0
            tasks.cancel_scope.cancel()
            server.cut_all()


async def _flood(ws: ClientConnection) -> None:
    while True:
        await ws.send(bytes(256 * 1024))


async def test_pace_limit_drops_refused_audio_only() -> None:
    async with serving() as server:
        server.faults.set("pace=1.0:burst=200ms:open")
        async with dial(server) as ws:
            await ws.send(synthesize_words([1], PHONE))
            await ws.send(synthesize_words([2, 2, 2], PHONE))  # more than the burst allowance
            received = [(await next_event(ws)) for _ in range(4)]
            await anyio.sleep(0.25)
            await ws.send(synthesize_words([3], PHONE))
            events, code, _ = await closed(ws)
        assert summaries(received) == ["connected", START, "w1", "400"]
        assert "than 1 times real time" in received[-1]["message"]
        assert (summaries(events), code) == (["w1 w3", END], 1000)
        assert server.connections[0].pace.peak >= 0.6, "what is refused was sent all the same"


async def test_faults_apply_to_open_connections() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(synthesize_words([1], PHONE))
        assert summaries([await next_event(ws) for _ in range(3)]) == FIRST[:3]
        server.faults.set("close=1012@bytes=1")
        await ws.send(synthesize_words([2], PHONE))
        assert (await rest_of(ws))[1] == 1012


async def test_share_of_connections_depends_on_seed() -> None:
    async with serving() as server:
        taken = []
        for seed in (3, 3):
            server.faults.set("close=1012,p=0.5", seed=seed)
            codes = [(await play(server, close=True))[1] for _ in range(12)]
            taken.append(codes)
    assert taken[0] == taken[1]
    assert set(taken[0]) == {1000, 1012}


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_cut_all_closes_every_socket(how: Any) -> None:
    async with serving() as server:
        clients = [await dial(server) for _ in range(5)]
        for ws in clients:
            await next_event(ws)
        assert server.cut_all(how) == 5
        for ws in clients:
            assert await rest_of(ws) == ([], 1006, "")
        await until_open(server, 0)
        assert server.cut_all() == 0
        assert server.state().closed == {"1006": 5}


# Outages


async def refusal(server: TurnsServer) -> object:
    try:
        async with dial(server):
            return None
    except OSError as error:
        return error.errno
    except InvalidStatus as error:
        return error.response.status_code


@pytest.mark.parametrize(("how", "answer"), [("refuse", errno.ECONNREFUSED), ("503", 503)])
async def test_outage_refuses_connects_and_keeps_open_sockets(how: Any, answer: int) -> None:
    async with serving() as server, dial(server) as ws:
        for _ in range(2):
            async with server.outage(how):
                assert server.state().outage == how
                assert await refusal(server) == answer
                assert await refusal(server) == answer
            assert await refusal(server) is None
        await ws.send(AUDIO)
        assert summaries((await closed(ws))[0]) == FIRST + SECOND
        assert server.state().outage is None


@pytest.mark.parametrize("how", ["refuse", "503"])
async def test_server_stops_during_outage(how: Any) -> None:
    async with serving() as server:
        ws = await dial(server)
        async with server.outage(how):
            await server.stop(1012)
            assert (await rest_of(ws))[1] == 1012
        assert await refusal(server) == errno.ECONNREFUSED


async def test_second_outage_is_refused() -> None:
    async with serving() as server, server.outage("503"):
        with pytest.raises(TurnbusError, match="an outage is already running"):
            async with server.outage():
                pass
        assert await refusal(server) == 503


# Reports


async def test_report_describes_connection() -> None:
    async with serving() as server, dial(server, GOOD | {"keyterm": "Ink"}) as ws:
        server.faults.set("duplicate")
        await ws.send(AUDIO)
        await ws.send(b"")
        while (await next_event(ws))["type"] != END:
            pass
        live = server.connections[0].report()
        assert (live["open"], live["close_code"]) == (True, None)
        await closed(ws)
        await until_open(server, 0)
        report = server.connections[0].report()
    assert (report["model"], report["encoding"], report["sample_rate"]) == (
        "ink-2",
        "pcm_s16le",
        8000,
    )
    assert report["keyterms"] == ("Ink",)
    assert (report["audio_messages"], report["audio_bytes"]) == (2, len(AUDIO))
    assert report["audio_s"] == len(AUDIO) / 16_000
    assert report["peak_pace"] == pytest.approx(report["audio_s"])
    assert report["transcripts"] == ("w1 w2", "w1 w2", " w3", " w3")
    assert (report["open"], report["close_code"], report["faults"]) == (False, 1000, ("duplicate",))


async def test_report_includes_refused_connection() -> None:
    async with serving() as server:
        async with dial(server, GOOD | {"model": "no"}) as ws:
            await rest_of(ws)
        await until_closed(server)
        report = server.connections[0].report()
    assert (report["model"], report["encoding"], report["close_code"]) == (None, None, 1008)
