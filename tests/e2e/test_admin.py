"""Health checks over real HTTP."""

import json
import socket
from urllib.error import HTTPError
from urllib.request import urlopen

import anyio.to_thread
import pytest

from worker.admin import Readiness, serve_admin
from worker.errors import SettingsError

READY = Readiness(ready=True, reasons=(), sessions=3, capacity=500)
NOT_READY = Readiness(ready=False, reasons=("redis: gone",), sessions=0, capacity=500)


def _get(url: str) -> tuple[int, str]:
    try:
        with urlopen(url) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("path", "state", "status"),
    [
        ("/livez", NOT_READY, 200),
        ("/readyz", READY, 200),
        ("/readyz?verbose", NOT_READY, 503),
        ("/", READY, 404),
    ],
)
async def test_health_endpoints_answer(path: str, state: Readiness, status: int) -> None:
    async with serve_admin(("127.0.0.1", 0), lambda: state) as port:
        code, body = await anyio.to_thread.run_sync(_get, f"http://127.0.0.1:{port}{path}")
    assert code == status
    if path.startswith("/readyz"):
        assert json.loads(body)["reasons"] == list(state.reasons)
        assert json.loads(body)["capacity"] == 500


async def test_admin_port_in_use_is_a_settings_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        with pytest.raises(SettingsError, match="TURNBUS_ADMIN_ADDR: cannot listen"):
            async with serve_admin(address, lambda: READY):
                pass
