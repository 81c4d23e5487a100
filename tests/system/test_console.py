"""The console page in a real browser: it is spoken to, and a worker dies in mid-sentence."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket

from schemas.turns import AudioGap, Event, SessionEnded, SessionMark, TurnEnd, decode_event
from tests.support.console import (
    KENNEDY,
    ShownTurn,
    find_chromium,
    open_console,
    write_microphone,
)
from tests.support.dev import Dev, running
from worker.consume import connect, events
from worker.local.wer import word_error_rate

ONE_WORD: Final = 1.01 / len(KENNEDY.transcript.split())
"""The error rate of one wrong word: after a replay the recognizer may understand another one."""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Directory in which the command puts its files."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture
def chromium() -> str:
    """Path of the system's Chromium."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine; in Debian: apt-get install chromium")
    return path


async def consumed(dev: Dev, session: str) -> Sequence[Event]:
    """Return the events of an ended session, as a consumer gets them from Redis."""
    found: list[Event] = []
    with anyio.fail_after(60):
        async with connect(dev.variables["TURNBUS_REDIS_URL"]) as redis:
            async for received in events(redis, start="oldest"):
                if received.event.session == session:
                    assert not received.missing
                    assert not received.repeated
                    found.append(received.event)
                    if isinstance(received.event, SessionEnded):
                        break
    return found


async def undisturbed(dev: Dev, messages: Sequence[str | bytes]) -> Sequence[Event]:
    """Return the events of a call with the same messages, during which nothing breaks."""
    url = f"ws://{dev.address}/raw?events=1"
    async with connect_websocket(url, proxy=None) as call, anyio.create_task_group() as tasks:
        assert json.loads(await call.recv())["type"] == "ingest.opened"
        tasks.start_soon(_send, call, messages)
        received = [str(message).encode() async for message in call]
    return [decode_event(message) for message in received]


async def _send(call: ClientConnection, messages: Sequence[str | bytes]) -> None:
    for message in messages:
        await call.send(message)


def ends(found: Sequence[Event]) -> Sequence[TurnEnd]:
    return [event for event in found if isinstance(event, TurnEnd)]


def error_rate(found: Sequence[Event]) -> float:
    transcript = "".join(end.transcript for end in ends(found))
    return word_error_rate([KENNEDY.transcript], [transcript])


def hosts(addresses: Sequence[str]) -> set[str]:
    return {urlsplit(address).netloc for address in addresses}


async def test_console_loses_no_word_with_its_worker(
    chromium: str, temporary: Path, tmp_path: Path
) -> None:
    microphone = tmp_path / "microphone.wav"
    seconds = write_microphone(KENNEDY, microphone)
    async with running(tmp_path, "--port", "0", engine="speech") as dev:
        await dev.started()
        async with open_console(chromium, dev.address, microphone) as console:
            await console.speak()
            await console.listen(words=2)
            await console.page.keyboard.press("5")
            await console.force_end()
            killed, other = await console.kill_worker()
            await console.until_sent(seconds + 2)
            await console.finish()
            found = await consumed(dev, await console.fact("session"))

            # The page shows what consumers get from Redis: each turn, mark and event once.
            turns = ends(found)
            assert await console.turns() == [
                ShownTurn(end.turn, end.transcript.strip(), end.reason) for end in turns
            ]
            assert [end.reason for end in turns].count("forced") == 1
            marks = [event.mark for event in found if isinstance(event, SessionMark)]
            assert marks == [{"dtmf": "5"}]
            log = "\n".join(await console.log())
            for line in (f"{killed} killed", 'mark {"dtmf":"5"}', "end of the turn forced"):
                assert log.count(line) == 1, log
            assert [event.seq for event in found] == [*range(1, len(found) + 1)]
            assert await console.fact("stream") == f"events {len(found)}, gaps 0, repeats 0"
            assert not any(isinstance(event, AudioGap) for event in found)
            assert {killed, other} == {"worker-1", "worker-2"}
            assert await console.fact("agent") == "-"

            assert hosts(console.addresses) == {dev.address}
            assert console.problems == []
            await console.page.set_viewport_size({"width": 360, "height": 800})
            assert await console.overflow() == 0
        # A browser without CPU time drops sound: what it sent is the measure, not the clip alone.
        whole = await undisturbed(dev, console.sent)
        assert error_rate(found) <= error_rate(whole) + ONE_WORD, (turns, ends(whole))
        dev.process.send_signal(signal.SIGINT)
        assert await dev.process.wait() == 0
    assert os.listdir(temporary) == []  # noqa: PTH208 - blocking, as any listing


async def test_console_says_that_the_provider_is_away(
    chromium: str, temporary: Path, tmp_path: Path
) -> None:
    microphone = tmp_path / "microphone.wav"
    write_microphone(KENNEDY, microphone)
    async with running(tmp_path, "--port", "0") as dev:
        await dev.started()
        async with open_console(chromium, dev.address, microphone) as console:
            await console.speak()
            await console.page.click("#outage")
            await console.until_status("The provider is away: the audio waits in Redis.")
            await console.until_status("Live: speak.")
            await console.finish()
            assert console.problems == []
