"""The Lua scripts of `lua/`: one function each, whose parameters name the script's KEYS and ARGV.

A function here is only a signature: `Script` derives the order of the values from it, once. Its
return type describes the reply; redis-py returns each tuple of it as a list. The `.lua` file
documents all values.
"""

# mypy: disable-error-code="empty-body"

import hashlib
import inspect
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Generic, ParamSpec, TypeAlias, TypeVar

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

_LUA = Path(__file__).parent / "lua"

P = ParamSpec("P")
R = TypeVar("R")
Value: TypeAlias = str | bytes | int | float
Key: TypeAlias = Annotated[str, "key"]
"""A parameter that is one of KEYS; each other one is one of ARGV."""
Rest: TypeAlias = Annotated[Iterable[Value], "rest"]
"""The last parameter of some scripts: any number of values at the end of ARGV."""

ScriptCall: TypeAlias = tuple[Any, ...]
"""The arguments of EVALSHA: digest, number of keys, keys and values."""


class Script(Generic[P, R]):
    """One script, sent by its SHA-1."""

    def __init__(self, signature: Callable[P, R]) -> None:
        parameters = inspect.signature(signature, eval_str=True).parameters.values()
        self.name = signature.__name__
        self.text = (_LUA / f"{self.name}.lua").read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.keys = tuple(each.name for each in parameters if each.annotation is Key)
        self.args = tuple(each.name for each in parameters if each.annotation not in (Key, Rest))
        self.rest = next((each.name for each in parameters if each.annotation is Rest), None)
        self._in_order = itemgetter(*self.keys, *self.args)

    def call(self, *_: P.args, **values: P.kwargs) -> ScriptCall:
        """Return the arguments of EVALSHA, also for a pipeline.

        Only mypy rejects positional and unknown arguments: this runs for each commit.
        """
        rest: Any = values[self.rest] if self.rest else ()
        return (self.sha, len(self.keys), *self._in_order(values), *rest)

    async def __call__(self, redis: Redis, /, *_: P.args, **values: P.kwargs) -> R:
        """Run the script, and load it first if the server does not have it."""
        return await self.run(redis, self.call(*_, **values))

    async def run(self, redis: Redis, call: ScriptCall) -> R:
        """Run a prepared call of the script."""
        while True:
            try:
                reply: R = await redis.evalsha(*call)
            except NoScriptError:
                await self.load(redis)  # a restart may drop it again before the next call
            else:
                return reply

    async def load(self, redis: Redis) -> None:
        """Load the script into the server."""
        await redis.script_load(self.text)


@Script
def claim(
    *,
    state_key: Key,
    lane_turns_key: Key,
    session_turns_key: Key,
    audio_key: Key,
    entry_id: str,
    delivery_count: int,
    nonce: str,
    run: str | bytes,
    entry_fields: bytes,
    session: str,
    started_event: bytes,
    traceparent: str,
    out: str,
    first_snapshot: bytes,
) -> tuple[bytes, int, bytes, bytes]:
    """Claim a session: write the owner's fence into its state."""


@Script
def commit(
    *,
    state_key: Key,
    lane_turns_key: Key,
    session_turns_key: Key,
    audio_key: Key,
    entry_id: str,
    delivery_count: int,
    nonce: str,
    session: str,
    out: str,
    retention_s: int,
    turns_retention_ms: int,
    max_turns: int,
    commit_number: int,
    first_seq: int,
    ending: str,
    snapshot: str | bytes,
    trim_before: str,
    events: Rest,
) -> tuple[bytes, int]:
    """Write events, the state for the next owner, and the audio trim atomically."""


class SessionCommits:
    """Calls of `commit` by one owner of a session.

    Most arguments never change. They come first, and are put in order once.
    """

    __slots__ = ("beginning",)

    def __init__(
        self,
        *,
        state_key: str,
        lane_turns_key: str,
        session_turns_key: str,
        audio_key: str,
        entry_id: str,
        delivery_count: int,
        nonce: str,
        session: str,
        out: str,
        retention_s: int,
        turns_retention_ms: int,
        max_turns: int,
    ) -> None:
        keys = (state_key, lane_turns_key, session_turns_key, audio_key)
        self.beginning: ScriptCall = (
            *(commit.sha, len(keys), *keys),
            *(entry_id, delivery_count, nonce, session, out),
            *(retention_s, turns_retention_ms, max_turns),
        )
        """What every call begins with."""

    def call(
        self,
        *,
        commit_number: int,
        first_seq: int,
        ending: str,
        snapshot: str | bytes,
        trim_before: str,
        events: Iterable[Value],
    ) -> ScriptCall:
        """Return the arguments of EVALSHA for one commit."""
        changing = (commit_number, first_seq, ending, snapshot, trim_before)
        return (*self.beginning, *changing, *events)


@Script
def reject(
    *,
    state_key: Key,
    lane_turns_key: Key,
    session_turns_key: Key,
    audio_key: Key,
    run: str,
    session: str,
    out: str,
    retention_s: int,
    events: Rest,
) -> int:
    """Publish the events of a rejected session entry."""


@Script
def take_over(
    *,
    sessions_key: Key,
    lost_key: Key,
    group: str,
    consumer: str,
    released_consumer: str,
    lease_ms: int,
    max_entries: int,
    declined: str,
    dead: Rest,
) -> tuple[list[tuple[bytes, int, list[bytes], bytes]], int]:
    """Take over released entries, and entries of owners that are dead or idle for a lease."""


@Script
def heartbeat(
    *, sessions_key: Key, lost_key: Key, group: str, consumer: str, running: Rest
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Renew leases."""


@Script
def raise_delivery_count(
    *,
    sessions_key: Key,
    lost_key: Key,
    group: str,
    consumer: str,
    entry_id: str,
    delivery_count: int,
    new_count: int,
) -> int:
    """Raise the delivery count of an entry above the count of an older claim."""


@Script
def restore_entry(
    *,
    sessions_key: Key,
    lost_key: Key,
    group: str,
    entry_id: str,
    run: str,
    after: str,
    fields: Rest,
) -> int:
    """Restore the entry of a live session that is missing."""


@Script
def release(
    *,
    sessions_key: Key,
    lost_key: Key,
    group: str,
    consumer: str,
    released_consumer: str,
    owned: Rest,
) -> int:
    """Release entries, so that any worker with room can claim them at once."""


@Script
def complete(*, sessions_key: Key, group: str, entry_id: str) -> None:
    """Remove the entry of a session that ended."""


@Script
def delete_consumer(*, sessions_key: Key, group: str, consumer: str) -> int:
    """Delete a consumer that owns nothing."""


@Script
def delete_record(*, workers_key: Key, worker_id: str, consumer: str) -> int:
    """Delete a worker's record, unless a restarted worker has overwritten it."""


@Script
def request_permits(
    *, queue_key: Key, holders_key: Key, limit: int, expiry_ms: int, requests: Rest
) -> list[int]:
    """Request or renew permits for open STT sockets."""


@Script
def release_permit(
    *, queue_key: Key, holders_key: Key, member: str, entry_id: str, delivery_count: int
) -> int:
    """Release a permit."""


@Script
def exchange_breaker(
    *,
    breaker_key: Key,
    holder: str,
    succeeded: int,
    probe: str,
    wants_probe: int,
    max_failures: int,
    window_ms: int,
    lease_ms: int,
    first_wait_ms: int,
    max_wait_ms: int,
    jitter: float,
    expiry_s: int,
    sessions: Rest,
) -> tuple[bytes, int]:
    """Report to the fleet's breaker of a provider, and return its state."""


@Script
def remove_audio(*, state_key: Key, audio_key: Key, min_age_ms: int) -> int:
    """Remove an audio stream that has no session and gets no new entries."""


@Script
def write(*, key: Key, command: str, values: Rest) -> Any:  # noqa: ANN401 - the command's reply
    """Run one small write even if memory is full."""
