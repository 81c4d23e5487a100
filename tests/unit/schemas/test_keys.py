"""Key names are a contract; all keys of a lane share one Redis Cluster slot."""

import pytest
from redis.crc import key_slot

from schemas import Keys


def test_key_names() -> None:
    keys = Keys()
    assert (keys.sessions, keys.lanes, keys.dead) == ("stt:sessions", "stt:lanes", "stt:dead")
    assert (keys.workers, keys.gate) == ("stt:workers", "stt:gate")
    assert (keys.lost, keys.search) == ("stt:{stt:sessions}:lost", "stt:search")
    assert keys.breaker("flux") == "stt:breaker:{flux}"
    assert keys.alive("w-1") == "stt:alive:w-1"
    assert keys.drain("w-1") == "stt:drain:w-1"
    assert keys.ingest("c-1") == "stt:ingest:c-1"
    assert keys.turns("0") == "stt:{0}:turns"
    assert keys.audio("0", "s") == "stt:{0}:audio:s"
    assert keys.state("0", "s") == "stt:{0}:state:s"
    assert keys.session_turns("0", "s") == "stt:{0}:turns:s"


@pytest.mark.parametrize("prefix", ["stt", "a:b"])
def test_keys_of_lane_share_one_slot(prefix: str) -> None:
    keys = Keys(prefix)
    names = {
        keys.turns("eu"),
        keys.audio("eu", "call.1"),
        keys.state("eu", "call:2"),
        keys.session_turns("eu", "call-3"),
    }
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert key_slot(keys.lost.encode()) == key_slot(keys.sessions.encode())
    assert all(name.startswith(f"{prefix}:") for name in names)
