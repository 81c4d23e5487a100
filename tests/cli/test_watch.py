"""`turnbus watch`: old events, new events, pipes and terminals."""

import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from redis import Redis

from schemas import Encoding, Keys, encode_event, event_type
from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    SessionMark,
    SessionStarted,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnStart,
    TurnUpdate,
)
from tests.support.polling import PATIENCE_S
from tests.support.processes import until
from worker.cli.main import main
from worker.cli.watch import line

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def redis_user() -> str:
    """Return the consumer's user; `watch` needs no other rights."""
    return "consumer"


def common(session: str = "s") -> dict[str, Any]:
    return {
        "session": session,
        "run": "1-1",
        "seq": 1,
        "at": 1.5,
        "audio_ms": 1_250,
        "provider": "cartesia",
        "request_id": "r",
        "connection": 1,
    }


def fields(event: Event) -> dict[bytes, bytes]:
    return {
        b"session": event.session.encode(),
        b"type": event_type(event).encode(),
        b"event": encode_event(event),
    }


def publish(bus: Redis, stream: str, *events: Event) -> None:
    for event in events:
        entry: Any = fields(event)
        bus.xadd(stream, entry)


STARTED = SessionStarted(
    **common(), worker="w", metadata={}, encoding=Encoding.PCM_S16LE, sample_rate=16_000
)
UPDATE = TurnUpdate(**common(), turn=0, transcript="Hello wor")
END = TurnEnd(**common(), turn=0, transcript="Hello world.", reason="model")
ENDED = SessionEnded(**common(), reason="end", turns=1)
OTHER = TurnStart(**common("other"), turn=7)


@pytest.fixture(autouse=True)
def leftovers(expected_leftovers: list[str]) -> None:
    expected_leftovers.append("{*}:turns")


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (STARTED, "session.started pcm_s16le at 16000 Hz on w"),
        (TurnStart(**common(), turn=3), "turn.start 3"),
        (UPDATE, "turn.update 0 Hello wor"),
        (TurnEagerEnd(**common(), turn=0, transcript="Hi."), "turn.eager_end 0 Hi."),
        (TurnResume(**common(), turn=0), "turn.resume 0"),
        (END, "turn.end 0 Hello world."),
        (
            TurnEnd(**common(), turn=0, transcript="Hi.", reason="watchdog"),
            "turn.end 0 (watchdog) Hi.",
        ),
        (SessionMark(**common(), mark={"key": "5"}), 'session.mark {"key":"5"}'),
        (AudioGap(**common(), missing_ms=300, reason="backlog"), "audio.gap 300 ms, backlog"),
        (
            SessionError(**common(), code="c", message="Why.", status=400, fatal=True),
            "session.error fatal c Why.",
        ),
        (ENDED, "session.ended end, turns: 1"),
        (
            TurnUpdate(**common(), turn=0, transcript="a\x1b[2Jb\nc"),
            "turn.update 0 a\ufffd[2Jb\ufffdc",
        ),
    ],
)
def test_watch_prints_one_line_per_event(event: Event, words: str) -> None:
    assert line(fields(event)) == f"    1.25 s cartesia {words}"


def test_watch_prints_a_dash_if_no_provider_is_known() -> None:
    rejected = msgspec.structs.replace(ENDED, provider="")
    assert line(fields(rejected)) == "    1.25 s - session.ended end, turns: 1"


def test_watch_prints_event_of_later_version() -> None:
    entry = {b"session": b"s", b"type": b"turn.sigh", b"event": b'{"type":"turn.sigh"}'}
    assert line(entry) == "s turn.sigh (unknown to this version)"
    assert line({}).endswith("(unknown to this version)")


def test_watch_json_prints_published_event(
    bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(bus, keys.turns("0"), STARTED, OTHER, UPDATE, END, ENDED, UPDATE)
    options = ["--session", "s", "--from-start", "--until-ended", "--json"]
    assert main(["watch", *options]) == 0
    shown = capsys.readouterr().out.encode().splitlines()
    assert shown == [encode_event(event) for event in (STARTED, UPDATE, END, ENDED)]


def test_watch_prints_all_sessions_of_lane(
    bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(bus, keys.turns("eu"), OTHER, END, ENDED)
    assert main(["watch", "--lane", "eu", "--from-start", "--until-ended"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "    1.25 other cartesia turn.start 7",
        "    1.25 s cartesia turn.end 0 Hello world.",
        "    1.25 s cartesia session.ended end, turns: 1",
    ]


def wait_until_blocked(bus: Redis, process: subprocess.Popen[bytes]) -> None:
    until(lambda: any(each["cmd"] == "xread" for each in bus.client_list()), process, "it reads")


def test_watch_starts_at_new_events(spawn: Spawn, bus: Redis, keys: Keys) -> None:
    publish(bus, keys.turns("0"), UPDATE, ENDED)
    watch = spawn("watch", "--json", "--until-ended", stdout=subprocess.PIPE)
    wait_until_blocked(bus, watch)
    publish(bus, keys.turns("0"), END, ENDED)
    output, _ = watch.communicate(timeout=PATIENCE_S)
    assert output.splitlines() == [encode_event(END), encode_event(ENDED)]
    assert watch.returncode == 0


def test_watch_returns_for_ended_session(
    bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(bus, keys.turns("0"), UPDATE, END, ENDED, *[OTHER] * 1_100)
    assert main(["watch", "--session", "s", "--until-ended"]) == 0
    out, err = capsys.readouterr()
    assert out == "    1.25 s cartesia session.ended end, turns: 1\n"
    assert re.fullmatch(r"turnbus: s ended .*s ago; --from-start shows what is kept\n", err)
    assert main(["watch", "--session", "s", "--until-ended", "--json"]) == 0
    assert capsys.readouterr().out.encode() == encode_event(ENDED) + b"\n"


@pytest.mark.parametrize("before", [[], [OTHER], [UPDATE], [ENDED, STARTED]])
def test_watch_waits_for_unknown_or_reused_session(
    spawn: Spawn, bus: Redis, keys: Keys, before: list[Event]
) -> None:
    publish(bus, keys.turns("0"), *before)
    watch = spawn("watch", "--json", "--session", "s", "--until-ended", stdout=subprocess.PIPE)
    wait_until_blocked(bus, watch)
    publish(bus, keys.turns("0"), OTHER, END, ENDED)
    output, _ = watch.communicate(timeout=PATIENCE_S)
    assert output.splitlines() == [encode_event(END), encode_event(ENDED)]
    assert watch.returncode == 0


def test_watch_updates_one_line_on_terminal(spawn: Spawn, bus: Redis, keys: Keys) -> None:
    long = msgspec.structs.replace(UPDATE, transcript=" ".join(map(str, range(100))))
    publish(bus, keys.turns("0"), UPDATE, long, END, ENDED)
    primary, secondary = os.openpty()
    watch = spawn("watch", "--from-start", "--until-ended", stdout=secondary)
    os.close(secondary)
    assert watch.wait(PATIENCE_S) == 0
    shown = os.read(primary, 4_096).decode()
    os.close(primary)
    clear = "\r\x1b[K"
    _, update, grown, end, ended, nothing = shown.split(clear)
    assert update == "    1.25 s cartesia turn.update 0 Hello wor"
    assert len(grown) == 79
    assert grown.startswith("    1.25 s cartesia turn.update 0 0 1 2")
    assert grown.endswith("97 98 99")
    assert end == "    1.25 s cartesia turn.end 0 Hello world.\r\n"
    assert ended == "    1.25 s cartesia session.ended end, turns: 1\r\n"
    assert nothing == ""
