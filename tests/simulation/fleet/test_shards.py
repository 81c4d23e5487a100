"""Fleets on a cluster: which plans have one, where keys are, and slots that move."""

import random
from collections import Counter

import pytest
from msgspec.structs import replace

from tests.simulation.fleet.draw import draw_plan
from tests.simulation.fleet.fleet import Fleet
from tests.simulation.fleet.history import ScriptRun
from tests.simulation.fleet.plan import decode_plan, encode_plan
from tests.simulation.fleet.producers import Refusal
from tests.simulation.fleet.redis_hosts import RedisHosts, draw_owners
from tests.simulation.fleet.shards import KEYS, with_shards
from tests.simulation.redis.cluster_model import NOT_LOCAL
from tests.simulation.redis.resp import CommandError
from tests.simulation.redis.slots import SLOTS
from tests.simulation.virtual.world import World

PLANS = [draw_plan(seed) for seed in range(400)]


def test_some_plans_have_a_cluster() -> None:
    with_cluster = {plan.seed: with_shards(plan) for plan in PLANS}
    shards = Counter(plan.shards for plan in with_cluster.values())
    assert set(shards) == {1, 2, 3}
    assert 30 < shards[2] + shards[3] < 90
    for before in PLANS:
        after = with_cluster[before.seed]
        if after.shards == 1:
            assert after == before
            continue
        kept = [fault for fault in before.faults if fault.kind != "redis-failover"]
        assert [fault for fault in after.faults if fault.kind != "slot-moved"] == kept
        assert replace(after, shards=1, faults=before.faults) == before
        assert decode_plan(encode_plan(after)) == after


def test_each_master_has_slots() -> None:
    for seed in range(20):
        owners = draw_owners(random.Random(seed), 3)
        assert len(owners) == SLOTS
        assert set(owners) == {0, 1, 2}


@pytest.mark.parametrize("key", sorted({*KEYS}))
def test_keys_are_used_where_they_are(key: str) -> None:
    redis = RedisHosts(World("shards"), 3, random.Random(1))
    home = redis.holder(key)
    assert isinstance(redis.append(key, {"n": "1"}), bytes)
    move = redis.begin_move(key)
    assert move is not None
    assert redis.begin_move(key) is None, "it moves already"
    assert redis.holder(key) is home
    assert not move.step()
    moved = redis.holder(key)
    assert moved is not home
    assert move.step()
    assert redis.holder(key) is moved
    assert redis.command("XLEN", key) == 1
    assert redis.read("XLEN", key) == 1
    assert redis.last_id(key) != b"0-0"


def test_slot_moves_only_between_servers_that_are_up() -> None:
    redis = RedisHosts(World("shards"), 2, random.Random(1))
    redis.append("{0}", {"n": "1"})
    home = redis.holder("{0}")
    move = redis.begin_move("{0}")
    assert move is not None
    home.server.kill()
    assert not move.step()
    assert redis.command("XLEN", "{0}") is None
    assert redis.read("XLEN", "{0}") == 1
    assert redis.append("{0}", {"n": "1"}) is Refusal.AWAY
    home.server.restart()
    assert home.up
    assert not redis.serving
    assert redis.append("{0}", {"n": "1"}) is Refusal.AWAY, "it has not joined the cluster yet"
    assert not move.step()
    assert move.step()
    assert redis.holder("{0}") is not home
    assert RedisHosts(World("one"), 1, random.Random(1)).begin_move("{0}") is None


def test_script_that_fails_in_its_middle_is_found() -> None:
    fleet = Fleet(draw_plan(1), World("shards"))
    for text in ("NOSCRIPT", f"{NOT_LOCAL} script: on @user_script:3."):
        fleet.redis.on_script(ScriptRun(0.0, "write", (), (), CommandError(text)))
    assert [found.rule for found in fleet.findings] == ["script"]
