"""Random histories of commands, with the arguments that turnbus gives them.

A history names the entry ids in its arguments by their number, because each server makes its own:
`Id(3)` is the fourth id that a server has replied with.
"""

from collections.abc import Iterator
from typing import Any

from schemas.keys import GROUP
from tests.simulation.redis.differential import script_calls, streams, values
from tests.simulation.redis.differential.draws import KEYS, Command, Draws


class History:
    """Draws one command after the other."""

    def __init__(self, seed: int) -> None:
        self._draws = Draws(seed)

    def commands(self, count: int) -> Iterator[Command]:
        """Yield commands. After each one, `observe` gets its reply."""
        rng = self._draws.rng
        weights = {**streams.WEIGHTS, **values.WEIGHTS, **script_calls.WEIGHTS}
        if rng.random() < 0.9:
            yield ("XGROUP", "CREATE", KEYS.sessions, GROUP, "0", "MKSTREAM")
        for draw in rng.choices([*weights], [*weights.values()], k=count):
            yield draw(self._draws)

    def observe(self, command: Command, reply: Any, known_ids: int) -> None:
        """Learn from a reply: `known_ids` ids are known now."""
        self._draws.observe(command, reply, known_ids)
