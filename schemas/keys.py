"""Names of every key on the bus.

`{LANE}` is written with its braces: the Redis Cluster hash tag. All keys of one lane live in one
slot, so one Lua call can check the fence, publish and commit.
"""

import msgspec

GROUP = "workers"
"""Consumer group on the sessions stream."""

RELEASED = "released"
"""Reserved consumer name: entries given back, free for any worker with room."""

ENDED = b"ended"
"""What an audio key holds after its session's end: a string, so that XADD fails loudly."""


class Keys(msgspec.Struct, frozen=True):
    """Key names under one prefix."""

    prefix: str = "stt"

    @property
    def sessions(self) -> str:
        """Stream: one entry per live session."""
        return f"{self.prefix}:sessions"

    @property
    def lost(self) -> str:
        """Sorted set: ids of session entries that were deleted under their sessions, and when."""
        return f"{self.prefix}:{{{self.sessions}}}:lost"

    @property
    def search(self) -> str:
        """String, expiring: the worker that looks for the sessions of lost entries."""
        return f"{self.prefix}:search"

    @property
    def lanes(self) -> str:
        """Set: lanes in use."""
        return f"{self.prefix}:lanes"

    @property
    def dead(self) -> str:
        """Stream: refused entries."""
        return f"{self.prefix}:dead"

    @property
    def workers(self) -> str:
        """Hash: worker id to its record."""
        return f"{self.prefix}:workers"

    @property
    def gate(self) -> str:
        """Sorted set: fleet-wide permits for open STT sockets."""
        return f"{self.prefix}:gate"

    @property
    def gate_holders(self) -> str:
        """Hash: who speaks for each permit; in the slot of `gate`."""
        return f"{self.prefix}:{{{self.gate}}}:holders"

    @property
    def sweep(self) -> str:
        """String, expiring: the worker that swept unannounced audio last."""
        return f"{self.prefix}:sweep"

    def drain(self, consumer: str) -> str:
        """Name the string, expiring, that tells this consumer's process to drain."""
        return f"{self.prefix}:drain:{consumer}"

    def alive(self, consumer: str) -> str:
        """Name the channel whose subscription says that this consumer's process lives."""
        return f"{self.prefix}:alive:{consumer}"

    def turns(self, lane: str) -> str:
        """Name the stream of turn events of every session of the lane."""
        return f"{self.prefix}:{{{lane}}}:turns"

    def audio(self, lane: str, session: str) -> str:
        """Name the stream of one session's audio."""
        return f"{self.prefix}:{{{lane}}}:audio:{session}"

    def state(self, lane: str, session: str) -> str:
        """Name the hash of one session's durable state."""
        return f"{self.prefix}:{{{lane}}}:state:{session}"

    def session_turns(self, lane: str, session: str) -> str:
        """Name the stream of one session's own turn events (`out=session`)."""
        return f"{self.prefix}:{{{lane}}}:turns:{session}"

    def of_session(self, lane: str, session: str) -> tuple[str, str, str, str]:
        """Return what every script about a session is given: state, turns, own turns, audio."""
        return (
            self.state(lane, session),
            self.turns(lane),
            self.session_turns(lane, session),
            self.audio(lane, session),
        )

    @staticmethod
    def gate_member(lane: str, session: str) -> str:
        """Name a session in the gate."""
        return f"{lane}:{session}"
