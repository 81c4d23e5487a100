"""A provider outage is logged once, and its end once."""

import anyio
import pytest

from schemas.turns import SessionError
from tests.support.harness import PCM16, Harness, words
from worker.errors import SttTransientError
from worker.local.emulator.engines.script import ScriptEngine, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.stt.health import OUTAGE_LOG_AFTER_S, OUTAGE_OVER_AFTER_S, ProviderOutage

ERROR = SttTransientError("HTTP 503", status=503)


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "worker.stt.health"]


def test_short_refusals_are_not_logged_as_outage(caplog: pytest.LogCaptureFixture) -> None:
    outage = ProviderOutage()
    for at in (0.0, 100.0, 200.0):
        outage.connect_failed("a", ERROR, at)
        outage.connected(at + OUTAGE_LOG_AFTER_S)
    outage.connect_failed("a", ERROR, 300.0)
    outage.connect_failed("a", ERROR, 301.0 + OUTAGE_OVER_AFTER_S)
    assert _logged(caplog) == []


def test_outage_is_logged_once_with_waiting_sessions(caplog: pytest.LogCaptureFixture) -> None:
    outage = ProviderOutage()
    for at in range(10):
        outage.connect_failed(f"session-{at % 3}", ERROR, float(at))
    outage.connected(10.5)
    outage.connected(11.0)
    assert _logged(caplog) == [
        "the STT provider accepted no connection for 3 s (HTTP 503); no session is lost",
        "the STT provider accepts connections again after 10.5 s; 3 sessions waited",
    ]


async def test_many_sessions_log_one_outage(
    harness: Harness, stt: TurnsServer, caplog: pytest.LogCaptureFixture
) -> None:
    await stt.stop()
    names = [f"call-{number}" for number in range(3)]
    async with harness.worker():
        for number, name in enumerate(names):
            await harness.announce(name)
            await harness.play(name, synthesize_words([number], PCM16), pause_s=0)
        for name in names:
            await harness.until(name, SessionError)
        with anyio.fail_after(30):
            while not _logged(caplog):
                await anyio.sleep(0.05)
        async with TurnsServer.serve(ServerSettings(port=stt.port), ScriptEngine()):
            events = await harness.until_ended(*names)
    for number, name in enumerate(names):
        assert words(events[name]) == [number]
    first, last = _logged(caplog)
    assert first.startswith("the STT provider accepted no connection for ")
    assert last.endswith("; 3 sessions waited")
