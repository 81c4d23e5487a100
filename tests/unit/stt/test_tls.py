"""A provider behind TLS with a certificate of a private authority."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from schemas.audio import Encoding
from tests.support.certificates import Authority, behind_tls
from worker.errors import SttTransientError
from worker.local.emulator.server import TurnsServer
from worker.stt.cartesia import CARTESIA
from worker.stt.provider import Endpoint, StreamSettings
from worker.stt.websocket import _tls

KEY = "sk_car_test"
SETTINGS = StreamSettings("ink-2", Encoding.PCM_S16LE, 16_000, keyterms=("hunter2",))


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    """A private authority, named as OpenSSL reads it."""
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    _tls.cache_clear()
    yield made
    _tls.cache_clear()


async def request_id(url: str) -> str:
    async with await CARTESIA.open(Endpoint(url, "2026-03-01", KEY), SETTINGS) as stream:
        return stream.request_id


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_private_authority_is_trusted(
    stt: TurnsServer, authority: Authority, host: str
) -> None:
    certificate = authority.issue("localhost", "::1")
    async with behind_tls(stt.url, certificate, host) as url:
        assert await request_id(url)


@pytest.mark.parametrize("use_uvloop", [False, True])
@pytest.mark.parametrize(
    ("names", "expired", "known", "fault"),
    [
        ("localhost", False, False, "; name your own authority's file as SSL_CERT_FILE"),
        ("stt.example", False, True, "not valid for 'localhost'; connect by a name that the cert"),
        ("localhost", True, True, "certificate has expired; renew it, or set the clocks right"),
    ],
)
def test_invalid_certificate_is_refused(
    authority: Authority,
    tmp_path: Path,
    names: str,
    *,
    expired: bool,
    known: bool,
    fault: str,
    use_uvloop: bool,
) -> None:
    issuer = authority if known else Authority(tmp_path, "another")

    async def connect() -> str:
        certificate = issuer.issue(names, expired=expired)
        async with behind_tls("ws://127.0.0.1:1/stt", certificate) as url:
            with pytest.raises(SttTransientError) as refused:
                await request_id(url)
        return str(refused.value)

    error = anyio.run(connect, backend_options={"use_uvloop": use_uvloop})
    assert error.startswith("cannot connect: TLS: certificate refused: ")
    assert fault in error
    assert KEY not in error
    assert "hunter2" not in error
