"""Names of all Redis keys.

The braces of `{LANE}` are part of the key: a Redis Cluster hash tag. All keys of a lane are in one
slot, so one Lua call can check the fence, publish and commit.
"""

from typing import TypedDict

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


class Keys:
    """Key names under one prefix."""

    def __init__(self, prefix: str = "stt") -> None:
        self.prefix = prefix
        self.sessions = f"{prefix}:sessions"
        """Stream: one entry per live session."""
        self.lost = f"{prefix}:{{{self.sessions}}}:lost"
        """Sorted set: ids of session entries that Redis lost during their sessions, by time."""
        self.search = f"{prefix}:search"
        """Expiring string: the worker that looks for the sessions of lost entries."""
        self.lanes = f"{prefix}:lanes"
        """Set: lanes in use."""
        self.dead = f"{prefix}:dead"
        """Stream: dead letters."""
        self.workers = f"{prefix}:workers"
        """Hash: worker id to its record."""
        self.gate = f"{prefix}:gate"
        """Sorted set: fleet-wide permits for open STT sockets."""
        self.gate_holders = f"{prefix}:{{{self.gate}}}:holders"
        """Hash: the holder of each permit; in the slot of `gate`."""
        self.sweep = f"{prefix}:sweep"
        """Expiring string: the worker that last cleaned up unannounced audio."""

    def drain(self, consumer: str) -> str:
        """Name the expiring string that requests a consumer's process to drain."""
        return f"{self.prefix}:drain:{consumer}"

    def alive(self, consumer: str) -> str:
        """Name the channel to which a consumer's process subscribes while it is alive."""
        return f"{self.prefix}:alive:{consumer}"

    def ingest(self, call: str) -> str:
        """Name the hash of session fields for a call whose wire has only an id (AudioSocket)."""
        return f"{self.prefix}:ingest:{call}"

    def producer(self, lane: str, session: str) -> str:
        """Name the expiring string with the `src` of the gateway that carries a session's call."""
        return f"{self.prefix}:{{{lane}}}:producer:{session}"

    def breaker(self, provider: str) -> str:
        """Name the hash that holds whether new connects should avoid a provider."""
        return f"{self.prefix}:breaker:{{{provider}}}"

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
