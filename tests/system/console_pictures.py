"""Draws the console for `docs/console.md`: `python -m tests.system.console_pictures [FOLDER]`.

A real session, in the system's Chromium: a clip is spoken, and the worker is killed meanwhile. It
takes half a minute.
"""

import signal
import sys
import tempfile
from pathlib import Path

import anyio

from tests.support.console import KENNEDY, find_chromium, open_console, write_microphone
from tests.support.dev import running


async def draw(folder: Path) -> None:
    """Write both pictures: a wide window, light, and a phone, dark."""
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium on this machine; in Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "temporary").mkdir()
        seconds = write_microphone(KENNEDY, work / "microphone.wav")
        async with running(work, "--port", "0", engine="speech") as dev:
            await dev.started()
            async with open_console(chromium, dev.address, work / "microphone.wav") as console:
                await console.speak()
                await console.listen(words=2)
                await console.page.keyboard.press("5")
                await console.kill_worker()
                await console.until_sent(seconds - 2)
                await console.page.screenshot(path=folder / "console-light.png")
                await console.page.emulate_media(color_scheme="dark")
                await console.page.set_viewport_size({"width": 360, "height": 720})
                await console.page.screenshot(path=folder / "console-dark.png")
            dev.process.send_signal(signal.SIGINT)
            await dev.process.wait()


if __name__ == "__main__":
    anyio.run(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs"))
