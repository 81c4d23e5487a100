"""Random calls of the scripts of the worker."""

from typing import Any, Final

from schemas.keys import GROUP, RELEASED, Keys
from tests.simulation.redis.differential.draws import (
    CONSUMERS,
    FAR_MS,
    KEYS,
    LONG_S,
    Command,
    Draws,
    Fence,
    Part,
    Weights,
)
from worker.bus import scripts


def _call(script: scripts.Script[Any, Any], **values: Any) -> Command:
    return ("EVALSHA", *script.call(**values))


def _group(draws: Draws) -> dict[str, Any]:
    group = draws.one(*[GROUP] * 9, "other")
    return {"sessions_key": KEYS.sessions, "lost_key": KEYS.lost, "group": group}


def _event(draws: Draws) -> list[Part]:
    kind = draws.one("turn.start", "turn.update", "turn.end")
    return [kind, '{"type":"' + kind + '"}' + draws.text(), draws.one("", "00-trace")]


def claim(draws: Draws) -> Command:
    session, entry = draws.session(), draws.entry()
    return _call(
        scripts.claim,
        **draws.of_session(session),
        entry_id=entry,
        delivery_count=draws.one(1, 1, 2, 3),
        nonce=draws.one("nonce-1", "nonce-1", "nonce-2"),
        run=draws.one(entry, entry, draws.any_id(), "no id"),
        entry_fields='{"session":"' + session + '"}',
        session=session,
        started_event="{}",
        traceparent=draws.one("", "00-trace"),
        out=draws.one("lane", "session"),
        first_snapshot="{}",
    )


def commit(draws: Draws) -> Command:
    session = draws.session()
    draws.commits += 1
    fence = draws.fences.get(session)
    if fence is None or draws.rng.random() < 0.1:
        fence = Fence(draws.entry(), draws.one(1, 2), draws.one("nonce-1", "nonce-2"))
    seq = draws.seqs.get(session, 1)
    events = [part for _ in range(draws.rng.randint(0, 3)) for part in _event(draws)]
    return _call(
        scripts.commit,
        **draws.of_session(session),
        entry_id=fence.entry_id,
        delivery_count=fence.delivery_count,
        nonce=fence.nonce,
        session=session,
        out=draws.one("lane", "session"),
        retention_s=LONG_S,
        turns_retention_ms=draws.one(FAR_MS, FAR_MS, -100_000),
        max_turns=draws.one(100_000, 5),
        commit_number=draws.one(draws.commits, draws.commits, 1),
        first_seq=draws.one(*[seq + 1] * 5, seq, seq + 2, 1),
        ending=draws.one(*[""] * 14, "end"),
        snapshot='{"at":1}',
        trim_before=draws.one("", draws.any_id()),
        events=events,
    )


def reject(draws: Draws) -> Command:
    session = draws.session()
    return _call(
        scripts.reject,
        **draws.of_session(session),
        run=draws.entry(),
        session=session,
        out=draws.one("lane", "session"),
        retention_s=LONG_S,
        events=_event(draws)[:2],
    )


def take_over(draws: Draws) -> Command:
    return _call(
        scripts.take_over,
        **_group(draws),
        consumer=draws.one(*CONSUMERS[:2]),
        released_consumer=RELEASED,
        lease_ms=draws.one(0, FAR_MS),
        max_entries=draws.one(1, 3, 50),
        declined=draws.one(" ", " ", " 7-3 "),
        dead=draws.one((), ("one",), ("two", "unknown")),
    )


def _running(draws: Draws) -> list[Part]:
    return [
        part
        for _ in range(draws.rng.randint(0, 4))
        for part in (draws.entry(), draws.one(1, 1, 2, 4))
    ]


def heartbeat(draws: Draws) -> Command:
    consumer = draws.one(*CONSUMERS[:2])
    return _call(scripts.heartbeat, **_group(draws), consumer=consumer, running=_running(draws))


def raise_count(draws: Draws) -> Command:
    return _call(
        scripts.raise_delivery_count,
        **_group(draws),
        consumer=draws.one(*CONSUMERS[:2]),
        entry_id=draws.entry(),
        delivery_count=draws.one(1, 1, 2),
        new_count=draws.one(3, 8),
    )


def release(draws: Draws) -> Command:
    return _call(
        scripts.release,
        **_group(draws),
        consumer=draws.one(*CONSUMERS[:2]),
        released_consumer=RELEASED,
        owned=_running(draws),
    )


def restore(draws: Draws) -> Command:
    run = draws.entry()
    return _call(
        scripts.restore_entry,
        **_group(draws),
        entry_id=draws.entry(),
        run=run,
        after=draws.one(draws.any_id(), "0-0"),
        fields=("session", draws.session(), "run", run),
    )


def complete(draws: Draws) -> Command:
    return _call(scripts.complete, sessions_key=KEYS.sessions, group=GROUP, entry_id=draws.entry())


def delete_consumer(draws: Draws) -> Command:
    return _call(
        scripts.delete_consumer,
        sessions_key=KEYS.sessions,
        group=GROUP,
        consumer=draws.one(*CONSUMERS),
    )


def delete_record(draws: Draws) -> Command:
    record = draws.one('{"consumer":"one","pid":1,"tags":[1,null,true,2.5]}', "{", "[]", "7")
    return draws.one(
        ("HSET", KEYS.workers, "worker-1", record),
        _call(
            scripts.delete_record,
            workers_key=KEYS.workers,
            worker_id="worker-1",
            consumer=draws.one("one", "two"),
        ),
    )


def _permit(draws: Draws) -> list[Part]:
    return [
        Keys.gate_member("0", draws.session()),
        draws.one("5-1", "7-3", "7-4"),
        draws.one(1, 2),
    ]


def request_permits(draws: Draws) -> Command:
    return _call(
        scripts.request_permits,
        queue_key=KEYS.gate,
        holders_key=KEYS.gate_holders,
        limit=draws.one(1, 2),
        expiry_ms=draws.one(0, FAR_MS, -FAR_MS),
        requests=[part for _ in range(draws.rng.randint(0, 3)) for part in _permit(draws)],
    )


def release_permit(draws: Draws) -> Command:
    member, entry_id, count = _permit(draws)
    return _call(
        scripts.release_permit,
        queue_key=KEYS.gate,
        holders_key=KEYS.gate_holders,
        member=member,
        entry_id=entry_id,
        delivery_count=count,
    )


def breaker(draws: Draws) -> Command:
    return _call(
        scripts.exchange_breaker,
        breaker_key=KEYS.breaker("flux"),
        holder=draws.one("one", "two"),
        succeeded=draws.one(0, 0, 0, 1),
        probe=draws.one("", "", "ok", "failed"),
        wants_probe=draws.one(0, 1),
        max_failures=3,
        window_ms=FAR_MS,
        lease_ms=FAR_MS,
        first_wait_ms=draws.one(0, FAR_MS),
        max_wait_ms=FAR_MS,
        jitter=draws.one(1.0, 0.9371, 1.1 / 3),
        expiry_s=LONG_S,
        sessions=draws.one((), ("call-1",), ("call-1", "call-2")),
    )


def remove_audio(draws: Draws) -> Command:
    session = draws.session()
    return _call(
        scripts.remove_audio,
        state_key=KEYS.state("0", session),
        audio_key=KEYS.audio("0", session),
        min_age_ms=draws.one(-FAR_MS, FAR_MS),
    )


def write(draws: Draws) -> Command:
    calls: list[tuple[str, str, tuple[str, ...]]] = [
        (KEYS.workers, "HSET", ("worker-1", "{}")),
        (KEYS.lanes, "SADD", (draws.one("0", "west"),)),
        (draws.any_key(), "HSET", ("worker-1", "{}")),
    ]
    key, command, values = draws.rng.choice(calls)
    return _call(scripts.write, key=key, command=command, values=values)


WEIGHTS: Final[Weights] = {
    claim: 6,
    commit: 10,
    reject: 1,
    take_over: 4,
    heartbeat: 4,
    raise_count: 2,
    release: 3,
    restore: 3,
    complete: 2,
    delete_consumer: 1,
    delete_record: 2,
    request_permits: 4,
    release_permit: 2,
    breaker: 4,
    remove_audio: 1,
    write: 3,
}
