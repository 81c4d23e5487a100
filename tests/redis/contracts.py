"""Which Lua scripts have a test on every kind of Redis."""

from typing import Final

import pytest

from tests.support.harness import ON_EACH_BUS
from worker.bus.scripts import Script

TESTED: Final[set[str]] = set()
"""Names of the scripts whose contract is tested."""


def contract_of(*scripts: Script) -> pytest.MarkDecorator:
    """Run a test of these scripts, of their replies and effects, on every kind of Redis.

    What else the callers of a script do needs one kind only.
    """
    TESTED.update(script.name for script in scripts)
    return ON_EACH_BUS
