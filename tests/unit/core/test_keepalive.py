"""When a socket counts as alive, and which audio the provider has received, in seconds."""

from dataclasses import dataclass, field

from worker.core.keepalive import Keepalive


@dataclass
class Line:
    """The socket as the keepalive sees it."""

    pongs_received: int = 0
    last_received_at: float = 0.0
    blocked_since: float | None = None
    pings: list[int] = field(default_factory=list)
    aborted: str = ""

    def send_ping(self, number: int) -> None:
        self.pings.append(number)

    def abort(self, reason: str) -> None:
        self.aborted = reason


def _beat(
    keepalive: Keepalive, line: Line, now: float, fed: int, every_s: float = 5.0
) -> int | None:
    return keepalive.check(line, now, fed, every_s)


def test_keepalive_reports_received_audio_once() -> None:
    keepalive, line = Keepalive(0.0), Line()
    assert _beat(keepalive, line, 4.9, 100) is None
    assert line.pings == []
    _beat(keepalive, line, 5.0, 200)
    assert line.pings == [1]
    assert _beat(keepalive, line, 5.1, 300) is None, "not answered yet"
    line.pongs_received = 1
    assert _beat(keepalive, line, 5.2, 400) == 200, "what was sent before the ping"
    assert _beat(keepalive, line, 5.3, 500) is None, "reported once"
    _beat(keepalive, line, 10.0, 600)
    assert line.pings == [1, 2]


def test_keepalive_pings_at_interval() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 2.5, 0, 2.5)
    line.pongs_received = 1
    _beat(keepalive, line, 2.6, 0, 2.5)
    _beat(keepalive, line, 5.0, 0, 5.0)
    assert line.pings == [1]
    _beat(keepalive, line, 5.0, 0, 2.5)
    assert line.pings == [1, 2]


def test_late_pong_confirms_no_audio() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 5.0, 200)
    line.pongs_received = 1
    assert _beat(keepalive, line, 6.5, 400) is None
    assert not line.aborted


def test_silent_peer_is_aborted() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 5.0, 0)
    _beat(keepalive, line, 10.0, 0)
    assert not line.aborted
    _beat(keepalive, line, 10.1, 0)
    assert "ping" in line.aborted


def test_any_message_of_peer_keeps_socket() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 5.0, 0)
    line.last_received_at = 9.0
    _beat(keepalive, line, 13.9, 0)
    assert not line.aborted
    _beat(keepalive, line, 14.1, 0)
    assert line.aborted


def test_peer_that_reads_nothing_is_aborted() -> None:
    keepalive, line = Keepalive(0.0), Line(blocked_since=1.0)
    _beat(keepalive, line, 5.9, 0)
    assert not line.aborted
    _beat(keepalive, line, 6.1, 0)
    assert "no audio" in line.aborted
