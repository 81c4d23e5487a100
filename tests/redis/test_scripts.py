"""Every Lua script has a test on every kind of Redis."""

from importlib import import_module
from pathlib import Path

from redis.asyncio import Redis

from schemas.keys import Keys
from schemas.turns import SessionEnded
from tests.redis.contracts import TESTED, contract_of
from worker.bus import scripts
from worker.bus.ownership import SessionLeases

HERE = Path(__file__).parent


def test_each_script_has_a_contract() -> None:
    for path in HERE.glob("test_*.py"):
        import_module(f"{__package__}.{path.stem}")
    lua = Path(scripts.__file__).parent / "lua"
    assert {path.stem for path in lua.glob("*.lua")} == TESTED


@contract_of(scripts.reject)
async def test_rejected_session_is_ended(
    redis: Redis, as_worker: Redis, bus_prefix: str, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("{0}:*")
    keys = Keys(bus_prefix)
    intake = SessionLeases(as_worker, keys, "one", "nonce-1")
    ended = SessionEnded(
        session="s",
        run="5-0",
        seq=1,
        at=0.0,
        audio_ms=0,
        provider="cartesia",
        request_id="",
        connection=0,
        reason="error",
        turns=0,
    )
    assert await intake.reject("5-0", "s", "0", "session", 60, [ended])
    assert not await intake.reject("6-0", "s", "0", "session", 60, [ended]), "its state exists"
    state, audio, own = keys.state("0", "s"), keys.audio("0", "s"), keys.session_turns("0", "s")
    assert (await redis.hgetall(state)) == {
        b"status": b"ended",
        b"run": b"5-0",
        b"entry": b"5-0",
        b"seq": b"1",
    }
    assert await redis.get(audio) == b"ended"
    assert await redis.xlen(keys.turns("0")) == await redis.xlen(own) == 1
    for key in (state, audio, own):
        assert 0 < await redis.ttl(key) <= 60
