"""The console page in the system's Chromium, with a sound file as its microphone."""

import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from playwright.async_api import Locator, Page, WebSocket, async_playwright, expect

from tests.support.sounds import pcm, samples_of, wav
from worker.local.clips import CLIPS, Clip

(KENNEDY,) = (clip for clip in CLIPS if clip.path.stem == "kennedy")
"""A sentence of 11 s."""

PATIENCE_MS: Final = 120_000
"""Timeout of each wait. No test asserts on time."""

SILENCE_S: Final = 2
"""Silence before the clip: the page takes a moment to listen."""

_RATE: Final = 48_000
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")


class ShownTurn(NamedTuple):
    """A turn as the page shows it."""

    number: int
    text: str
    reason: str


def find_chromium() -> str | None:
    """Return the path of the system's Chromium, if there is one."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def write_microphone(clip: Clip, path: Path) -> float:
    """Write what the microphone picks up; return its duration in seconds."""
    silence = np.zeros(SILENCE_S * _RATE, np.float32)
    samples = np.concatenate([silence, samples_of(clip.path, _RATE)])
    path.write_bytes(wav(pcm(samples), _RATE))
    return len(samples) / _RATE


class Console:
    """The page, what it does, and what it shows."""

    def __init__(self, page: Page) -> None:
        self.page: Final = page
        self.problems: Final[list[str]] = []
        """Errors and warnings of its scripts."""
        self.addresses: Final[list[str]] = []
        """Every URL that it requested."""
        self.sent: Final[list[str | bytes]] = []
        """Every message of its calls."""
        page.on("console", lambda line: self._note(line.type, line.text))
        page.on("pageerror", lambda error: self._note("error", error.message))
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on("websocket", self._watch)

    async def speak(self) -> None:
        """Start a session with the microphone, by keyboard."""
        await self.page.keyboard.press("Tab")
        await expect(self.page.locator("#microphone")).to_be_focused()
        await self.page.keyboard.press("Enter")
        await self.until_status("Live: speak.")

    async def until_status(self, text: str) -> None:
        """Wait until the page says this."""
        await expect(self.page.locator("#status")).to_have_text(text)

    async def listen(self, words: int) -> None:
        """Wait until the open turn shows this many words."""
        text = self.page.locator('.turn:not([data-state="done"]) .text')
        await expect(text).to_have_text(re.compile(rf"(\w+\W+){{{words - 1}}}\w+"))

    async def force_end(self) -> None:
        """End a turn in the middle, by keyboard."""
        forced = self.page.locator(".turn .reason", has_text="forced")
        while not await forced.count():
            await self.listen(3)
            await self.page.keyboard.press("Enter")
            # It may have ended by itself before: the next one is then forced.
            await expect(self.page.locator('.turn:not([data-state="done"])')).to_have_count(0)

    async def kill_worker(self) -> tuple[str, str]:
        """Kill the worker by its button, in a turn; return it, and the one that continues."""
        await self.listen(3)
        killed = await self.fact("worker")
        await self.page.click("#kill")
        await expect(self.page.locator("#fact-worker")).not_to_have_text(killed)
        await expect(self.page.locator(".turn .latency", has_text=", then ")).to_have_count(1)
        return killed, await self.fact("worker")

    async def until_sent(self, seconds: float) -> None:
        """Wait until the page has sent this much audio."""
        while float((await self.fact("audio")).partition(" s sent")[0]) < seconds:
            await self.page.wait_for_timeout(200)

    async def finish(self) -> None:
        """End the session, and wait for its last event."""
        await self.page.click("#end-session")
        await self.until_status("The session has ended.")

    async def fact(self, name: str) -> str:
        """Return a fact about the session."""
        return await self.page.locator(f"#fact-{name}").inner_text()

    async def turns(self) -> list[ShownTurn]:
        """Return the turns in their order."""
        items = await self.page.locator(".turn").all()
        return [await _shown(item) for item in reversed(items)]

    async def log(self) -> Sequence[str]:
        """Return the lines of the log, the latest first."""
        return await self.page.locator("#log li").all_inner_texts()

    async def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        root = "document.documentElement"
        width: int = await self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
        return width

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.problems.append(f"{kind}: {text}")

    def _watch(self, socket: WebSocket) -> None:
        self.addresses.append(socket.url)
        if urlsplit(socket.url).path == "/raw":
            socket.on("framesent", lambda message: self.sent.append(message))


async def _shown(item: Locator) -> ShownTurn:
    number, text, reason = [
        await item.locator(f".{part}").inner_text() for part in ("number", "text", "reason")
    ]
    return ShownTurn(int(number.removeprefix("turn ")), text, reason.removeprefix("reason: "))


@asynccontextmanager
async def open_console(chromium: str, address: str, microphone: Path) -> AsyncIterator[Console]:
    """Open the page of a gateway. The microphone is a WAV file, then silence."""
    options = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ]
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=options, timeout=PATIENCE_MS
        )
        page = await browser.new_page(viewport={"width": 1_200, "height": 800})
        page.set_default_timeout(PATIENCE_MS)
        console = Console(page)
        await page.goto(f"http://{address}/")
        yield console
        await browser.close()
