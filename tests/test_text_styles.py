"""Transcripts reach consumers verbatim, whatever their separators, also after a lost socket."""

from itertools import pairwise

import pytest

from schemas.turns import TurnEnd, TurnUpdate
from tests.stage import PCM16, WORD, Stage, check_order
from worker.core.wording import says_more
from worker.local.engines.script import ScriptEngine, ScriptOptions, hush, say
from worker.local.engines.script_text import STYLES
from worker.local.server.server import TurnsServer
from worker.local.server.settings import ServerSettings


@pytest.mark.parametrize("name", ["trailing", "padded", "crlf", "no-break", "none"])
async def test_a_lost_socket_changes_no_separator(stage: Stage, name: str) -> None:
    style = STYLES[name]
    pause = hush(320, PCM16)  # inside the turn
    sound = say(range(4), PCM16) + pause + say(range(4, 8), PCM16) + pause + say([8, 9], PCM16)
    engine = ScriptEngine(ScriptOptions(latency_ms=50, text_style=name))
    async with (
        TurnsServer.serve(ServerSettings(port=0), engine) as server,
        stage.worker(stt_url=server.url),
    ):
        server.faults.set(f"cut@bytes={7 * WORD + len(pause)},count=2")
        await stage.announce("call-1")
        await stage.play("call-1", sound + hush(800, PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
        assert len(server.connections) == 3
    check_order(events)
    whole = style.text([f"w{number}" for number in range(10)], style.begin)
    assert [event.transcript for event in events if isinstance(event, TurnEnd)] == [whole]
    updates = [event.transcript for event in events if isinstance(event, TurnUpdate)]
    assert all(whole.startswith(update) for update in updates)
    assert all(says_more(after, before) for before, after in pairwise(updates))
