"""One direction of a simulated TCP connection, and the link between two hosts that carries it.

Bytes of one direction stay in order. They travel in segments whose cut points and delays are
drawn. Two writes of one instant may share a segment. The buffers of both kernels are one window:
when it is full, the sender's socket takes no more.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from tests.simulation.virtual.loop import VirtualLoop
from tests.simulation.virtual.queues import on_grid

if TYPE_CHECKING:
    from tests.simulation.virtual.log import EventLog
    from tests.simulation.virtual.sockets import VirtualSocket

RETRANSMISSION_TIMEOUT_S = 924.0
"""Time after which a kernel gives up on data that is not acknowledged, as on Linux."""

CUT_SHARE = 0.125
"""Share of segments that arrive in two parts."""

MERGED_SHARE = 0.5
"""Share of writes that share a segment with a write of the same instant."""


class Mark(Enum):
    """What arrives in the order of the bytes, and is none."""

    END = "end"
    RESET = "reset"


def error_of(number: int) -> OSError:
    """Return the `OSError` of an error number, in its subclass."""
    return OSError(number, os.strerror(number))


class Link:
    """The way from one host to another."""

    def __init__(self, low_s: float, high_s: float) -> None:
        self.low_s = low_s
        self.spread_s = high_s - low_s
        self.bytes_per_s: float | None = None
        self.partitioned = False
        """Whether nothing passes, the packets of a new connection included."""
        self.stalled_since: float | None = None
        """Time since which the data of connections is held back; None if it is not."""
        self._waiting: list[Callable[[], None]] = []

    @property
    def holds(self) -> bool:
        """Whether data is held back."""
        return self.partitioned or self.stalled_since is not None

    def wait(self, act: Callable[[], None]) -> None:
        """Call a function at `release`."""
        self._waiting.append(act)

    def release(self) -> None:
        """Let everything pass again."""
        self.partitioned, self.stalled_since = False, None
        self.bytes_per_s = None
        waiting, self._waiting = self._waiting, []
        for act in waiting:
            act()


class Pipe:
    """The bytes from one socket to its peer."""

    __slots__ = (
        "_arrival_set",
        "_draw",
        "_flying",
        "_held",
        "_held_since",
        "_last_at",
        "_last_sent",
        "_log",
        "_loop",
        "_window",
        "bytes_left",
        "link",
        "on_bytes_left",
        "received",
        "source",
        "target",
        "unread",
    )

    def __init__(
        self,
        loop: VirtualLoop,
        log: "EventLog",
        draw: Callable[[], float],
        link: Link,
        source: "VirtualSocket",
        target: "VirtualSocket",
        window_bytes: int,
    ) -> None:
        self._loop = loop
        self._log = log
        self._draw = draw
        self._window = window_bytes
        self.link = link
        self.source = source
        self.target = target
        self.received: list[bytes] = []
        """What the target's kernel has and the program has not read."""
        self.unread = 0
        """Bytes sent and not read."""
        self.bytes_left: int | None = None
        """Bytes that still arrive before `on_bytes_left`; None for no limit."""
        self.on_bytes_left: Callable[[], None] | None = None
        self._flying: deque[tuple[float, bytes | Mark]] = deque()
        self._held: deque[bytes | Mark] = deque()
        self._held_since = 0.0
        self._last_at = 0.0
        self._last_sent = -1.0
        self._arrival_set = False

    # -- the sender's side

    @property
    def room(self) -> int:
        """Number of bytes that the sender's kernel takes now."""
        return self._window - self.unread

    def send(self, data: bytes) -> None:
        """Send bytes for which there is room."""
        self.unread += len(data)
        flying = self._flying
        if flying and self._last_sent == self._loop.now and self._draw() < MERGED_SHARE:
            at, last = flying[-1]
            free = not self._held and self.link.bytes_per_s is None
            if free and isinstance(last, bytes):
                flying[-1] = (at, last + data)
                return
        self._launch(data)

    def mark(self, mark: Mark) -> None:
        """Send the end of the stream, or a reset."""
        self._launch(mark)

    def _launch(self, item: bytes | Mark) -> None:
        link = self.link
        if self._held or link.holds or self.target.silent:
            self._hold(item)
            return
        loop = self._loop
        draw = self._draw
        self._last_sent = loop.now
        at = loop.now + link.low_s + draw() * link.spread_s
        if at < self._last_at:
            at = self._last_at
        if isinstance(item, bytes):
            if link.bytes_per_s is not None:
                at += len(item) / link.bytes_per_s
            if len(item) > 1 and draw() < CUT_SHARE:
                cut = 1 + int(draw() * (len(item) - 1))
                self._flying.append((on_grid(at), item[:cut]))
                at += draw() * link.spread_s
                item = item[cut:]
        at = on_grid(at)
        self._flying.append((at, item))
        self._last_at = at
        if not self._arrival_set:
            self._arrival_set = True
            loop.at(self._flying[0][0], self._arrive)

    def _hold(self, item: bytes | Mark) -> None:
        """Keep what the network loses: the kernel sends it again until the target answers."""
        self._held.append(item)
        if len(self._held) > 1:
            return
        self._held_since = since = self._loop.now
        self.link.wait(self.retry)

        def give_up() -> None:
            if self._held and self._held_since == since:
                self._held.clear()
                self.source.fail(error_of(errno.ETIMEDOUT))

        self._loop.at(on_grid(since + RETRANSMISSION_TIMEOUT_S), give_up)

    def retry(self) -> None:
        """Send what was held back, unless it still cannot arrive."""
        held, self._held = self._held, deque()
        for item in held:
            self._launch(item)

    # -- the target's side

    def _arrive(self) -> None:
        now = self._loop.now
        flying = self._flying
        while flying and flying[0][0] <= now:
            _, item = flying.popleft()
            if self.target.silent:
                self._hold(item)
            elif item is Mark.END:
                self.target.end_arrived()
            elif item is Mark.RESET:
                self.target.fail(error_of(errno.ECONNRESET))
            else:
                self._receive(item)
        if flying:
            self._loop.at(flying[0][0], self._arrive)
        else:
            self._arrival_set = False

    def _receive(self, data: bytes) -> None:
        if self.target.gone:
            self.target.answer_with_reset()
            return
        if self.bytes_left is not None:
            data = data[: self.bytes_left]
            self.bytes_left -= len(data)
        if data:
            self._log.delivered(data)
            self.received.append(data)
            self.target.data_arrived()
        if self.bytes_left == 0 and self.on_bytes_left is not None:
            self.bytes_left = None
            self.on_bytes_left()

    def take(self, most: int) -> bytes:
        """Return up to `most` bytes that arrived."""
        received = self.received
        data = received[0] if len(received) == 1 else b"".join(received)
        received.clear()
        if len(data) > most:
            received.append(data[most:])
            data = data[:most]
        was_full = self.room <= 0
        self.unread -= len(data)
        if was_full and self.room > 0:
            delay_s = self.link.low_s + self._draw() * self.link.spread_s
            self._loop.at(on_grid(self._loop.now + delay_s), self.source.poll_write)
        return data

    def discard(self) -> None:
        """Forget everything on the way, after a reset."""
        self._flying.clear()
        self._held.clear()
        self._held_since = -1.0
