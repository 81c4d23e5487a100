"""A replay judges the settings in the stream as the first reading did."""

import pytest

from schemas.audio import TurnConfig
from schemas.validation import EntryError
from worker.core.turn_config import TurnConfigHistory


def test_later_settings_override_earlier_ones() -> None:
    configs = TurnConfigHistory(TurnConfig(turn_start_threshold=0.8))
    configs.apply("1-0", TurnConfig(turn_end_threshold=0.2))
    configs.apply("2-0", TurnConfig(turn_end_threshold=0.3))
    assert configs.current == TurnConfig(turn_start_threshold=0.8, turn_end_threshold=0.3)
    assert configs.committed == TurnConfig(turn_start_threshold=0.8)


def test_only_covered_settings_are_committed() -> None:
    configs = TurnConfigHistory(TurnConfig())
    configs.apply("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.apply("10-0", TurnConfig(turn_end_threshold=0.3))
    configs.committed_before("10-0")
    assert configs.committed == TurnConfig(turn_end_threshold=0.2)
    configs.rewind("10-0")
    assert configs.current == TurnConfig(turn_end_threshold=0.2)


def test_rewind_keeps_settings_covered_since() -> None:
    configs = TurnConfigHistory(TurnConfig())
    configs.apply("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.rewind("10-0")
    assert configs.committed == configs.current == TurnConfig(turn_end_threshold=0.2)


def test_fallback_keeps_settings_read_since() -> None:
    configs = TurnConfigHistory(TurnConfig(turn_start_threshold=0.6))
    configs.apply("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.reset_to(TurnConfig(turn_start_threshold=0.8))
    assert configs.committed == TurnConfig(turn_start_threshold=0.8)
    assert configs.current == TurnConfig(turn_start_threshold=0.8, turn_end_threshold=0.2)


def test_revoked_settings_are_refused_on_replay() -> None:
    announced = TurnConfig(turn_start_threshold=0.8)
    configs = TurnConfigHistory(announced)
    assert not configs.revoke(announced)
    configs.apply("9-0", TurnConfig(turn_end_threshold=0.2))
    configs.committed_before("10-0")
    configs.apply("10-0", TurnConfig(turn_end_threshold=0.3))
    assert configs.revoke(announced)
    configs.rewind("10-0")
    with pytest.raises(EntryError):
        configs.apply("10-0", TurnConfig(turn_end_threshold=0.3))
    assert configs.committed == configs.current == announced
    assert not configs.revoke(announced)
    configs.apply("11-0", TurnConfig(turn_end_threshold=0.1))
    assert configs.current.turn_end_threshold == 0.1


def test_replay_judges_settings_as_first_time() -> None:
    """Each step is valid by itself; the last merged with the first would not be."""
    steps = [
        ("1-0", TurnConfig(turn_eager_end_threshold=0.4, turn_end_threshold=0.35)),
        ("2-0", TurnConfig(turn_eager_end_threshold=0.7, turn_end_threshold=0.45)),
        ("3-0", TurnConfig(turn_eager_end_threshold=0.5)),
    ]
    configs = TurnConfigHistory(TurnConfig(turn_start_threshold=0.8))
    for _ in range(2):
        for entry_id, config in steps:
            configs.apply(entry_id, config)
        with pytest.raises(EntryError):
            configs.apply("4-0", TurnConfig(turn_eager_end_threshold=0.44))
        assert configs.current.turn_eager_end_threshold == 0.5
        configs.rewind("1-0")
