"""Random histories of commands, with the arguments that turnbus gives them.

A history names the entry ids in its arguments by their number, because each server makes its own:
`Id(3)` is the fourth id that a server has replied with.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from schemas.keys import GROUP, RELEASED, Keys
from worker.bus import scripts

T = TypeVar("T")

KEYS: Final = Keys("stt")
SESSIONS: Final = ("call-1", "call-2", "call-3")
CONSUMERS: Final = ("one", "two", RELEASED)
GROUPS: Final = (GROUP, GROUP, GROUP, "other")
FAR_MS: Final = 10**9
LONG_S: Final = 1_000


class Id(NamedTuple):
    """An id that a server has replied with, perhaps excluded from an interval."""

    number: int
    prefix: str = ""


Part: TypeAlias = str | bytes | int | float | Id
Command: TypeAlias = Sequence[Part]


class _Fence(NamedTuple):
    """What a commit of a session must have to be accepted."""

    entry_id: Part
    delivery_count: int
    nonce: str


class History:
    """Draws the next command, mostly one that the servers accept."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._known_ids = 0
        self._entries: list[Id] = []
        self._fences: dict[str, _Fence] = {}
        self._seqs: dict[str, int] = {}
        self._commits = 0
        draws: dict[Callable[[], Command], int] = {
            self._xadd: 8,
            self._xread: 4,
            self._xrange: 4,
            self._xtrim: 2,
            self._xdel: 2,
            self._xinfo: 3,
            self._xgroup: 3,
            self._xreadgroup: 6,
            self._xack: 2,
            self._xpending: 4,
            self._xclaim: 4,
            self._xautoclaim: 2,
            self._string: 3,
            self._hash: 5,
            self._set: 2,
            self._sorted_set: 4,
            self._generic: 4,
            self._scan: 1,
            self._script_cache: 1,
            self._malformed: 2,
            self._claim: 6,
            self._commit: 10,
            self._take_over: 4,
            self._heartbeat: 4,
            self._raise_count: 2,
            self._release: 3,
            self._restore: 3,
            self._complete: 2,
            self._delete_consumer: 1,
            self._delete_record: 2,
            self._request_permits: 4,
            self._release_permit: 2,
            self._breaker: 4,
            self._reject: 1,
            self._remove_audio: 1,
            self._write: 3,
        }
        self._draws, self._weights = [*draws], [*draws.values()]

    def commands(self, count: int) -> Iterator[Command]:
        """Yield commands. After each one, `observe` gets its reply."""
        if self._rng.random() < 0.9:
            yield ("XGROUP", "CREATE", KEYS.sessions, GROUP, "0", "MKSTREAM")
        for draw in self._rng.choices(self._draws, self._weights, k=count):
            yield draw()

    def observe(self, command: Command, reply: Any, known_ids: int) -> None:
        """Learn from a reply: `known_ids` ids are known now."""
        if command[:2] == ("XADD", KEYS.sessions) and known_ids > self._known_ids:
            self._entries.append(Id(self._known_ids))
        self._known_ids = known_ids
        if command[0] != "EVALSHA" or not isinstance(reply, list) or len(reply) < 2:
            return
        if command[1] == scripts.claim.sha and reply[0] in {"new", "taken"}:
            session = str(command[12])
            self._fences[session] = _Fence(command[7], int(str(command[8])), str(command[9]))
            self._seqs[session] = reply[1] or 0
        elif command[1] == scripts.commit.sha and reply[0] == "ok":
            self._seqs[str(command[10])] = reply[1] or 0

    # -- values

    def _one(self, *choices: T) -> T:
        return self._rng.choice(choices)

    def _some(self, values: Sequence[Any], at_most: int = 3) -> list[Any]:
        return [self._rng.choice(values) for _ in range(self._rng.randint(1, at_most))]

    def _maybe(self, *parts: Part) -> Command:
        return parts if self._rng.random() < 0.4 else ()

    def _id(self) -> Part:
        """Draw an id, mostly a recent one."""
        if not self._known_ids or self._rng.random() < 0.1:
            return self._one("0", "0-0", "5", "7-3", "1-1")
        return Id(self._known_ids - self._back(self._known_ids))

    def _entry(self) -> Part:
        """Draw the id of a session entry, mostly a recent one."""
        if not self._entries or self._rng.random() < 0.1:
            return self._id()
        return self._entries[-self._back(len(self._entries))]

    def _back(self, most: int) -> int:
        return min(most, int(self._rng.expovariate(0.3)) + 1)

    def _session(self) -> str:
        return str(self._one(*SESSIONS))

    def _of_session(self, session: str) -> dict[str, Any]:
        return {**KEYS.of_session("0", session)}

    def _stream(self) -> str:
        session = self._session()
        return str(
            self._one(
                *[KEYS.sessions] * 4,
                KEYS.turns("0"),
                KEYS.session_turns("0", session),
                KEYS.audio("0", session),
                KEYS.audio("0", session),
                KEYS.dead,
            )
        )

    def _any_key(self) -> str:
        others = (KEYS.lost, KEYS.lanes, KEYS.workers, KEYS.gate, KEYS.gate_holders, KEYS.search)
        state = KEYS.state("0", self._session())
        return str(self._one(self._stream(), state, *others, KEYS.breaker("flux"), "stt:none"))

    def _text(self) -> str:
        return "x" * self._one(0, 1, 30, 62, 63, 64, 130, 500)

    # -- streams

    def _xadd(self) -> Command:
        fields: list[Part] = []
        for name in self._one(("audio",), ("audio",), ("session", "type", "event"), ("n", "n")):
            fields += [name, self._one(self._text(), "127", "-1", "16000", "4000000", "1" * 20)]
        trim = self._one(
            (), (), (), (), ("MAXLEN", 10_000), ("MAXLEN", "~", 5), ("MAXLEN", "=", 3),
            ("MINID", self._id()), ("MINID", "~", self._id()), ("MAXLEN", "~", 2, "LIMIT", 3),
        )  # fmt: skip
        entry_id = self._one(*["*"] * 8, "7-3", "5-*", "0-0", self._id())
        return ("XADD", self._stream(), *self._maybe("NOMKSTREAM"), *trim, entry_id, *fields)

    def _xread(self) -> Command:
        streams = self._some((self._stream(), self._stream()), 2)
        block = self._one((), (), ("BLOCK", 1))
        cursors = [self._one("0", "$", self._id()) for _ in streams]
        count = self._maybe("COUNT", self._one(1, 2, 32))
        return ("XREAD", *count, *block, "STREAMS", *streams, *cursors)

    def _xrange(self) -> Command:
        first, last = self._one("-", self._id(), self._excluded()), self._one("+", self._id())
        count = self._one((), ("COUNT", self._one(0, 1, 5, -1)))
        if self._rng.random() < 0.3:
            return ("XREVRANGE", self._stream(), last, first, *count)
        return ("XRANGE", self._stream(), first, last, *count)

    def _excluded(self) -> Part:
        drawn = self._id()
        return Id(drawn.number, "(") if isinstance(drawn, Id) else "(5"

    def _xtrim(self) -> Command:
        how = self._one(
            ("MINID", self._id()), ("MINID", "~", self._id()), ("MAXLEN", self._one(0, 1, 5)),
            ("MAXLEN", "~", self._one(0, 1, 5)), ("MAXLEN", "~", 0, "LIMIT", self._one(0, 2)),
        )  # fmt: skip
        return ("XTRIM", self._stream(), *how)

    def _xdel(self) -> Command:
        if self._rng.random() < 0.3:
            return ("XDEL", KEYS.sessions, self._entry())
        return ("XDEL", self._stream(), *(self._id() for _ in range(self._rng.randint(1, 2))))

    def _xinfo(self) -> Command:
        kind = self._one("STREAM", "GROUPS", "CONSUMERS")
        group = (self._one(*GROUPS),) if kind == "CONSUMERS" else ()
        return ("XINFO", kind, self._stream(), *group)

    def _xgroup(self) -> Command:
        group, stream = self._one(*GROUPS), self._one(KEYS.sessions, self._stream())
        start = self._one("0", "0", "0", "$", self._id())
        return self._one(
            *[("XGROUP", "CREATE", stream, group, start, *self._maybe("MKSTREAM"))] * 6,
            ("XGROUP", "DESTROY", stream, "other"),
            ("XGROUP", "DESTROY", stream, group) if self._rng.random() < 0.3 else ("XLEN", stream),
            ("XGROUP", "CREATECONSUMER", stream, group, self._one(*CONSUMERS)),
            ("XGROUP", "DELCONSUMER", stream, group, self._one(*CONSUMERS)),
            ("XGROUP", "SETID", stream, group, start),
        )

    def _xreadgroup(self) -> Command:
        after = self._one(">", ">", ">", ">", "0", self._id())
        group, consumer = self._one(*GROUPS), self._one(*CONSUMERS[:2])
        options = (*self._maybe("COUNT", self._one(1, 2, 50)), *self._maybe("BLOCK", 1))
        stream = self._one(KEYS.sessions, KEYS.sessions, self._stream())
        return ("XREADGROUP", "GROUP", group, consumer, *options, "STREAMS", stream, after)

    def _xack(self) -> Command:
        more = self._maybe(self._entry())
        return ("XACK", KEYS.sessions, self._one(*GROUPS), self._entry(), *more)

    def _xpending(self) -> Command:
        head = ("XPENDING", KEYS.sessions, self._one(*GROUPS))
        if self._rng.random() < 0.3:
            return head
        idle = self._one((), (), ("IDLE", 0), ("IDLE", FAR_MS))
        first, last = self._one("-", self._id(), self._excluded()), self._one("+", self._id())
        return (*head, *idle, first, last, self._one(0, 1, 1_000),
                *self._maybe(self._one(*CONSUMERS, "unknown")))  # fmt: skip

    def _xclaim(self) -> Command:
        options: list[Part] = []
        for option in (
            ("JUSTID",),
            ("FORCE",),
            ("RETRYCOUNT", 4),
            ("IDLE", 0),
            ("LASTID", self._id()),
        ):
            options += (
                self._maybe(*option) if option[0] == "JUSTID" or self._rng.random() < 0.3 else ()
            )
        ids = [self._entry() for _ in range(self._rng.randint(1, 3))]
        return ("XCLAIM", KEYS.sessions, self._one(*GROUPS), self._one(*CONSUMERS),
                self._one(0, 0, FAR_MS), *ids, *options)  # fmt: skip

    def _xautoclaim(self) -> Command:
        options = (*self._maybe("COUNT", self._one(1, 2, 16)), *self._maybe("JUSTID"))
        return ("XAUTOCLAIM", KEYS.sessions, self._one(*GROUPS), self._one(*CONSUMERS),
                self._one(0, FAR_MS), self._one("0-0", self._id()), *options)  # fmt: skip

    # -- other types

    def _string(self) -> Command:
        key = self._one(KEYS.search, KEYS.sweep, KEYS.audio("0", "call-3"), self._any_key())
        options = self._one((), (), ("EX", LONG_S), ("PX", LONG_S * 1000), ("KEEPTTL",))
        condition = self._one((), (), ("NX",), ("XX",))
        reads = self._one((), (), (), ("GET",))
        return self._one(
            ("SET", key, "value", *options, *condition, *reads),
            ("SET", key, "value", *options, *condition),
            ("GET", key),
        )

    def _hash(self) -> Command:
        key = self._one(KEYS.workers, KEYS.state("0", self._session()), self._any_key())
        name = self._one("status", "seq", "entry", "one")
        return self._one(
            ("HSET", key, name, self._one("1", "live", self._id()), *self._maybe("seq", "3")),
            ("HGET", key, name),
            ("HMGET", key, "status", name, "none"),
            ("HGETALL", key),
            ("HDEL", key, name, *self._maybe("seq")),
            ("HEXISTS", key, name),
            ("HLEN", key),
            ("HVALS", key),
        )

    def _set(self) -> Command:
        key = self._one(KEYS.lanes, KEYS.lanes, self._any_key())
        return self._one(
            ("SADD", key, *self._some(("0", "1", "west"))),
            ("SREM", key, *self._some(("0", "1", "west"))),
            ("SMEMBERS", key),
            ("SISMEMBER", key, "0"),
        )

    def _sorted_set(self) -> Command:
        key = self._one(KEYS.gate, KEYS.gate, KEYS.lost, self._any_key())
        member = self._one("0:call-1", "0:call-2", "0:call-3")
        ranks = (self._one(0, -1, -2, 1), self._one(-1, 0, 1, 999))
        return self._one(
            ("ZADD", key, *self._maybe("NX"), self._one("1", "2", "2.5", "1e15", "inf"), member),
            ("ZREM", key, member, *self._maybe("none")),
            ("ZRANK", key, member),
            ("ZRANGE", key, *ranks, *self._maybe("WITHSCORES")),
            ("ZCARD", key),
            ("ZSCORE", key, member),
        )

    def _generic(self) -> Command:
        key = self._any_key()
        removes = self._rng.random() < (0.1 if key == KEYS.sessions else 0.4)
        return self._one(
            ("TYPE", key),
            ("EXISTS", key, *self._maybe(key, self._any_key())),
            ("UNLINK", key, *self._maybe(key)) if removes else ("XLEN", key),
            ("DEL", key) if removes else ("XLEN", self._stream()),
            ("EXPIRE", key, self._one(LONG_S, LONG_S, 0, -1)),
            ("PEXPIRE", key, LONG_S * 1000),
            ("PERSIST", key),
            ("TTL", key),
            ("PTTL", key),
            ("DBSIZE",),
            ("TIME",),
        )

    def _scan(self) -> Command:
        kind = self._one((), ("TYPE", self._one("stream", "hash", "zset")))
        pattern = self._one(KEYS.state("*", "*"), KEYS.audio("*", "*"), "stt:*", "stt:[gl]a??s")
        return ("SCAN", 0, "MATCH", pattern, "COUNT", 1_000, *kind)

    def _script_cache(self) -> Command:
        known: list[scripts.Script[Any, Any]] = [scripts.commit, scripts.claim, scripts.write]
        script = self._rng.choice(known)
        return self._one(
            ("SCRIPT", "LOAD", script.text),
            ("SCRIPT", "EXISTS", script.sha, "f" * 40),
            ("EVALSHA", "f" * 40, 0),
            ("EVAL", "return {1, 2.7, 'a', {ok='fine'}, {1, {2}}, false, true, nil, 3}", 0),
            ("EVAL", "return redis.pcall('XLEN', KEYS[1])", 1, self._any_key()),
            ("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, KEYS.workers),
            ("EVAL", "return {err='MINE of the script'}", 0),
            ("EVAL", "return redis.sha1hex(ARGV[1])", 0, "text"),
            ("EVAL", "return ARGV[1] .. #KEYS .. #ARGV", 1, "key", "text"),
            ("EVAL", "return", -1),
            ("EVAL", "return", 2, "key"),
        )

    def _malformed(self) -> Command:
        stream = self._stream()
        return self._one(
            ("XADD", stream, "*", "odd"),
            ("XADD", stream, "*"),
            ("XADD", stream, "no-id", "a", "b"),
            ("XADD", stream, "MAXLEN", "many", "*", "a", "b"),
            ("XADD", stream, "MAXLEN", 1, "LIMIT", 1, "*", "a", "b"),
            ("XREAD", "COUNT", "few", "STREAMS", stream, "0"),
            ("XREAD", "BLOCK", -1, "STREAMS", stream, "0"),
            ("XREAD", "STREAMS", stream, "nothing"),
            ("XRANGE", stream, "-", "x"),
            ("XCLAIM", KEYS.sessions, GROUP, "one", 0, self._id(), "WHAT"),
            ("XCLAIM", KEYS.sessions, GROUP, "one", "soon", self._id()),
            ("XPENDING", KEYS.sessions, GROUP, "-", "+"),
            ("XGROUP", "CREATE", stream, GROUP, "x"),
            ("XGROUP", "WHAT", stream),
            ("XINFO", "STREAM"),
            ("XTRIM", stream, "WHAT", 1),
            ("SET", KEYS.search, "value", "EX", 0),
            ("SET", KEYS.search, "value", "EX", "soon"),
            ("SET", KEYS.search, "value", "WHAT"),
            ("GET",),
            ("NOSUCH", "a", "b"),
            ("HSET", KEYS.workers, "a"),
            ("ZADD", KEYS.gate, "high", "member"),
            ("EXPIRE", KEYS.workers, "later"),
            ("SCAN", "x"),
            ("ZRANGE", KEYS.gate, 0, "x"),
        )

    # -- scripts

    def _call(self, script: scripts.Script[Any, Any], **values: Any) -> Command:
        return ("EVALSHA", *script.call(**values))

    def _group(self) -> dict[str, Any]:
        group = self._one(*[GROUP] * 9, "other")
        return {"sessions_key": KEYS.sessions, "lost_key": KEYS.lost, "group": group}

    def _event(self) -> list[Part]:
        kind = self._one("turn.start", "turn.update", "turn.end")
        return [kind, '{"type":"' + kind + '"}' + self._text(), self._one("", "00-trace")]

    def _claim(self) -> Command:
        session, entry = self._session(), self._entry()
        return self._call(
            scripts.claim,
            **self._of_session(session),
            entry_id=entry,
            delivery_count=self._one(1, 1, 2, 3),
            nonce=self._one("nonce-1", "nonce-1", "nonce-2"),
            run=self._one(entry, entry, self._id(), "no id"),
            entry_fields='{"session":"' + session + '"}',
            session=session,
            started_event="{}",
            traceparent=self._one("", "00-trace"),
            out=self._one("lane", "session"),
            first_snapshot="{}",
        )

    def _commit(self) -> Command:
        session = self._session()
        self._commits += 1
        fence = self._fences.get(session)
        if fence is None or self._rng.random() < 0.1:
            fence = _Fence(self._entry(), self._one(1, 2), self._one("nonce-1", "nonce-2"))
        seq = self._seqs.get(session, 1)
        events = [part for _ in range(self._rng.randint(0, 3)) for part in self._event()]
        return self._call(
            scripts.commit,
            **self._of_session(session),
            entry_id=fence.entry_id,
            delivery_count=fence.delivery_count,
            nonce=fence.nonce,
            session=session,
            out=self._one("lane", "session"),
            retention_s=LONG_S,
            turns_retention_ms=self._one(FAR_MS, FAR_MS, -100_000),
            max_turns=self._one(100_000, 5),
            commit_number=self._one(self._commits, self._commits, 1),
            first_seq=self._one(*[seq + 1] * 5, seq, seq + 2, 1),
            ending=self._one(*[""] * 14, "end"),
            snapshot='{"at":1}',
            trim_before=self._one("", self._id()),
            events=events,
        )

    def _reject(self) -> Command:
        session = self._session()
        return self._call(
            scripts.reject,
            **self._of_session(session),
            run=self._entry(),
            session=session,
            out=self._one("lane", "session"),
            retention_s=LONG_S,
            events=self._event()[:2],
        )

    def _take_over(self) -> Command:
        return self._call(
            scripts.take_over,
            **self._group(),
            consumer=self._one(*CONSUMERS[:2]),
            released_consumer=RELEASED,
            lease_ms=self._one(0, FAR_MS),
            max_entries=self._one(1, 3, 50),
            dead=self._one((), ("one",), ("two", "unknown")),
        )

    def _running(self) -> list[Part]:
        return [
            part
            for _ in range(self._rng.randint(0, 4))
            for part in (self._entry(), self._one(1, 1, 2, 4))
        ]

    def _heartbeat(self) -> Command:
        consumer = self._one(*CONSUMERS[:2])
        return self._call(
            scripts.heartbeat, **self._group(), consumer=consumer, running=self._running()
        )

    def _raise_count(self) -> Command:
        return self._call(
            scripts.raise_delivery_count,
            **self._group(),
            consumer=self._one(*CONSUMERS[:2]),
            entry_id=self._entry(),
            delivery_count=self._one(1, 1, 2),
            new_count=self._one(3, 8),
        )

    def _release(self) -> Command:
        return self._call(
            scripts.release,
            **self._group(),
            consumer=self._one(*CONSUMERS[:2]),
            released_consumer=RELEASED,
            owned=self._running(),
        )

    def _restore(self) -> Command:
        run = self._entry()
        return self._call(
            scripts.restore_entry,
            **self._group(),
            entry_id=self._entry(),
            run=run,
            after=self._one(self._id(), "0-0"),
            fields=("session", self._session(), "run", run),
        )

    def _complete(self) -> Command:
        return self._call(
            scripts.complete, sessions_key=KEYS.sessions, group=GROUP, entry_id=self._entry()
        )

    def _delete_consumer(self) -> Command:
        return self._call(
            scripts.delete_consumer,
            sessions_key=KEYS.sessions,
            group=GROUP,
            consumer=self._one(*CONSUMERS),
        )

    def _delete_record(self) -> Command:
        record = self._one('{"consumer":"one","pid":1,"tags":[1,null,true,2.5]}', "{", "[]", "7")
        return self._one(
            ("HSET", KEYS.workers, "worker-1", record),
            self._call(
                scripts.delete_record,
                workers_key=KEYS.workers,
                worker_id="worker-1",
                consumer=self._one("one", "two"),
            ),
        )

    def _permit(self) -> list[Part]:
        return [
            Keys.gate_member("0", self._session()),
            self._one("5-1", "7-3", "7-4"),
            self._one(1, 2),
        ]

    def _request_permits(self) -> Command:
        return self._call(
            scripts.request_permits,
            queue_key=KEYS.gate,
            holders_key=KEYS.gate_holders,
            limit=self._one(1, 2),
            expiry_ms=self._one(0, FAR_MS, -FAR_MS),
            requests=[part for _ in range(self._rng.randint(0, 3)) for part in self._permit()],
        )

    def _release_permit(self) -> Command:
        member, entry_id, count = self._permit()
        return self._call(
            scripts.release_permit,
            queue_key=KEYS.gate,
            holders_key=KEYS.gate_holders,
            member=member,
            entry_id=entry_id,
            delivery_count=count,
        )

    def _breaker(self) -> Command:
        return self._call(
            scripts.exchange_breaker,
            breaker_key=KEYS.breaker("flux"),
            holder=self._one("one", "two"),
            succeeded=self._one(0, 0, 0, 1),
            probe=self._one("", "", "ok", "failed"),
            wants_probe=self._one(0, 1),
            max_failures=3,
            window_ms=FAR_MS,
            lease_ms=FAR_MS,
            first_wait_ms=self._one(0, FAR_MS),
            max_wait_ms=FAR_MS,
            jitter=self._one(1.0, 0.9371, 1.1 / 3),
            expiry_s=LONG_S,
            sessions=self._one((), ("call-1",), ("call-1", "call-2")),
        )

    def _remove_audio(self) -> Command:
        session = self._session()
        return self._call(
            scripts.remove_audio,
            state_key=KEYS.state("0", session),
            audio_key=KEYS.audio("0", session),
            min_age_ms=self._one(-FAR_MS, FAR_MS),
        )

    def _write(self) -> Command:
        calls: list[tuple[str, str, tuple[str, ...]]] = [
            (KEYS.workers, "HSET", ("worker-1", "{}")),
            (KEYS.lanes, "SADD", (self._one("0", "west"),)),
            (self._any_key(), "HSET", ("worker-1", "{}")),
        ]
        key, command, values = self._rng.choice(calls)
        return self._call(scripts.write, key=key, command=command, values=values)
