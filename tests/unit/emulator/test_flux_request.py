"""A client's request for Flux: every parameter, and what is refused."""

from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from worker.local.emulator.engines.base import AudioFormat, TurnSettings
from worker.local.emulator.messages import ClientFault
from worker.local.emulator.providers.flux_messages import Configuration, Thresholds
from worker.local.emulator.providers.flux_request import FluxParams, FluxRequest
from worker.local.emulator.settings import FluxSettings

DEFAULTS = FluxSettings()
GOOD = "model=flux-general-en&encoding=linear16&sample_rate=16000"
MULTI = "model=flux-general-multi&encoding=linear16&sample_rate=16000"
JWT = "head.body.signature"


def params(query: str, settings: FluxSettings = DEFAULTS) -> FluxParams:
    return FluxRequest(f"/v2/listen?{query}", Headers()).params(settings)


def test_defaults_are_the_documented_ones() -> None:
    parsed = params(GOOD)
    assert parsed.audio == AudioFormat("pcm_s16le", 16_000)
    assert parsed.configuration == Configuration(Thresholds(None, 0.7, 5_000))
    assert parsed.turn == TurnSettings(eager_end=0.3, end=0.3, end_timeout_ms=5_000)


def test_all_parameters_are_parsed() -> None:
    parsed = params(
        "model=flux-general-multi&encoding=mulaw&sample_rate=8000&eot_threshold=0.8"
        "&eager_eot_threshold=0.4&eot_timeout_ms=6000&keyterm=Ink+2&keyterm=a%20b&keyterm=x%3A0.5"
        "&language_hint=en&language_hint=es&numerals=true&profanity_filter=false"
        "&redact=numbers&mip_opt_out=true&tag=one&tag=two&unknown=1"
    )
    assert parsed.audio == AudioFormat("pcm_mulaw", 8_000)
    assert parsed.configuration == Configuration(
        Thresholds(0.4, 0.8, 6_000), ("Ink 2", "a b", "x:0.5"), ("en", "es"), numerals=True
    )
    assert parsed.turn == TurnSettings(eager_end=0.6, end=0.2, end_timeout_ms=6_000)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("encoding=linear16&sample_rate=16000", "does not exist"),
        (GOOD.replace("en", "xx", 1), "does not exist"),
        ("model=flux-general-en&sample_rate=16000", "raw audio only"),
        (GOOD.replace("linear16", "opus"), "raw audio only"),
        (GOOD.replace("linear16", "ogg-opus"), "raw audio only"),
        (GOOD.replace("linear16", "pcm_s16le"), "raw audio only"),
        (GOOD.replace("16000", "22050"), "sample_rate must be one of"),
        (GOOD.replace("16000", "x"), "sample_rate must be a whole number"),
        (GOOD.replace("&sample_rate=16000", ""), "sample_rate must be one of"),
        (f"{GOOD}&eot_threshold=0.49", "eot_threshold must be from 0.5 to 1"),
        (f"{GOOD}&eot_threshold=high", "must be a number"),
        (f"{GOOD}&eot_threshold=nan", "must be a number"),
        (f"{GOOD}&eot_threshold=0", "must be a number above 0"),
        (f"{GOOD}&eager_eot_threshold=0.29", "eager_eot_threshold must be from 0.3 to 0.9"),
        (f"{GOOD}&eager_eot_threshold=0.8", "must not exceed eot_threshold"),
        (f"{GOOD}&eot_timeout_ms=499", "eot_timeout_ms must be from 500 to 60000"),
        (f"{GOOD}&eot_timeout_ms=5000.0", "whole number"),
        (f"{GOOD}&language_hint=en", "requires the model flux-general-multi"),
        (f"{MULTI}&language_hint=", "language_hint must be one of"),
        (f"{MULTI}&language_hint=tlh", "language_hint must be one of"),
        (GOOD + "&keyterm=a" * 101, "Keyterm limit exceeded"),
        (f"{GOOD}&keyterm={quote_plus('a ' * 501)}", "Keyterm limit exceeded"),
        (f"{GOOD}&numerals=1", "numerals must be true or false"),
        (f"{GOOD}&mip_opt_out=yes", "mip_opt_out must be true or false"),
        (f"{GOOD}&redact=pii", "redact must be"),
        (f"{GOOD}&tag={'a' * 129}", "A tag has at most 128"),
    ],
)
def test_bad_parameter_is_refused(query: str, message: str) -> None:
    with pytest.raises(ClientFault, match=message):
        params(query)
    problem = FluxRequest(f"/v2/listen?{query}", Headers({"Authorization": "Token x"})).problem(
        DEFAULTS, None
    )
    assert problem is not None
    assert problem.status == (403 if "does not exist" in message else 400)


def test_other_rates_can_be_accepted() -> None:
    query = GOOD.replace("16000", "22050")
    assert params(query, FluxSettings(any_rate=True)).audio.sample_rate == 22_050
    with pytest.raises(ClientFault, match="from 8000 to 192000"):
        params(GOOD.replace("16000", "7999"), FluxSettings(any_rate=True))


def test_full_threshold_leaves_only_the_timeout() -> None:
    assert params(f"{GOOD}&eot_threshold=1.0").turn.end == 0


@pytest.mark.parametrize(
    ("headers", "keys", "accepted"),
    [
        ({"Authorization": "Token any"}, None, True),
        ({"Authorization": "token any"}, None, True),
        ({"Authorization": f"Bearer {JWT}"}, None, True),
        ({"Authorization": "Bearer any"}, None, False),
        ({"Authorization": f"Token {JWT}"}, None, False),
        ({"Authorization": "Token "}, None, False),
        ({"Authorization": "any"}, None, False),
        ({}, None, False),
        ({"Sec-WebSocket-Protocol": "token, any"}, None, True),
        ({"Sec-WebSocket-Protocol": f"bearer, {JWT}"}, None, True),
        ({"Sec-WebSocket-Protocol": "chat"}, None, False),
        ({"Authorization": "Token one"}, {"one", JWT}, True),
        ({"Authorization": "Token two"}, {"one", JWT}, False),
        ({"Authorization": f"Bearer {JWT}"}, {"one", JWT}, True),
        ({"Authorization": "Bearer a.b.c"}, {"one", JWT}, False),
    ],
)
def test_credentials_are_checked(
    headers: dict[str, str], keys: set[str] | None, *, accepted: bool
) -> None:
    request = FluxRequest(f"/v2/listen?{GOOD}", Headers(headers))
    problem = request.problem(DEFAULTS, None if keys is None else frozenset(keys))
    assert (problem is None) == accepted
    assert problem is None or problem.status == 401


@pytest.mark.parametrize(("path", "status"), [("/v1/listen", 400), ("/v2/speak", 404), ("/", 404)])
def test_other_paths_are_refused(path: str, status: int) -> None:
    problem = FluxRequest(f"{path}?{GOOD}", Headers()).problem(DEFAULTS, None)
    assert problem is not None
    assert problem.status == status


NAMES = ("model encoding sample_rate eot_threshold eager_eot_threshold eot_timeout_ms "
         "keyterm language_hint numerals redact tag").split()  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=6)), max_size=6))
def test_any_query_is_parsed_or_refused(changes: list[tuple[str, str]]) -> None:
    query = f"{GOOD}&{urlencode(changes, errors='surrogatepass')}"
    request = FluxRequest(f"/v2/listen?{query}", Headers({"Authorization": "Token x"}))
    problem = request.problem(DEFAULTS, None)
    assert problem is None or problem.status in (400, 403)
    assert problem is None or problem.message.isascii(), "it becomes a header"
