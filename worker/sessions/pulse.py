"""The pulse of a socket: whether the service still takes bytes and answers, and what it heard."""

from worker.stt.socket import Socket

PING_S = 5.0
"""Between pings, and for the answer to one: a half-open socket is known within twice that."""

ASK_S = 2.5
"""Between pings while no turn is open: silence that the service heard need not be replayed."""

PROMPT_S = 1.0
"""An answer later than that says nothing of when the service heard the audio before the ping."""

SEND_DEADLINE_S = 5.0
"""How long the peer may take no bytes."""


class Pulse:
    """Pings one socket, and drops it when it is dead."""

    def __init__(self, now: float) -> None:
        self._number = 0
        self._sent_at = now
        self._fed = 0
        self._settled = True

    def beat(self, socket: Socket, now: float, fed: int, every_s: float) -> int | None:
        """Look after the socket; `fed` is the session byte sent up to now.

        `every_s` is the time between pings.

        Returns the session byte up to which the service has certainly heard, once per answer.
        """
        if socket.blocked_since is not None and now - socket.blocked_since > SEND_DEADLINE_S:
            socket.abort(f"the service took no audio for {SEND_DEADLINE_S:g} s")
        if socket.pongs < self._number:
            # A busy service may answer late; one that says anything at all is not gone.
            if now - max(self._sent_at, socket.heard_at) > PING_S:
                socket.abort(f"no answer to a ping for {PING_S:g} s")
            return None
        if not self._settled:
            self._settled = True
            return self._fed if now - self._sent_at < PROMPT_S else None
        if now - self._sent_at >= every_s:
            self._number += 1
            self._sent_at, self._fed, self._settled = now, fed, False
            socket.send_ping(self._number)
        return None
