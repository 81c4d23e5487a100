"""The control endpoint: what it reports and does, and which requests it refuses."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.contract.wire import GOOD, PHONE, closed, dial, next_event, rest_of, serving, until_open
from tests.support.polling import PATIENCE_S
from tests.unit.emulator.control_client import get
from worker.errors import TurnbusError
from worker.local.emulator.control import serve_control
from worker.local.emulator.engines.script import synthesize_words
from worker.local.emulator.server import TurnsServer


@asynccontextmanager
async def controlled() -> AsyncIterator[tuple[TurnsServer, int]]:
    async with serving() as server, serve_control(server, 0) as port:
        yield server, port


async def test_state_and_connections_are_returned() -> None:
    async with controlled() as (server, port):
        for number in range(3):
            async with dial(server, GOOD | {"keyterm": f"term {number}"}) as ws:
                await ws.send(synthesize_words([number], PHONE))
                await closed(ws)
        await until_open(server, 0)
        status, state = await get(port, "/")
        assert status == 200
        assert state == {
            "url": server.url,
            "outage": None,
            "faults": [],
            "open": 0,
            "upgraded": 3,
            "refused": {},
            "closed": {"1000": 3},
        }
        _, connections = await get(port, "/connections?last=2")
    assert [each["keyterms"] for each in connections] == [["term 1"], ["term 2"]]
    assert [each["transcripts"] for each in connections] == [["w1"], ["w2"]]
    assert {each["audio_s"] for each in connections} == {0.2}
    assert {each["close_code"] for each in connections} == {1000}


async def test_faults_are_set_and_cleared() -> None:
    async with controlled() as (server, port):
        target = "/faults/set?fault=close=1012@opened,p=0.5&fault=duplicate&seed=7"
        _, state = await get(port, target)
        assert state["faults"] == [
            {"fault": "close=1012@opened,p=0.5", "connections": 0},
            {"fault": "duplicate", "connections": 0},
        ]
        _, state = await get(port, "/faults/set?fault=close=1012")
        async with dial(server) as ws:
            assert (await rest_of(ws))[1] == 1012
        _, state = await get(port, "/faults/clear")
        assert state["faults"] == []
        async with dial(server) as ws:
            assert (await next_event(ws))["type"] == "connected"


async def test_sockets_are_cut() -> None:
    async with controlled() as (server, port), dial(server) as ws:
        await next_event(ws)
        assert (await get(port, "/cut?how=fin"))[0] == 200
        assert (await rest_of(ws))[1] == 1006


async def refused(server: TurnsServer) -> int | None:
    try:
        async with dial(server):
            return None
    except OSError as error:
        return error.errno


async def test_outage_starts_stops_and_can_expire() -> None:
    async with controlled() as (server, port):
        _, state = await get(port, "/outage/start?how=refuse")
        assert state["outage"] == "refuse"
        assert await refused(server) == errno.ECONNREFUSED
        status, problem = await get(port, "/outage/start?how=503")
        assert (status, problem) == (409, {"error": "an outage is already running"})
        _, state = await get(port, "/outage/stop")
        assert state["outage"] is None
        assert await refused(server) is None
        await get(port, "/outage/start?how=503&for=50ms")
        with anyio.fail_after(PATIENCE_S):
            while server.state().outage is not None:
                await anyio.sleep(0.01)
        assert await refused(server) is None


async def test_leaving_block_ends_outage() -> None:
    async with serving() as server:
        async with serve_control(server, 0) as port:
            await get(port, "/outage/start")
        assert server.state().outage is None
        assert await refused(server) is None


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("/nothing", 404, "unknown path; the paths are /, /connections"),
        ("/?x=1", 400, "unknown field `x`"),
        ("/connections?last=0", 400, ">= 1"),
        ("/faults/set", 400, "missing required field `fault`"),
        ("/faults/set?fault=duplicate&fault=cats", 400, "fault 'cats': the kinds are"),
        ("/faults/set?fault=duplicate&seed=x", 400, "Expected `int`"),
        ("/outage/start?how=maybe", 400, "Invalid enum value 'maybe'"),
        ("/outage/start?for=long", 400, "a duration is written"),
        ("/outage/stop", 409, "no outage was started by this endpoint"),
        ("/cut?how=off", 400, "Invalid enum value 'off'"),
    ],
)
async def test_invalid_request_is_refused_with_reason(target: str, status: int, says: str) -> None:
    async with controlled() as (server, port):
        answered, problem = await get(port, target)
        assert (answered, list(problem)) == (status, ["error"])
        assert says in problem["error"]
        assert (server.state().outage, server.state().faults) == (None, ())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8766"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "127.0.0.1:8766", "Sec-Fetch-Site": "none"}, 200),
        ({"Host": "127.0.0.1:8766", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example:8766"}, 403),
        ({}, 403),
    ],
)
async def test_requests_of_web_pages_are_refused(headers: dict[str, str], status: int) -> None:
    async with controlled() as (_, port):
        assert (await get(port, "/", headers))[0] == status


async def test_port_in_use_is_reported() -> None:
    async with controlled() as (server, port):
        with pytest.raises(TurnbusError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serve_control(server, port):
                pass
