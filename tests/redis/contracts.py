"""Registry of the Lua scripts that are tested on every kind of Redis."""

from typing import Any, Final

import pytest

from tests.support.harness import ON_EACH_BUS
from worker.bus.scripts import Script

TESTED: Final[set[str]] = set()
"""Names of the scripts whose contract is tested."""


def contract_of(*scripts: Script[Any, Any]) -> pytest.MarkDecorator:
    """Run a test of the replies and effects of these scripts on every kind of Redis.

    Other behaviour of a script's callers is tested on one kind only.
    """
    TESTED.update(script.name for script in scripts)
    return ON_EACH_BUS
