"""Who may use a gateway, as its clients see it, and no secret in its log."""

import base64
import hmac
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from schemas import Keys
from tests.support.gateway import GatewayProcess, TwilioCall, gateway, speech
from tests.support.harness import Harness
from tests.support.polling import eventually
from tests.unit.ingest.wire import UPGRADE
from worker.ingest.tokens import issue

KEY = "k" * 40
OLD_KEY = "o" * 40
TWILIO = "twilio-auth-token"
PUBLIC = "https://ingest.example.com"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Settings with a file of each kind of secret."""
    contents = {
        "bearer_file": "bearer-secret\n",
        "basic_file": "pbx:basic-secret\n",
        "token_key_file": f"{KEY}\n{OLD_KEY}\n",
        "twilio_auth_token_file": f"{TWILIO}\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    return {name: str(tmp_path / name) for name in contents}


@pytest.fixture
async def guarded(
    harness: Harness, files: dict[str, str], tmp_path: Path
) -> AsyncIterator[GatewayProcess]:
    """Run a gateway with all kinds of secrets."""
    async with gateway(harness, tmp_path / "log", public_url=PUBLIC, **files) as ingest:
        yield ingest


async def status(ingest: GatewayProcess, target: str, headers: Mapping[str, str] = {}) -> int:
    """Return the status of an upgrade."""
    try:
        async with connect(f"{ingest.url}{target}", proxy=None, additional_headers=headers):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def get(ingest: GatewayProcess, target: str, lines: bytes = b"X: y") -> bytes:
    """Return the answer to a GET."""
    received = b""
    async with await anyio.connect_tcp("127.0.0.1", ingest.port) as stream:
        await stream.send(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (target.encode(), lines))
        async for part in stream:
            received += part
    return received


def token(session: str, scope: str = "both", *, key: str = KEY, seconds: int = 60) -> str:
    """Return a token that expires in some seconds."""
    return issue(key.encode(), session, scope, int(time.time()) + seconds)  # type: ignore[arg-type]


async def test_raw_takes_each_credential(guarded: GatewayProcess) -> None:
    basic = base64.b64encode(b"pbx:basic-secret").decode()
    assert await status(guarded, "/raw?session=a", {"Authorization": "Bearer bearer-secret"}) == 101
    assert await status(guarded, "/raw?session=b", {"Authorization": f"Basic {basic}"}) == 101
    assert await status(guarded, f"/raw?session=c&token={token('c')}") == 101
    assert await status(guarded, f"/raw?token={token('d')}") == 101
    assert await status(guarded, f"/raw?session=e&token={token('e', key=OLD_KEY)}") == 101


async def test_raw_refuses_wrong_credentials(guarded: GatewayProcess) -> None:
    good = token("a")
    refused = {
        "/raw?session=a": 401,
        "/raw?session=a&token=nonsense": 401,
        f"/raw?session=a&token={good[:-2]}xx": 401,
        f"/raw?session=a&token={token('a', key='w' * 40)}": 401,
        f"/raw?session=a&token={token('a', seconds=-1)}": 401,
        f"/raw?session=b&token={good}": 403,
        f"/raw?session=a&token={token('a', 'events')}": 403,
        f"/raw?session=a&events=1&token={token('a', 'audio')}": 403,
        f"/twilio?token={good}": 401,
        "/asterisk": 401,
        "/freeswitch": 401,
    }
    assert {target: await status(guarded, target) for target in refused} == refused
    wrong = {"Authorization": "Bearer wrong-secret"}
    assert await status(guarded, "/raw?session=a", wrong) == 401
    assert await status(guarded, "/asterisk", wrong) == 401
    await guarded.logged("/raw: a request was refused: the token is expired")
    for secret in (good, KEY, TWILIO, "wrong-secret", "bearer-secret"):
        assert secret not in guarded.text()


async def test_twilio_signature_is_checked(guarded: GatewayProcess) -> None:
    url = f"{PUBLIC.replace('https', 'wss')}/twilio"
    good = base64.b64encode(hmac.digest(TWILIO.encode(), url.encode(), "sha1")).decode()
    assert await status(guarded, "/twilio", {"X-Twilio-Signature": good}) == 101
    assert await status(guarded, "/twilio", {"X-Twilio-Signature": good[:-4] + "AAA="}) == 403
    assert await status(guarded, "/twilio") == 401


async def test_replaced_secret_is_used_at_once(
    guarded: GatewayProcess, files: dict[str, str]
) -> None:
    Path(files["bearer_file"]).write_text("another-secret-now\n")  # noqa: ASYNC240 - a few bytes
    old, new = "Bearer bearer-secret", "Bearer another-secret-now"
    assert await status(guarded, "/raw?session=a", {"Authorization": old}) == 401
    assert await status(guarded, "/raw?session=a", {"Authorization": new}) == 101


async def test_page_of_another_site_is_refused(harness: Harness, tmp_path: Path) -> None:
    async with gateway(harness, tmp_path / "log", origins="https://app.example.com") as ingest:
        own = f"http://127.0.0.1:{ingest.port}"
        for origin, wanted in (
            ("https://evil.example", 403),
            ("null", 403),
            (own, 101),
            ("https://app.example.com", 101),
        ):
            assert await status(ingest, "/raw?session=a", {"Origin": origin}) == wanted, origin


async def test_events_need_a_token_for_the_session(guarded: GatewayProcess) -> None:
    async def answer(target: str) -> int:
        async with await anyio.connect_tcp("127.0.0.1", guarded.port) as stream:
            await stream.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return int((await stream.receive()).split()[1])

    assert await answer("/events?session=a") == 401
    assert await answer(f"/events?session=b&token={token('a')}") == 403
    assert await answer(f"/events?session=a&token={token('a', 'audio')}") == 403
    assert await answer(f"/events?session=a&token={token('a', 'events')}") == 200


async def test_token_is_for_one_lane(guarded: GatewayProcess) -> None:
    in_lane = issue(KEY.encode(), "a", "both", int(time.time()) + 60, "x")
    assert await status(guarded, f"/raw?lane=x&token={token('a')}") == 403
    assert await status(guarded, f"/raw?lane=0&lane=x&token={token('a')}") == 403
    assert await status(guarded, f"/raw?lane=0&token={in_lane}") == 403
    for target in (f"/raw?token={in_lane}", f"/raw?lane=x&token={in_lane}"):
        assert await status(guarded, target) in {101, 409}  # 409 until the first one has ended
    for query, expected in (
        (f"lane=x&token={token('a')}", 403),
        (f"token={in_lane}", 403),
        (f"lane=x&last_event_id=$&token={in_lane}", 400),
    ):
        answer = await get(guarded, f"/events?session=a&{query}")
        assert int(answer.split()[1]) == expected


async def test_repeated_session_gives_no_other_events(
    guarded: GatewayProcess, harness: Harness
) -> None:
    for session in ("a", "b"):
        fields: Any = {"session": session, "type": "session.ended", "event": f"of-{session}"}
        await harness.redis.xadd(Keys(harness.prefix).turns("0"), fields)
    for sessions, status_line in (("session=b&session=a", 200), ("session=a&session=b", 403)):
        target = f"/events?{sessions}&last_event_id=0-0&token={token('a')}"
        answer = await get(guarded, target)
        assert int(answer.split()[1]) == status_line
        assert b"of-b" not in answer


@pytest.mark.parametrize(
    ("target", "lines", "expected"),
    [
        ("/raw", b"Authorization: Bearer \xff", 401),
        ("/raw", b"Authorization: Basic \xff", 401),
        ("/twilio", b"X-Twilio-Signature: \xff", 403),
        (
            "/events?session=a",
            b"Authorization: Bearer bearer-secret\r\nLast-Event-ID: 1-0\r\nLast-Event-ID: 2-0",
            400,
        ),
        ("/raw", b"Authorization: Bearer a\r\nAuthorization: Bearer bearer-secret", 400),
        ("//raw", b"Authorization: Bearer bearer-secret", 404),
        ("/raw/", b"Authorization: Bearer bearer-secret", 404),
        ("/%72aw", b"Authorization: Bearer bearer-secret", 404),
        ("/RAW", b"Authorization: Bearer bearer-secret", 404),
        ("http://y/raw", b"Authorization: Bearer bearer-secret", 400),
    ],
)
async def test_odd_requests_are_no_internal_errors(
    guarded: GatewayProcess, target: str, lines: bytes, expected: int
) -> None:
    assert int((await get(guarded, target, lines)).split()[1]) == expected
    assert "internal error" not in guarded.text()


async def test_repeated_subprotocols_are_one_list(harness: Harness, tmp_path: Path) -> None:
    offers = b"Sec-WebSocket-Protocol: other\r\nSec-WebSocket-Protocol: media\r\n\r\n"
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        await anyio.connect_tcp("127.0.0.1", ingest.port) as stream,
    ):
        upgrade = UPGRADE.replace(b"/raw", b"/asterisk").replace(b"Host: a", b"Host: localhost")
        await stream.send(upgrade.removesuffix(b"\r\n") + offers)
        assert b"Sec-WebSocket-Protocol: media\r\n" in await stream.receive()


@pytest.mark.parametrize(
    ("options", "variables", "what"),
    [
        (["--listen", "0.0.0.0:0"], {}, "TURNBUS_INGEST_LISTEN: 0.0.0.0:0 is not a loopback addr"),
        (["--audiosocket", "0.0.0.0:0"], {}, "TURNBUS_INGEST_AUDIOSOCKET_ALLOW: is required"),
        (["--listen", "nonsense"], {}, "TURNBUS_INGEST_LISTEN: must be HOST:PORT"),
        ([], {"BEARER_FILE": "/none"}, "TURNBUS_INGEST_BEARER_FILE: the file cannot be read"),
        (
            ["--console", "--listen", "0.0.0.0:0"],
            {"BEARER_FILE": "bearer"},
            "--console: beyond loopback a browser needs a user and a password",
        ),
        ([], {"BASIC_FILE": "bearer"}, "TURNBUS_INGEST_BASIC_FILE: each line must be USER:PASSW"),
        ([], {"TOKEN_KEY_FILE": "bearer"}, "TURNBUS_INGEST_TOKEN_KEY_FILE: a line has fewer than"),
    ],
)
async def test_unsafe_settings_are_one_line(
    options: list[str], variables: dict[str, str], what: str, tmp_path: Path
) -> None:
    (tmp_path / "bearer").write_text("secret-word")
    named = {f"TURNBUS_INGEST_{name}": str(tmp_path / value) for name, value in variables.items()}
    command = [sys.executable, "-m", "worker", "ingest", "--listen", "127.0.0.1:0", *options]
    done = await anyio.run_process(command, env={**os.environ, **named}, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"turnbus: {what}")
    assert "secret-word" not in line


@pytest.mark.parametrize(
    "sockets", [200, pytest.param(10_000, marks=pytest.mark.slow, id="ten thousand")]
)
async def test_idle_sockets_leave_room_for_calls(
    sockets: int, harness: Harness, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < sockets + 500:
        pytest.skip("this machine allows fewer open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, sockets + 500), hard))
    call = TwilioCall("MZ9")
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with AsyncExitStack() as idle:
            for _ in range(sockets):
                await idle.enter_async_context(await anyio.connect_tcp("127.0.0.1", ingest.port))
            async with connect(f"{ingest.url}/twilio", proxy=None) as socket:
                for message in call.start():
                    await socket.send(message)
                await call.play_all(socket, speech(1))
            await harness.until_ended("MZ9")
            assert ingest.process.returncode is None
        await eventually(lambda: status(ingest, "/raw?session=after"), "an answer afterwards")
        ingest.process.send_signal(signal.SIGTERM)
        assert await ingest.process.wait() == 0
