"""The worker's parts of a pure call that need no session: a line to its provider, and its clock."""

from collections import deque
from functools import cache

from websockets.uri import parse_uri

from tests.simulation.provider_model import stream_settings
from worker.core.turn_boundary import ProviderLag
from worker.event_loop import StallDetector
from worker.session.boundary import TurnBoundaryFinder
from worker.session.sender import AudioSender
from worker.stt.cartesia import CARTESIA, TurnsStream
from worker.stt.flux import FLUX, FluxStream
from worker.stt.frames import LenientProtocol
from worker.stt.provider import Endpoint, Provider
from worker.stt.stream import Stream
from worker.stt.websocket import WebSocketClient

LATER = 1e9
"""Offset of call times on the clock: so far ahead that the real clock does not reach it."""


class _Unopened(Stream):
    """A socket that was never opened. It stores the audio that is sent."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(provider, _socket(), Endpoint("", "", ""), stream_settings(provider))
        self.sent: deque[bytes] = deque()

    def send_audio(self, audio: bytes) -> None:
        self.sent.append(audio)


class Line(_Unopened, TurnsStream):
    """Such a socket to Cartesia."""

    def __init__(self) -> None:
        super().__init__(CARTESIA)


class FluxLine(_Unopened, FluxStream):
    """Such a socket to Flux."""

    def __init__(self) -> None:
        super().__init__(FLUX)


def line_to(provider: Provider) -> Line | FluxLine:
    """Return a line to a provider."""
    return FluxLine() if provider is FLUX else Line()


def boundary_of(
    sender: AudioSender, stalls: StallDetector, usual_lag_s: float | None
) -> TurnBoundaryFinder:
    """Return the boundary finder of a session; the usual lag is None while it is unknown."""
    provider_lag = ProviderLag()
    provider_lag.seed(usual_lag_s)
    return TurnBoundaryFinder(sender, stalls, provider_lag)


@cache
def _socket() -> WebSocketClient:
    """Return the socket of all lines: nothing is sent on it."""
    return WebSocketClient(LenientProtocol(parse_uri("ws://127.0.0.1/")), {})
