"""The providers of a session's events: its moves, and providers that it did not ask for."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from schemas.turns import Event, SessionStarted, TurnEnd, TurnStart, TurnUpdate
from tests.chaos.moves import provider_moves, wrong_providers
from tests.chaos.plan import ChaosPlan
from tests.chaos.script import FLUX_LANGUAGE, Wishes, scripted_sessions

BOTH = ChaosPlan(turns=2_000, providers="cartesia,flux")


def _events(*sent: tuple[str, str]) -> list[Event]:
    """Return events of these kinds, each with its provider."""
    kinds: dict[str, tuple[type[Event], dict[str, Any]]] = {
        "started": (
            SessionStarted,
            {"worker": "w", "metadata": {}, "encoding": "pcm_s16le", "sample_rate": 8_000},
        ),
        "start": (TurnStart, {"turn": 0}),
        "update": (TurnUpdate, {"turn": 0, "transcript": "w0"}),
        "end": (TurnEnd, {"turn": 0, "transcript": "w0", "reason": "model"}),
    }
    common = {"session": "s", "run": "1-0", "seq": 1, "at": 0.0, "audio_ms": 0}
    made = []
    for kind, provider in sent:
        event, fields = kinds[kind]
        tag = {"type": event.__struct_config__.tag}
        written = common | {"provider": provider, "request_id": "", "connection": 1} | fields | tag
        made.append(msgspec.convert(written, event))
    return made


def test_moves_are_found_inside_and_between_turns() -> None:
    events = _events(
        ("started", "cartesia"),
        ("start", "flux"),  # the first socket: no move
        ("update", "cartesia"),
        ("end", "cartesia"),
        ("start", "flux"),
        ("end", "flux"),
    )
    assert [move.label for move in provider_moves(events)] == [
        "flux to cartesia inside a turn",
        "cartesia to flux between turns",
    ]


@pytest.mark.parametrize(
    ("wishes", "wrong"),
    [
        (Wishes(), []),
        (Wishes(provider="flux"), ["cartesia"]),
        (Wishes(providers=("flux", "cartesia")), []),
        (Wishes(language="en-GB"), []),
        (Wishes(language=FLUX_LANGUAGE), ["cartesia"]),
    ],
)
def test_only_wished_providers_may_serve(wishes: Wishes, wrong: Sequence[str]) -> None:
    script = msgspec.structs.replace(next(scripted_sessions(BOTH)), wishes=wishes)
    events = _events(("started", "flux"), ("start", "cartesia"), ("end", "flux"))
    found = list(wrong_providers(script, events))
    assert [violation.detail.split()[1] for violation in found] == list(wrong)


def test_some_sessions_wish_for_providers_unless_mixed() -> None:
    wishes = {script.wishes for script in scripted_sessions(BOTH)}
    assert {each.provider for each in wishes} == {None, "cartesia", "flux"}
    assert {each.language for each in wishes} == {None, "en-GB", FLUX_LANGUAGE}
    mixed = msgspec.structs.replace(BOTH, mixed=True)
    assert {script.wishes for script in scripted_sessions(mixed)} == {Wishes()}
    alone = msgspec.structs.replace(BOTH, providers="flux")
    assert {script.wishes for script in scripted_sessions(alone)} == {Wishes()}
    assert max(len(script.turns) for script in scripted_sessions(alone)) == 7


def test_workers_of_a_mixed_fleet_have_different_providers() -> None:
    mixed = msgspec.structs.replace(BOTH, mixed=True)
    assert [mixed.providers_of(worker) for worker in range(4)] == [
        ("cartesia", "flux"),
        ("flux", "cartesia"),
        ("cartesia",),
        ("cartesia", "flux"),
    ]
