"""The Flux protocol row by row, as a bare client sees it."""

import json
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.contract.flux_wire import CLOSE, EAGER, FLUX, FORCE, GOOD, brief, dial, flux, play
from tests.contract.wire import PHONE, Event, next_event, rest_of, serving
from tests.support.polling import PATIENCE_S
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.settings import ServerSettings

# Two turns: w1 w2, and w3, which stays open.
AUDIO = (
    synthesize_words([1, 2], PHONE) + synthesize_silence(600, PHONE) + synthesize_words([3], PHONE)
)
ENDED = ["Connected", "StartOfTurn w1", "Update w1 w2", "Update w1 w2", "EndOfTurn w1 w2"]
OPEN = ["StartOfTurn w3"]
OFFERED = [Subprotocol("token"), Subprotocol("dg_test")]


# Opening


async def test_accepted_upgrade_has_request_id_and_connected() -> None:
    async with serving(FLUX) as server, dial(server) as ws:
        connected = await next_event(ws)
        assert ws.response is not None
        request_id = ws.response.headers["dg-request-id"]
    assert connected == {"type": "Connected", "request_id": request_id, "sequence_id": 0}


async def test_browser_can_send_key_as_subprotocol() -> None:
    async with serving(FLUX) as server, dial(server, headers={}, subprotocols=OFFERED) as ws:
        assert ws.subprotocol == "token"
        assert (await next_event(ws))["type"] == "Connected"


@pytest.mark.parametrize(
    ("query", "headers", "path", "status", "code"),
    [
        ({**GOOD, "encoding": "opus"}, None, "/v2/listen", 400, "INVALID_QUERY_PARAMETER"),
        ({**GOOD, "sample_rate": "11025"}, None, "/v2/listen", 400, "INVALID_QUERY_PARAMETER"),
        ({**GOOD, "model": "nova-3"}, None, "/v2/listen", 403, "INSUFFICIENT_PERMISSIONS"),
        (GOOD, {"Authorization": "Bearer dg_test"}, "/v2/listen", 401, "INVALID_AUTH"),
        (GOOD, None, "/v1/listen", 400, "INVALID_QUERY_PARAMETER"),
    ],
)
async def test_refusal_has_dg_error_and_body(
    query: dict[str, str], headers: dict[str, str] | None, path: str, status: int, code: str
) -> None:
    async with serving(FLUX) as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, query, headers or {"Authorization": "Token x"}, path)
        assert server.state().refused == {str(status): 1}
    response = refused.value.response
    body = json.loads(response.body or b"")
    assert (response.status_code, body["err_code"]) == (status, code)
    assert response.headers["dg-error"] == body["err_msg"]
    assert response.headers["dg-request-id"] == body["request_id"]


async def test_excess_connection_gets_429() -> None:
    async with serving(ServerSettings(port=0, provider="flux", max_connections=1)) as server:
        async with dial(server):
            with pytest.raises(InvalidStatus) as refused:
                await dial(server)
        assert refused.value.response.status_code == 429


@pytest.mark.parametrize("status", [402, 403, 429, 500, 503])
async def test_refusal_fault_has_body_of_its_status(status: int) -> None:
    async with serving(FLUX) as server:
        server.faults.set(f"http={status}")
        with pytest.raises(InvalidStatus) as refused:
            await dial(server)
    body = json.loads(refused.value.response.body or b"")
    assert refused.value.response.status_code == status
    assert body.keys() == {"err_code", "err_msg", "request_id"}


# Turns


@pytest.mark.parametrize(
    "line",
    [
        AudioFormat("pcm_s16le", 44_100),
        AudioFormat("pcm_s32le", 8_000),
        AudioFormat("pcm_mulaw", 8_000),
        AudioFormat("pcm_alaw", 16_000),
    ],
)
async def test_words_are_recognised_in_every_encoding(line: AudioFormat) -> None:
    names = {
        "pcm_s16le": "linear16",
        "pcm_s32le": "linear32",
        "pcm_mulaw": "mulaw",
        "pcm_alaw": "alaw",
    }
    query = {**GOOD, "encoding": names[line.encoding], "sample_rate": str(line.sample_rate)}
    audio = synthesize_words([1, 2], line) + synthesize_silence(600, line)
    async with serving(FLUX) as server:
        events, _ = await play(server, audio, CLOSE, query=query)
        assert list(server.connections[0].transcripts) == ["w1 w2"]
    assert brief(events)[:5] == ENDED


async def test_turns_have_words_windows_and_trigger() -> None:
    async with serving(FLUX) as server:
        events, code = await play(server, AUDIO, CLOSE)
        assert server.connections[0].open_transcript == "w3"
    assert (brief(events), code) == ([*ENDED, *OPEN], 1005)
    assert [event["sequence_id"] for event in events] == list(range(len(events)))
    assert [event["turn_index"] for event in events[1:]] == [0, 0, 0, 0, 1]
    end = events[4]
    assert end["words"] == [
        {"word": "w1", "confidence": 1.0, "start": 0.0, "end": 0.2},
        {"word": "w2", "confidence": 1.0, "start": 0.2, "end": 0.4},
    ]
    assert (end["audio_window_start"], end["audio_window_end"]) == (0.0, 0.88)
    assert (end["trigger"], end["end_of_turn_confidence"]) == ("model", 0.7)
    assert [event["type"] for event in events if "trigger" in event] == ["TurnInfo"]
    assert (events[-1]["audio_window_start"], events[-1]["audio_window_end"]) == (0.88, 1.2)


async def test_update_comes_each_250_ms_of_any_audio() -> None:
    silence = synthesize_silence(1_100, PHONE)
    async with serving(FLUX) as server:
        events, _ = await play(server, silence[:333], silence[333:], CLOSE)
    assert brief(events) == ["Connected", *5 * ["Update"]]
    assert [event["audio_window_end"] for event in events[1:]] == [0.25, 0.5, 0.75, 1.0, 1.1]


async def test_update_does_not_cover_an_undecoded_word() -> None:
    audio = synthesize_silence(150, PHONE) + synthesize_words([1], PHONE)
    async with serving(FLUX) as server:
        events, _ = await play(server, audio, CLOSE)
    assert [(event["transcript"], event["audio_window_end"]) for event in events[1:3]] == [
        ("", 0.15),
        ("w1", 0.35),
    ]


async def test_eager_end_needs_a_threshold() -> None:
    audio = (
        synthesize_words([1], PHONE)
        + synthesize_silence(300, PHONE)
        + synthesize_words([2], PHONE)
        + synthesize_silence(500, PHONE)
    )
    async with serving(FLUX) as server:
        events, _ = await play(server, audio, CLOSE, query=EAGER)
        plain, _ = await play(server, audio, CLOSE)
    assert brief(events) == [
        *("Connected", "StartOfTurn w1", "EagerEndOfTurn w1", "TurnResumed w1"),
        *("EagerEndOfTurn w1 w2", "EndOfTurn w1 w2"),
    ]
    assert not {"EagerEndOfTurn", "TurnResumed"} & {event.get("event") for event in plain}


@pytest.mark.parametrize(
    ("thresholds", "trigger", "ends_at"),
    [
        ({}, "model", 0.68),
        ({"eot_threshold": "0.5"}, "model", 0.52),
        ({"eot_threshold": "1.0", "eot_timeout_ms": "700"}, "timeout", 0.9),
    ],
)
async def test_end_names_its_trigger(
    thresholds: dict[str, str], trigger: str, ends_at: float
) -> None:
    audio = synthesize_words([1], PHONE) + synthesize_silence(1_000, PHONE)
    async with serving(FLUX) as server:
        events, _ = await play(server, audio, CLOSE, query={**GOOD, **thresholds})
    (end,) = [event for event in events if event.get("event") == "EndOfTurn"]
    assert (end["trigger"], end["audio_window_end"]) == (trigger, ends_at)


async def test_latency_keeps_the_order_of_messages() -> None:
    slow = ScriptEngine(ScriptOptions(latency_ms=50))
    async with serving(FLUX, slow) as server:
        late, _ = await play(server, AUDIO, FORCE, FORCE, CLOSE)
    async with serving(FLUX) as server:
        prompt, _ = await play(server, AUDIO, FORCE, FORCE, CLOSE)
    assert brief(late) == brief(prompt)


async def test_multilingual_model_names_languages() -> None:
    query = {**GOOD, "model": "flux-general-multi", "language_hint": "en"}
    async with serving(FLUX) as server:
        silence = synthesize_silence(300, PHONE)
        _, before, start, *_ = (await play(server, silence, AUDIO, CLOSE, query=query))[0]
    assert (before["languages"], before["languages_hinted"]) == ([], ["en"])
    assert (start["languages"], start["languages_hinted"]) == (["en"], ["en"])


# Commands


def configure(**parts: Any) -> str:
    return json.dumps({"type": "Configure", **parts})


async def configured(*commands: str, query: dict[str, str] = EAGER) -> list[Event]:
    async with serving(FLUX) as server:
        events, code = await play(server, *commands, CLOSE, query=query)
    assert code == 1005
    return [event for event in events if event["type"].startswith("Configure")]


async def test_configure_reports_all_that_is_in_force() -> None:
    first, second, third = await configured(
        configure(thresholds={"eot_threshold": 0.8}, keyterms=["a", "b c"]),
        configure(numerals=True, keyterms=[], language_hints=None),
        configure(),
    )
    thresholds = {"eager_eot_threshold": 0.4, "eot_threshold": 0.8, "eot_timeout_ms": 5000}
    assert first["thresholds"] == second["thresholds"] == third["thresholds"] == thresholds
    assert (first["keyterms"], second["keyterms"]) == (["a", "b c"], [])
    assert (first["numerals"], third["numerals"]) == (False, True)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"thresholds": {"eot_threshold": 0.3}}, "INVALID_THRESHOLD"),
        ({"thresholds": {"eager_eot_threshold": 0.9}}, "INVALID_THRESHOLD"),
        ({"thresholds": {"eot_timeout_ms": 499}}, "INVALID_THRESHOLD"),
        ({"keyterms": 101 * ["a"]}, "KEYTERM_LIMIT_EXCEEDED"),
        ({"language_hints": ["en"]}, "INVALID_LANGUAGE_HINT"),
    ],
)
async def test_bad_configure_changes_nothing(parts: dict[str, Any], code: str) -> None:
    changed = {"keyterms": ["new"], **parts}
    failure, after = await configured(configure(**changed), configure())
    assert (failure["type"], failure["code"]) == ("ConfigureFailure", code)
    assert (after["type"], after["keyterms"]) == ("ConfigureSuccess", [])


async def test_configure_takes_effect_inside_a_turn() -> None:
    audio = synthesize_words([1], PHONE) + synthesize_silence(400, PHONE)
    command = configure(thresholds={"eot_threshold": 0.5})
    async with serving(FLUX) as server:
        events, _ = await play(server, audio, command, synthesize_silence(1, PHONE), CLOSE)
    assert brief(events)[-2:] == ["ConfigureSuccess", "EndOfTurn w1"]


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"KeepAlive"}',
        '{"type":"Configure","numerals":"true"}',
        '{"type":"Configure","features":{}}',
        '{"type":"Configure","thresholds":{"eot_threshold":"0.8"}}',
        "hello",
        "[]",
        "[" * 10_000,
    ],
)
async def test_unknown_text_is_a_fatal_error(text: str) -> None:
    async with serving(FLUX) as server:
        events, code = await play(server, synthesize_words([1], PHONE), text)
    assert brief(events) == ["Connected", "StartOfTurn w1", "UNPARSABLE_CLIENT_MESSAGE"]
    assert events[-1].keys() == {"type", "sequence_id", "code", "description"}
    assert (events[-1]["sequence_id"], code) == (2, 1005)


async def test_force_ends_the_turn_or_warns() -> None:
    audio = synthesize_words([1, 2], PHONE)
    half = len(audio) * 3 // 4
    async with serving(FLUX) as server:
        events, _ = await play(server, FORCE, audio[:half], FORCE, FORCE, audio[half:], CLOSE)
    warning = "FORCE_END_TURN_NO_ACTIVE_TURN"
    # The word that is incomplete belongs to the next turn.
    assert brief(events) == [
        *("Connected", warning, "StartOfTurn w1", "EndOfTurn w1", warning, "StartOfTurn w2"),
    ]
    ends = [event for event in events if event.get("event") == "EndOfTurn"]
    assert [end["trigger"] for end in ends] == ["manual"]


async def test_close_decodes_the_rest_without_an_end() -> None:
    audio = synthesize_words([1, 2], PHONE)[:-800]
    async with serving(FLUX) as server:
        events, code = await play(server, audio, CLOSE)
    assert brief(events)[-1] == "Update w1 !2"
    assert ("EndOfTurn" in str(events), code) == (False, 1005)


# Undocumented behaviour, and limits


async def test_switches_change_undocumented_behaviour() -> None:
    odd = flux(word_times=False, trigger=False, force_end_turn=False, close_code=1000)
    async with serving(odd) as server:
        events, code = await play(server, AUDIO, FORCE)
    end = next(event for event in events if event.get("event") == "EndOfTurn")
    assert end["words"][0] == {"word": "w1", "confidence": 1.0}
    assert "trigger" not in end
    assert (events[-1]["code"], code) == ("UNPARSABLE_CLIENT_MESSAGE", 1000)


async def test_other_rates_can_be_allowed() -> None:
    line = AudioFormat("pcm_s16le", 11_025)
    async with serving(flux(any_rate=True)) as server:
        events, _ = await play(
            server, synthesize_words([1], line), CLOSE, query={**GOOD, "sample_rate": "11025"}
        )
    assert "StartOfTurn w1" in brief(events)


async def test_throttle_reads_no_faster_than_its_limit() -> None:
    async with serving(flux(throttle=100)) as server:
        silence = synthesize_silence(10_000, PHONE)
        events, code = await play(server, silence, silence, silence, CLOSE)
        seen = server.connections[0]
    assert (events[-1]["audio_window_end"], code) == (30.0, 1005)
    assert seen.first_audio_at is not None
    assert seen.last_audio_at is not None
    assert seen.last_audio_at - seen.first_audio_at >= 0.2  # 20 s before the last at 100 times


IDLE_S = 0.3


async def test_idle_connection_is_closed() -> None:
    async with serving(flux(idle_timeout_s=IDLE_S)) as server, dial(server) as ws:
        events, code, _ = await rest_of(ws)
    assert (brief(events), code) == (["Connected"], 1005)


@pytest.mark.parametrize("what", ["ping", "audio"])
async def test_pings_and_audio_reset_idle_timeout(what: str) -> None:
    async with (
        serving(flux(idle_timeout_s=IDLE_S)) as server,
        dial(server) as ws,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_keep, ws, what)
        await anyio.sleep(4 * IDLE_S)
        await ws.send(CLOSE)
        events, code, _ = await rest_of(ws)
        tasks.cancel_scope.cancel()
        assert ws.close_reason == ""
    assert events[0]["type"] == "Connected"
    assert code == 1005


async def _keep(ws: ClientConnection, what: str) -> None:
    try:
        while True:
            await (ws.ping() if what == "ping" else ws.send(bytes(160)))
            await anyio.sleep(0.02)
    except ConnectionClosed:
        return


# Faults

FAULTS = [
    ("cut@mid-turn", ENDED[:3], 1006),
    ("cut@between-turns", ENDED, 1006),
    ("cut@bytes=1", ENDED[:1], 1006),
    ("close=none@mid-turn", ENDED[:3], 1005),
    ("close=1011@mid-turn", ENDED[:3], 1011),
    ("error=500@mid-turn", [*ENDED[:3], "INTERNAL_SERVER_ERROR"], 1011),
    ("error=500:none@mid-turn", [*ENDED[:3], "INTERNAL_SERVER_ERROR"], 1005),
    ("connected=skip", [*ENDED[1:], *OPEN], 1005),
    ("no-turn-end", [*ENDED[:4], *OPEN], 1005),
    (
        "shrink",
        [
            *("Connected", "StartOfTurn w1", "Update w1 w2", "Update w1", "Update w1 w2"),
            *("Update w1", "EndOfTurn w1 w2", "StartOfTurn w3"),
        ],
        1005,
    ),
    (
        "reorder",
        [*ENDED, *OPEN],
        1005,
    ),
]


@pytest.mark.parametrize(("spec", "messages", "code"), FAULTS)
async def test_fault_has_its_effect(spec: str, messages: list[str], code: int) -> None:
    async with serving(FLUX) as server:
        server.faults.set(spec)
        events, left = await play(server, AUDIO, CLOSE)
        assert server.connections[0].faults == [spec]
    assert (brief(events), left) == (messages, code)


async def test_duplicate_is_the_same_message_twice() -> None:
    async with serving(FLUX) as server:
        server.faults.set("duplicate")
        events, _ = await play(server, AUDIO, CLOSE)
    assert events[1::2] == events[2::2]
    assert [event["sequence_id"] for event in events[1::2]] == list(range(1, 6))


async def test_reordered_messages_keep_their_numbers() -> None:
    async with serving(FLUX) as server:
        server.faults.set("reorder")
        events, _ = await play(server, AUDIO, CLOSE)
    assert [event["sequence_id"] for event in events] == [0, 1, 3, 2, 4, 5]


async def test_window_jitter_moves_the_start_only() -> None:
    async with serving(FLUX) as server:
        plain, _ = await play(server, AUDIO, CLOSE)
        server.faults.set("window-jitter=200ms")
        moved, _ = await play(server, AUDIO, CLOSE)
    starts = [
        [event.pop("audio_window_start") for event in events[1:]] for events in (plain, moved)
    ]
    assert all(abs(a - b) <= 0.2 for a, b in zip(*starts, strict=True))
    assert starts[0] != starts[1]
    for event in (*plain, *moved):
        del event["request_id"]
    assert plain == moved


async def test_stalled_connection_reads_and_answers_pings() -> None:
    async with serving(FLUX) as server:
        server.faults.set("stall@mid-turn")
        async with dial(server) as ws:
            await ws.send(AUDIO)
            assert brief([await next_event(ws) for _ in range(3)]) == ENDED[:3]
            await ws.send(AUDIO)
            await ws.send(CLOSE)
            await (await ws.ping())
            with anyio.fail_after(PATIENCE_S):
                while server.connections[0].audio_bytes < 2 * len(AUDIO):
                    await anyio.sleep(0.01)
            with anyio.move_on_after(0.2) as waited:
                await ws.recv()
            assert waited.cancelled_caught
            server.cut_all()
            assert await rest_of(ws) == ([], 1006, "")


@pytest.mark.parametrize("size", [1, 50, 300, 700])
async def test_message_can_be_cut_at_any_byte(size: int) -> None:
    async with serving(FLUX) as server:
        whole, _ = await play(server, AUDIO, CLOSE)
        server.faults.set(f"cut=fin@sent={size}")
        events, code = await play(server, AUDIO, CLOSE)
        assert server.connections[1].faults == [f"cut=fin@sent={size}"]
    lengths = [len(json.dumps(event, separators=(",", ":"))) for event in whole]
    complete = sum(sum(lengths[: count + 1]) < size for count in range(len(lengths)))
    assert (brief(events), code) == (brief(whole)[:complete], 1006)
