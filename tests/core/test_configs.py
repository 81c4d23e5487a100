"""Settings are judged again as they were the first time."""

import pytest

from schemas.audio import TurnConfig
from schemas.faults import EntryFault
from worker.core.configs import Configs


def test_later_settings_lie_over_earlier_ones() -> None:
    configs = Configs(TurnConfig(turn_start_threshold=0.8))
    configs.accept("1-0", TurnConfig(turn_end_threshold=0.2))
    configs.accept("2-0", TurnConfig(turn_end_threshold=0.3))
    assert configs.current == TurnConfig(turn_start_threshold=0.8, turn_end_threshold=0.3)
    assert configs.settled == TurnConfig(turn_start_threshold=0.8)


def test_only_what_is_covered_is_settled() -> None:
    configs = Configs(TurnConfig())
    configs.accept("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.accept("10-0", TurnConfig(turn_end_threshold=0.3))
    configs.settled_before("10-0")
    assert configs.settled == TurnConfig(turn_end_threshold=0.2)
    configs.rewind("10-0")
    assert configs.current == TurnConfig(turn_end_threshold=0.2)


def test_a_rewind_knows_what_was_covered_since() -> None:
    configs = Configs(TurnConfig())
    configs.accept("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.rewind("10-0")
    assert configs.settled == configs.current == TurnConfig(turn_end_threshold=0.2)


def test_what_is_fallen_back_to_leaves_what_was_read_since() -> None:
    configs = Configs(TurnConfig(turn_start_threshold=0.6))
    configs.accept("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.fall_back(TurnConfig(turn_start_threshold=0.8))
    assert configs.settled == TurnConfig(turn_start_threshold=0.8)
    assert configs.current == TurnConfig(turn_start_threshold=0.8, turn_end_threshold=0.2)


def test_what_is_withdrawn_is_not_brought_again() -> None:
    announced = TurnConfig(turn_start_threshold=0.8)
    configs = Configs(announced)
    assert not configs.withdraw(announced)
    configs.accept("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.settled_before("10-0")
    configs.accept("10-0", TurnConfig(turn_end_threshold=0.3))
    assert configs.withdraw(announced)
    configs.rewind("10-0")
    with pytest.raises(EntryFault):
        configs.accept("10-0", TurnConfig(turn_end_threshold=0.3))
    assert configs.settled == configs.current == announced
    assert not configs.withdraw(announced)
    configs.accept("11-0", TurnConfig(turn_end_threshold=0.1))
    assert configs.current.turn_end_threshold == 0.1


def test_a_replay_judges_as_the_first_time() -> None:
    """Each step is in order by itself; the first laid over the last would not be."""
    steps = [
        ("1-0", TurnConfig(turn_eager_end_threshold=0.4, turn_end_threshold=0.35)),
        ("2-0", TurnConfig(turn_eager_end_threshold=0.7, turn_end_threshold=0.45)),
        ("3-0", TurnConfig(turn_eager_end_threshold=0.5)),
    ]
    configs = Configs(TurnConfig(turn_start_threshold=0.8))
    for _ in range(2):
        for entry_id, config in steps:
            configs.accept(entry_id, config)
        with pytest.raises(EntryFault):
            configs.accept("4-0", TurnConfig(turn_eager_end_threshold=0.44))
        assert configs.current.turn_eager_end_threshold == 0.5
        configs.rewind("1-0")
