"""The client of Flux: what it sends, and what it makes of what it receives."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.uri import parse_uri

from schemas.audio import Encoding, TurnConfig
from tests.support.polling import PATIENCE_S
from worker.core.turn_tracker import ProviderInput
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttTransientError,
    SttUnknownCommandError,
)
from worker.stt.events import (
    AudioTranscribed,
    ConfigApplied,
    Connected,
    Event,
    NoTurnToEnd,
    TimedWord,
    TurnEvent,
    UnknownMessage,
    Warned,
)
from worker.stt.flux import ACK_TIMEOUT_S, FLUX, FluxStream
from worker.stt.frames import LenientProtocol
from worker.stt.provider import Endpoint, Notes, StreamSettings
from worker.stt.stream import Stream
from worker.stt.websocket import WebSocketClient

KEY = "dg_0123456789abcdef"
PHONE = StreamSettings("flux-general-en", Encoding.PCM_MULAW, 8_000)
CONNECTED = {"type": "Connected", "request_id": "r1", "sequence_id": 0}


class Line(FluxStream):
    """A stream whose socket was never opened. It stores what is sent as text."""

    def __init__(self, settings: StreamSettings = PHONE) -> None:
        socket = WebSocketClient(LenientProtocol(parse_uri("ws://127.0.0.1/")), {})
        self.texts: list[dict[str, Any]] = []
        self.defects: list[str] = []
        self.unusable: list[str] = []
        notes = Notes(self.defects.append, self.unusable.append)
        super().__init__(FLUX, socket, Endpoint("", "", KEY), settings, notes)
        socket.send_text = lambda text: self.texts.append(json.loads(text))  # type: ignore[method-assign]

    def receive(self, message: dict[str, Any] | str) -> Event | None:
        (event,) = self.receive_all(message)
        return event

    def receive_all(self, message: dict[str, Any] | str) -> Sequence[Event | None]:
        text = message if isinstance(message, str) else json.dumps(message)
        return self.decode(text.encode(), "")


def info(event: str, text: str = "", end: float = 1.5, **fields: Any) -> dict[str, Any]:
    return {
        "type": "TurnInfo",
        "event": event,
        "turn_index": 0,
        "audio_window_end": end,
        "transcript": text,
        **fields,
    }


# -- the query


def test_query_has_the_names_of_flux() -> None:
    turn = TurnConfig(
        turn_start_threshold=0.6,
        turn_eager_end_threshold=0.5,
        turn_end_threshold=0.2,
        turn_end_timeout_ms=11_200.0,
    )
    settings = StreamSettings(
        "flux-general-multi", Encoding.PCM_S16LE, 16_000, ("Ink 2", "a&b=c"), "de", turn
    )
    assert parse_qs(FluxStream.query(settings)) == {
        "model": ["flux-general-multi"],
        "encoding": ["linear16"],
        "sample_rate": ["16000"],
        "eager_eot_threshold": ["0.5"],
        "eot_threshold": ["0.8"],
        "eot_timeout_ms": ["10000"],
        "keyterm": ["Ink 2", "a&b=c"],
        "language_hint": ["de"],
    }


def test_query_has_only_settings_that_were_set() -> None:
    assert FluxStream.query(PHONE) == "model=flux-general-en&encoding=mulaw&sample_rate=8000"


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        (Encoding.PCM_S16LE, "linear16"),
        (Encoding.PCM_S32LE, "linear32"),
        (Encoding.PCM_F16LE, "linear16"),
        (Encoding.PCM_F32LE, "linear16"),
        (Encoding.PCM_ALAW, "alaw"),
    ],
)
def test_query_names_each_encoding(encoding: Encoding, name: str) -> None:
    query = FluxStream.query(StreamSettings("m", encoding, 8_000))
    assert parse_qs(query)["encoding"] == [name]


def test_rate_that_flux_does_not_take_is_permanent() -> None:
    with pytest.raises(SttPermanentError, match="8000, 16000, 24000, 44100, 48000 Hz, not 22050"):
        FluxStream.query(StreamSettings("m", Encoding.PCM_S16LE, 22_050))


# -- messages


WORDS = [{"word": "Hi,", "start": 0.5, "end": 0.75, "confidence": 0.9}]


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (CONNECTED, Connected("r1")),
        (info("Update"), AudioTranscribed(1_500.0)),
        (info("Update", "Hi", words=WORDS), TurnEvent(ProviderInput.UPDATE, "Hi", 1_500.0)),
        (info("StartOfTurn", "Hi"), TurnEvent(ProviderInput.START, "Hi", 1_500.0)),
        (info("EagerEndOfTurn", "Hi"), TurnEvent(ProviderInput.EAGER_END, "Hi", 1_500.0)),
        (info("TurnResumed", "Hi"), TurnEvent(ProviderInput.RESUME, "Hi", 1_500.0)),
        (
            info("EndOfTurn", "Hi,", words=WORDS, trigger="manual"),
            TurnEvent(ProviderInput.END, "Hi,", 1_500.0, (TimedWord("Hi,", 500.0, 750.0, 0.9),)),
        ),
        (
            info("EndOfTurn", "Hi,", words=[{"word": "Hi,", "confidence": 0.9}]),
            TurnEvent(ProviderInput.END, "Hi,", 1_500.0),
        ),
        (info("EndOfTurn", "Hi", words="?"), TurnEvent(ProviderInput.END, "Hi", 1_500.0)),
        (info("EndOfTurn", "Hi", end=-1.0), TurnEvent(ProviderInput.END, "Hi")),
        (info("EndOfTurn", "Hi", end=1e300), TurnEvent(ProviderInput.END, "Hi")),
        (info("SomethingNew", "Hi"), UnknownMessage()),
        ({"type": "Metadata", "x": 1}, UnknownMessage()),
        ({"type": "ConfigureSuccess", "thresholds": {}}, ConfigApplied()),
        (
            {"type": "ConfigureFailure", "error_code": "INVALID_THRESHOLD"},
            Warned("INVALID_THRESHOLD", "the provider gave no reason"),
        ),
        ({"type": "Warning", "code": "X", "description": f"{KEY}!"}, Warned("X", "[key]!")),
    ],
)
def test_messages_become_events(message: dict[str, Any], event: Event) -> None:
    line = Line()
    line.receive(info("StartOfTurn", "H"))
    assert line.receive(message) == event
    assert not line.defects


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("", None),
        ("[]", None),
        ('{"type":5}', None),
        (
            '{"type":"TurnInfo","event":"EndOfTurn","transcript":"a","audio_window_end":"x"}',
            TurnEvent(ProviderInput.END, "a"),
        ),
        (
            '{"type":"TurnInfo","event":"EndOfTurn","audio_window_end":2,"transcript":"a \\ud83d"}',
            TurnEvent(ProviderInput.END, "a \ufffd", 2_000.0),
        ),
        (
            '{"type":"TurnInfo","event":"EndOfTurn","transcript":"a","words":[{',
            TurnEvent(ProviderInput.END, "a"),
        ),
    ],
)
def test_readable_parts_of_damaged_messages_are_used(text: str, event: Event | None) -> None:
    line = Line()
    assert line.receive(text) == event
    assert len(line.defects) == 1


@given(st.text(max_size=200) | st.from_regex(r'\\{"type":"TurnInfo",.*', fullmatch=True))
def test_any_text_is_an_event_or_unreadable(text: str) -> None:
    data = text.encode("utf-8", "replace")
    line = Line()
    assert None not in line.decode(data, "") or line.defects


def test_message_about_an_ended_turn_is_ignored() -> None:
    line = Line()
    line.receive(info("StartOfTurn", "a"))
    line.receive(info("EndOfTurn", "a"))
    assert line.receive(info("StartOfTurn", "a")) == UnknownMessage()
    assert line.receive(info("EndOfTurn", "a")) == UnknownMessage()
    assert line.receive(info("StartOfTurn", "b", turn_index=1)) == TurnEvent(
        ProviderInput.START, "b", 1_500.0
    )


START, UPDATE = ProviderInput.START, ProviderInput.UPDATE
EAGER_END, RESUME, END = ProviderInput.EAGER_END, ProviderInput.RESUME, ProviderInput.END
HI = (TimedWord("Hi,", 500.0, 750.0, 0.9),)


@pytest.mark.parametrize(
    ("message", "events"),
    [
        (info("Update", end=2.0, turn_index=1), [AudioTranscribed(2_000.0)]),
        (info("Update", "b", 2.0, turn_index=1), [TurnEvent(START, "b", 2_000.0)]),
        (info("TurnResumed", "b", 2.0, turn_index=1), [TurnEvent(START, "b", 2_000.0)]),
        (info("StartOfTurn", "b", 2.0, turn_index=1), [TurnEvent(START, "b", 2_000.0)]),
        (
            info("EagerEndOfTurn", "b", 2.0, turn_index=1),
            [TurnEvent(START, "b", 2_000.0), TurnEvent(EAGER_END, "b", 2_000.0)],
        ),
        (
            info("EndOfTurn", "Hi,", 2.0, words=WORDS, turn_index=1),
            [TurnEvent(START, "Hi,", 2_000.0), TurnEvent(END, "Hi,", 2_000.0, HI)],
        ),
        (info("StartOfTurn", "c", 2.0, turn_index=7), [TurnEvent(START, "c", 2_000.0)]),
    ],
)
@pytest.mark.parametrize("end", ["lost", "received"])
def test_larger_index_ends_and_starts_a_turn(
    message: dict[str, Any], events: list[Event], end: str
) -> None:
    line = Line()
    line.receive(info("StartOfTurn", "Hi"))
    line.receive(info("Update", "Hi,", words=WORDS))
    line.receive({**info("Update"), "transcript": None})
    ended = TurnEvent(END, "Hi,", 1_500.0, HI)
    if end == "received":
        assert line.receive(info("EndOfTurn", "Hi,", words=WORDS)) == ended
        assert line.receive_all(message) == events
    else:
        assert line.receive_all(message) == [ended, *events]


def test_command_that_finds_no_turn_shows_a_lost_end() -> None:
    line = Line()
    line.receive(info("StartOfTurn", "Hi,", words=WORDS))
    warning = {"type": "Warning", "code": "FORCE_END_TURN_NO_ACTIVE_TURN"}
    assert line.receive_all(warning) == (TurnEvent(END, "Hi,", 1_500.0, HI), NoTurnToEnd())
    assert line.receive(info("EndOfTurn", "Hi,", words=WORDS)) == UnknownMessage()


@pytest.mark.parametrize("event", ["Update", "EndOfTurn"])
def test_first_start_may_be_lost(event: str) -> None:
    line = Line()
    first, *_ = line.receive_all(info(event, "Hi"))
    assert first == TurnEvent(START, "Hi", 1_500.0)


def test_messages_without_an_index_are_taken_as_they_come() -> None:
    line = Line()
    kinds = [
        event.kind
        for name in ("StartOfTurn", "Update", "EndOfTurn", "Update", "StartOfTurn", "EndOfTurn")
        for event in line.receive_all(info(name, "a", turn_index=None))
        if isinstance(event, TurnEvent)
    ]
    assert kinds == [START, UPDATE, END, UPDATE, START, END]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["StartOfTurn", "Update", "EagerEndOfTurn", "TurnResumed", "EndOfTurn"])
            | st.just("?"),
            st.integers(0, 4),
            st.sampled_from(["", "a", "a b"]),
        )
    )
)
def test_each_turn_starts_before_its_text_and_ends(
    messages: list[tuple[str, int, str]],
) -> None:
    line, inside = Line(), False
    for name, index, text in messages:
        for event in line.receive_all(info(name, text, turn_index=index)):
            if isinstance(event, TurnEvent):
                assert inside or event.kind is START or not event.text
                inside = event.kind is not END and (inside or event.kind is START)


@pytest.mark.parametrize(
    ("code", "forced", "kind"),
    [
        ("INTERNAL_SERVER_ERROR", False, SttTransientError),
        ("NEW_CODE", True, SttTransientError),
        ("UNPARSABLE_CLIENT_MESSAGE", False, SttPermanentError),
        ("UNPARSABLE_CLIENT_MESSAGE", True, SttUnknownCommandError),
    ],
)
def test_in_band_error_is_final(code: str, forced: bool, kind: type[SttError]) -> None:
    line = Line()
    if forced:
        line.receive(info("StartOfTurn", "a"))
        line.end_turn()
        assert line.receive(info("EndOfTurn", "a", trigger="model")) is not None
    with pytest.raises(SttError) as raised:
        line.receive({"type": "Error", "code": code, "description": f"no {KEY}"})
    assert type(raised.value) is kind
    assert KEY not in str(raised.value)


def test_key_is_masked_in_every_field_of_a_message() -> None:
    line = Line()
    warned = line.receive({"type": "Warning", "code": KEY, "description": KEY})
    assert warned == Warned("[key]", "[key]")
    with pytest.raises(SttError) as raised:
        line.receive({"type": "Error", "code": KEY, "description": KEY})
    assert KEY not in f"{raised.value} {raised.value.code}"


# -- commands


def test_one_configure_is_unanswered_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    line, now = Line(), 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    line.send_config(TurnConfig(turn_end_threshold=0.2))
    line.send_config(TurnConfig(turn_end_timeout_ms=700.0))
    line.send_config(TurnConfig(turn_end_threshold=0.4))
    first = {"type": "Configure", "thresholds": {"eot_threshold": 0.8}}
    assert line.texts == [first]
    line.receive({"type": "ConfigureFailure", "code": "INVALID_THRESHOLD"})
    second = {"type": "Configure", "thresholds": {"eot_threshold": 0.6, "eot_timeout_ms": 700}}
    assert line.texts == [first, second]
    line.send_config(TurnConfig(turn_end_threshold=0.3))
    line.receive(info("Update"))
    assert len(line.texts) == 2
    now += ACK_TIMEOUT_S
    line.receive(info("Update"))
    assert line.texts[2:] == [{"type": "Configure", "thresholds": {"eot_threshold": 0.7}}]


def test_eager_end_is_not_above_the_end() -> None:
    turn = TurnConfig(turn_eager_end_threshold=0.4, turn_end_threshold=0.5)
    settings = msgspec.structs.replace(PHONE, turn=turn)
    query = parse_qs(FluxStream.query(settings))
    assert (query["eager_eot_threshold"], query["eot_threshold"]) == (["0.5"], ["0.5"])


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        (
            TurnConfig(turn_end_threshold=0.4),
            {"eager_eot_threshold": 0.6, "eot_threshold": 0.6},
        ),
        (TurnConfig(turn_eager_end_threshold=0.35), {"eager_eot_threshold": 0.5}),
        (TurnConfig(turn_end_timeout_ms=700.0), {"eot_timeout_ms": 700}),
        (TurnConfig(turn_end_threshold=0.5), {"eot_threshold": 0.5}),
    ],
)
def test_change_keeps_the_eager_end_below_the_end(
    change: TurnConfig, sent: dict[str, float]
) -> None:
    turn = TurnConfig(turn_eager_end_threshold=0.4, turn_end_threshold=0.5)
    line = Line(msgspec.structs.replace(PHONE, turn=turn))
    line.send_config(change)
    assert line.texts == [{"type": "Configure", "thresholds": sent}]


def test_threshold_that_flux_cannot_use_is_reported_and_not_sent() -> None:
    line = Line()
    line.send_config(TurnConfig(turn_start_threshold=0.9, turn_eager_end_threshold=0.8))
    assert line.texts == []
    (problem,) = line.unusable
    assert "takes a turn_eager_end_threshold of 0.7 at most" in problem


def test_commands_are_those_of_flux() -> None:
    line = Line()
    line.end_turn()
    line.finish()
    assert line.texts == [{"type": "ForceEndTurn"}, {"type": "CloseStream"}]


# -- the upgrade


@asynccontextmanager
async def server(
    handler: Callable[[ServerConnection], Awaitable[None]],
    process_request: Callable[[ServerConnection, Request], Response | None] | None = None,
) -> AsyncIterator[Endpoint]:
    async with serve(handler, "127.0.0.1", 0, process_request=process_request) as running:
        port = next(iter(running.sockets)).getsockname()[1]
        yield Endpoint(f"ws://127.0.0.1:{port}/v2/listen", "", KEY)


async def _idle(ws: ServerConnection) -> None:
    await ws.send(json.dumps(CONNECTED))
    await ws.wait_closed()


def _body(**fields: str) -> str:
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (400, {"dg-error": "Keyterm limit exceeded"}, "", SttPermanentError),
        (400, {}, _body(err_code="BAD", err_msg="no"), SttPermanentError),
        (400, {}, "<html>", SttTransientError),
        (404, {}, "", SttTransientError),
        (401, {"dg-error": "Invalid credentials."}, "", SttCredentialsError),
        (402, {}, "", SttCredentialsError),
        (403, {}, _body(err_code="INSUFFICIENT_PERMISSIONS"), SttPermanentError),
        (403, {}, "blocked", SttCredentialsError),
        (429, {}, "", SttBusyError),
        (400, {}, _body(err_code=KEY, err_msg=KEY), SttPermanentError),
        (503, {}, "", SttTransientError),
    ],
)
async def test_refused_upgrade_has_its_class(
    status: int, headers: dict[str, str], body: str, kind: type[SttError]
) -> None:
    def refuse(ws: ServerConnection, request: Request) -> Response:
        response = ws.respond(HTTPStatus(status), f"{body} {KEY}" if body == "blocked" else body)
        for name, value in headers.items():
            response.headers[name] = value
        response.headers["dg-request-id"] = "from-the-header"
        return response

    async with server(_idle, refuse) as endpoint:
        with anyio.fail_after(PATIENCE_S), pytest.raises(SttError) as raised:
            await FLUX.open(endpoint, PHONE)
    error = raised.value
    assert type(error) is kind
    assert (error.status, error.request_id) == (status, "from-the-header")
    assert headers.get("dg-error", "") in str(error)
    assert KEY not in f"{error} {error.code}"


async def test_stream_has_the_request_id_and_sends_the_key_in_a_header() -> None:
    seen: list[Request] = []

    def note(ws: ServerConnection, request: Request) -> None:
        seen.append(request)

    async with server(_idle, note) as endpoint, await FLUX.open(endpoint, PHONE) as stream:
        assert stream.request_id == "r1"
        assert stream.provider is FLUX
    assert seen[0].headers["Authorization"] == f"Token {KEY}"
    assert KEY not in seen[0].path


async def _receive_all(stream: Stream) -> list[Event | None]:
    events: list[Event | None] = []
    with anyio.fail_after(PATIENCE_S):
        await stream.listen(lambda event, _at, _waiting: events.append(event))
    return events


async def test_close_without_code_is_the_end() -> None:
    async def close(ws: ServerConnection) -> None:
        await ws.send(json.dumps(CONNECTED))
        assert json.loads(await ws.recv()) == {"type": "CloseStream"}
        await ws.send(json.dumps(info("StartOfTurn", "a")))
        ws.protocol.send_close()
        ws.transport.writelines(ws.protocol.data_to_send())
        await ws.wait_closed()

    async with server(close) as endpoint, await FLUX.open(endpoint, PHONE) as stream:
        stream.finish()
        assert await _receive_all(stream) == [TurnEvent(ProviderInput.START, "a", 1_500.0)]


async def test_audio_of_floats_is_sent_as_16_bits() -> None:
    received: list[str | bytes] = []

    async def echo(ws: ServerConnection) -> None:
        await ws.send(json.dumps(CONNECTED))
        received.append(await ws.recv())
        await ws.close()

    settings = StreamSettings("flux-general-en", Encoding.PCM_F32LE, 16_000)
    async with server(echo) as endpoint, await FLUX.open(endpoint, settings) as stream:
        stream.send_audio(b"\x00\x00\x00\x3f" * 2)  # 0.5
        assert await _receive_all(stream) == []
    assert received == [b"\x00\x40" * 2]
