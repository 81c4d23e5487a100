"""Pipecat's Twilio serializer, unmodified, and the gateway: each reads what the other reads."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.contract.test_clients import PIPECAT
from tests.support.carriers import LEFT_BEHIND, TwilioStream, carried, noise, replay
from tests.support.gateway import gateway
from tests.support.harness import Harness

FRAME_BYTES = 160


@pytest.fixture(scope="session")
def serializer(client_python: Callable[[str], Path]) -> list[str]:
    """Return the command that runs the serializer."""
    script = Path(__file__).with_name("pipecat_twilio.py")
    return [str(client_python(PIPECAT)), "-I", str(script)]


@pytest.fixture(autouse=True)
def without_worker(expected_leftovers: list[str]) -> None:
    """No worker runs, so the streams stay as the gateway wrote them."""
    expected_leftovers += LEFT_BEHIND


async def answers(command: Sequence[str], given: Sequence[object]) -> list[Any]:
    """Return the serializer's answer to each value."""
    lines = "".join(json.dumps(each) + "\n" for each in given)
    with anyio.fail_after(120):
        done = await anyio.run_process([*command, "MZ1"], input=lines.encode(), stderr=None)
    return [json.loads(line) for line in done.stdout.splitlines()]


def decoded(mulaw: bytes) -> bytes:
    """Return mu-law as 16-bit samples, by the formula of ITU-T G.711."""
    return b"".join(_sample(byte ^ 0xFF).to_bytes(2, "little", signed=True) for byte in mulaw)


def _sample(code: int) -> int:
    size = (((code & 0x0F) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
    return -size if code & 0x80 else size


async def test_gateway_and_pipecat_read_the_same(
    serializer: list[str], harness: Harness, tmp_path: Path
) -> None:
    call = TwilioStream("MZ1")
    messages = [*call.opening()]
    for at in range(60):
        messages.append(call.media(noise(FRAME_BYTES, at)))
        if at % 5 == 2:
            messages.append(call.dtmf("0123456789*#"[at // 5]))
    messages.append(call.stop())
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        replay(ingest, "/twilio", messages),
    ):
        leg = await carried(harness, "MZ1")
    read = [each for each in await answers(serializer, messages) if each is not None]
    audio, keys = b"", []
    for kind, value in read:
        if kind == "audio":
            audio += base64.b64decode(value)
        else:
            keys.append((len(audio) // 2, {"dtmf": value}))
    assert decoded(leg.audio) == audio
    assert leg.marks == keys
    assert len(keys) == 12


async def test_gateway_reads_what_pipecat_writes(
    serializer: list[str], harness: Harness, tmp_path: Path
) -> None:
    call = TwilioStream("MZ2")
    sound = noise(60 * 2 * FRAME_BYTES)
    size = 2 * FRAME_BYTES
    pcm = [
        {"pcm": base64.b64encode(sound[at : at + size]).decode()} for at in range(0, 19_200, size)
    ]
    written = await answers(serializer, pcm)
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        replay(ingest, "/twilio", [*call.opening(), *written, call.stop()]),
    ):
        leg = await carried(harness, "MZ2")
    sent = [base64.b64decode(json.loads(each)["media"]["payload"]) for each in written]
    assert leg.audio == b"".join(sent)
    assert len(leg.audio) == len(sound) // 2
    (*back,) = await answers(serializer, written)
    assert decoded(leg.audio) == b"".join(base64.b64decode(value) for _, value in back)
