"""Logs: text lines for people, JSON objects for programs, and what neither may contain."""

import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.turns import TurnEnd
from tests.support.harness import KEY, PCM16, Harness
from worker.leases import retries
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.session.publisher import EventPublisher
from worker.session.session import Session
from worker.telemetry.logs import JsonFormatter, SessionName, TextFormatter

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def record(message: str, *arguments: object) -> logging.LogRecord:
    made = logging.LogRecord("worker.x", logging.WARNING, "", 0, message, arguments, None)
    made.created = 1_700_000_000.25
    return made


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [(TRACEPARENT, TRACE_ID), (None, ""), ("", ""), ("nonsense", ""), ("00-xyz-1-01", "")],
)
def test_log_line_names_the_session_and_its_trace(traceparent: str | None, trace_id: str) -> None:
    name = SessionName("s1", traceparent)
    assert name == "s1"
    assert f"{name}" == "s1"
    assert name.trace_id == trace_id


def test_json_line_has_every_field() -> None:
    line = JsonFormatter().format(record("%s: lost: %s", SessionName("s1", TRACEPARENT), "a\nb"))
    assert "\n" not in line
    fields = json.loads(line)
    assert fields == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "worker.x",
        "message": "s1: lost: a\nb",
        "session": "s1",
        "trace_id": TRACE_ID,
    }
    assert datetime.fromisoformat(fields["time"]) == datetime(
        2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC
    )


def test_json_without_a_session_or_a_trace() -> None:
    assert "session" not in json.loads(JsonFormatter().format(record("Redis answers again")))
    fields = json.loads(JsonFormatter().format(record("%s: new", SessionName("s1", None))))
    assert fields["session"] == "s1"
    assert "trace_id" not in fields


def test_exception_is_one_line_of_json() -> None:
    made = record("crashed")
    try:
        int("a defect")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith(": 'a defect'")


def test_text_line_has_no_newline_or_terminal_escape() -> None:
    line = TextFormatter().format(record("%s: %s", SessionName("s1", TRACEPARENT), "a\n\x1b[2Jü"))
    assert line.endswith("WARNING s1: a\ufffd\ufffd[2Jü")


def test_handshake_is_never_logged() -> None:
    program = (
        "import logging; from worker.telemetry import logs; from worker.settings import Settings\n"
        "logs.set_up(Settings(log_level='debug'))\n"
        "logging.getLogger('websockets.client').debug('> X-API-Key: secret')\n"
        "logging.getLogger('worker').debug('seen')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ, capture_output=True, check=True
    )
    assert b"seen" in done.stderr
    assert b"secret" not in done.stderr


@pytest.mark.parametrize(
    ("owner", "step"),
    [(Session, "run"), (Session, "feed"), (Session, "tick"), (EventPublisher, "next_commit")],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_crash_log_names_the_session(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    step: str,
) -> None:
    taken = getattr(owner, step)

    def crash(*_: object) -> None:
        monkeypatch.setattr(owner, step, taken)
        raise ZeroDivisionError("a fault put in by the test")

    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(owner, step, crash)
    async with harness.worker():
        await harness.announce("s", PCM16, traceparent=TRACEPARENT)
        await harness.play("s", synthesize_words([1], PCM16), pause_s=0)
        await harness.until_ended("s")
    (crashed,) = (record for record in caplog.records if record.exc_info)
    fields = json.loads(JsonFormatter().format(crashed))
    assert (fields["session"], fields["trace_id"]) == ("s", TRACE_ID)
    assert "ZeroDivisionError" in fields["exception"]


async def test_log_lines_of_a_worker(harness: Harness, stt: TurnsServer, tmp_path: Path) -> None:
    stt.faults.set("cut@mid-turn,count=1")
    log = tmp_path / "log"
    async with harness.worker_process("one", log, log_format="json", log_level="debug"):
        # All audio is available at once: the worker inserts no filler that could split the turn.
        await harness.play(
            "s", synthesize_words([9_311, 9_322], PCM16) + synthesize_silence(700, PCM16), pause_s=0
        )
        await harness.announce("s", PCM16, traceparent=TRACEPARENT)
        await harness.announce_as({"session": "bad", "encoding": "mp3", "traceparent": TRACEPARENT})
        events = await harness.until_ended("s")
    text = log.read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    of_session = [line for line in lines if line.get("session") == "s"]
    assert {line["trace_id"] for line in of_session} == {TRACE_ID}
    heads = [line["message"].partition("request")[0].strip() for line in of_session]
    assert heads[:2] == ["s: session claimed (new)", "s: provider cartesia: connected,"]
    assert any(head.startswith("s: socket lost") for head in heads)
    assert heads.count("s: provider cartesia: connected,") == 2
    assert heads[-1] == "s: session ended"
    (refused,) = (line for line in lines if line.get("session") == "bad")
    assert (refused["level"], refused["trace_id"]) == ("warning", TRACE_ID)
    assert KEY not in text
    (end,) = (event for event in events["s"] if isinstance(event, TurnEnd))
    assert end.transcript
    assert not [word for word in end.transcript.split() if word in text]


def test_text_lines_keep_every_script_and_no_controls() -> None:
    line = TextFormatter().format(record("12\u00a0000 می\u200cروم \x1b[2J\n\udcff"))
    assert line.endswith("12\u00a0000 می\u200cروم \ufffd[2J\ufffd\ufffd")


def test_json_lines_of_invalid_utf8() -> None:
    line = json.loads(JsonFormatter().format(record("a\udcff")))
    assert line["message"] == "a\ufffd"
