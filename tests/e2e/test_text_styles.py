"""Transcripts reach consumers verbatim, whatever their separators, also after a lost socket."""

from itertools import pairwise

import pytest

from schemas.turns import TurnEnd, TurnUpdate
from tests.support.harness import PCM16, WORD, Harness, check_order
from worker.core.transcripts import says_more
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.engines.script_text import STYLES
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings


@pytest.mark.parametrize("name", ["trailing", "padded", "crlf", "no-break", "none"])
async def test_lost_socket_changes_no_separator(harness: Harness, name: str) -> None:
    style = STYLES[name]
    pause = synthesize_silence(320, PCM16)  # inside the turn
    sound = (
        synthesize_words(range(4), PCM16)
        + pause
        + synthesize_words(range(4, 8), PCM16)
        + pause
        + synthesize_words([8, 9], PCM16)
    )
    engine = ScriptEngine(ScriptOptions(latency_ms=50, text_style=name))
    async with (
        TurnsServer.serve(ServerSettings(port=0), engine) as server,
        harness.worker(stt_url=server.url),
    ):
        server.faults.set(f"cut@bytes={7 * WORD + len(pause)},count=2")
        await harness.announce("call-1")
        await harness.play("call-1", sound + synthesize_silence(800, PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert len(server.connections) == 3
    check_order(events)
    whole = style.text([f"w{number}" for number in range(10)], style.begin)
    assert [event.transcript for event in events if isinstance(event, TurnEnd)] == [whole]
    updates = [event.transcript for event in events if isinstance(event, TurnUpdate)]
    assert all(whole.startswith(update) for update in updates)
    assert all(says_more(after, before) for before, after in pairwise(updates))
