"""The documented client of the gateway sends a sound file and prints its turns."""

import sys
import wave
from pathlib import Path

import anyio

from schemas.turns import TurnEnd
from tests.docs.test_snippets import SNIPPETS
from tests.support.acl import GuardedRedis
from tests.support.gateway import gateway, speech
from tests.support.harness import PCM16, Harness
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings


async def test_client_prints_the_turns_of_its_call(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "call.wav"), "wb") as call:
        call.setparams((1, 2, PCM16.sample_rate, 0, "NONE", ""))
        call.writeframes(speech(2, PCM16))
    (tmp_path / "bearer").write_text("secret\n")
    engine = ScriptEngine(ScriptOptions(latency_ms=150))
    async with (
        TurnsServer.serve(ServerSettings(port=0), engine) as stt,
        GuardedRedis.start() as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker(),
        gateway(harness, tmp_path / "log", bearer_file=str(tmp_path / "bearer")) as serving,
    ):
        code = SNIPPETS["gateway_client.py"].replace(":8090/", f":{serving.port}/")
        command = [sys.executable, "-c", code, "call.wav", "call-1", "secret"]
        done = await anyio.run_process(command, cwd=tmp_path, stderr=None)
        events = (await harness.until_ended("call-1"))["call-1"]
    printed = done.stdout.decode().splitlines()
    ends = [f"turn.end {event.transcript}" for event in events if isinstance(event, TurnEnd)]
    assert len(ends) == 2
    assert [line for line in printed if line.startswith("turn.end")] == ends
    assert printed[0].strip() == "ingest.opened"
    assert printed[-1].strip() == "session.ended"
