"""Names of all Redis keys.

The braces of `{LANE}` are part of the key: a Redis Cluster hash tag. All keys of a lane are in one
slot, so one Lua call can check the fence, publish and commit.
"""

from typing import TypedDict

import msgspec

GROUP = "workers"
"""Consumer group on the sessions stream."""

RELEASED = "released"
"""Reserved consumer name that holds released entries, free for any worker with room."""

ENDED = b"ended"
"""Value of an audio key after its session's end: a string, so that XADD fails."""


class SessionKeys(TypedDict):
    """The keys that every script of a session takes, by their names in the scripts."""

    state_key: str
    lane_turns_key: str
    session_turns_key: str
    audio_key: str


class Keys(msgspec.Struct, frozen=True):
    """Key names under one prefix."""

    prefix: str = "stt"

    @property
    def sessions(self) -> str:
        """Stream: one entry per live session."""
        return f"{self.prefix}:sessions"

    @property
    def lost(self) -> str:
        """Sorted set: ids of session entries that Redis lost during their sessions, by time."""
        return f"{self.prefix}:{{{self.sessions}}}:lost"

    @property
    def search(self) -> str:
        """Expiring string: the worker that looks for the sessions of lost entries."""
        return f"{self.prefix}:search"

    @property
    def lanes(self) -> str:
        """Set: lanes in use."""
        return f"{self.prefix}:lanes"

    @property
    def dead(self) -> str:
        """Stream: dead letters."""
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
        """Hash: the holder of each permit; in the slot of `gate`."""
        return f"{self.prefix}:{{{self.gate}}}:holders"

    @property
    def sweep(self) -> str:
        """Expiring string: the worker that last cleaned up unannounced audio."""
        return f"{self.prefix}:sweep"

    def drain(self, consumer: str) -> str:
        """Name the expiring string that requests a consumer's process to drain."""
        return f"{self.prefix}:drain:{consumer}"

    def alive(self, consumer: str) -> str:
        """Name the channel to which a consumer's process subscribes while it is alive."""
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

    def of_session(self, lane: str, session: str) -> SessionKeys:
        """Return the keys that every script of a session takes."""
        return {
            "state_key": self.state(lane, session),
            "lane_turns_key": self.turns(lane),
            "session_turns_key": self.session_turns(lane, session),
            "audio_key": self.audio(lane, session),
        }

    @staticmethod
    def gate_member(lane: str, session: str) -> str:
        """Return the member of `gate` for a session."""
        return f"{lane}:{session}"
