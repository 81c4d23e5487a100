"""Values of random commands: ids, keys and fences that the servers mostly accept."""

import random
from collections.abc import Callable, Mapping, Sequence
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


class Fence(NamedTuple):
    """What a commit of a session must have to be accepted."""

    entry_id: Part
    delivery_count: int
    nonce: str


class Draws:
    """Draws values, mostly those that the servers accept."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fences: dict[str, Fence] = {}
        """The last claim of each session."""
        self.seqs: dict[str, int] = {}
        """The last event of each session."""
        self.commits = 0
        """Number of commits so far."""
        self._known_ids = 0
        self._entries: list[Id] = []

    def observe(self, command: Command, reply: Any, known_ids: int) -> None:
        """Learn from a reply: `known_ids` ids are known now."""
        if command[:2] == ("XADD", KEYS.sessions) and known_ids > self._known_ids:
            self._entries.append(Id(self._known_ids))
        self._known_ids = known_ids
        if command[0] != "EVALSHA" or not isinstance(reply, list) or len(reply) < 2:
            return
        if command[1] == scripts.claim.sha and reply[0] in {"new", "taken"}:
            session = str(command[12])
            self.fences[session] = Fence(command[7], int(str(command[8])), str(command[9]))
            self.seqs[session] = reply[1] or 0
        elif command[1] == scripts.commit.sha and reply[0] == "ok":
            self.seqs[str(command[10])] = reply[1] or 0

    def one(self, *choices: T) -> T:
        return self.rng.choice(choices)

    def some(self, values: Sequence[Any], at_most: int = 3) -> list[Any]:
        return [self.rng.choice(values) for _ in range(self.rng.randint(1, at_most))]

    def maybe(self, *parts: Part) -> Command:
        return parts if self.rng.random() < 0.4 else ()

    def any_id(self) -> Part:
        """Draw an id, mostly a recent one."""
        if not self._known_ids or self.rng.random() < 0.1:
            return self.one("0", "0-0", "5", "7-3", "1-1")
        return Id(self._known_ids - self._back(self._known_ids))

    def entry(self) -> Part:
        """Draw the id of a session entry, mostly a recent one."""
        if not self._entries or self.rng.random() < 0.1:
            return self.any_id()
        return self._entries[-self._back(len(self._entries))]

    def _back(self, most: int) -> int:
        return min(most, int(self.rng.expovariate(0.3)) + 1)

    def session(self) -> str:
        return str(self.one(*SESSIONS))

    def of_session(self, session: str) -> dict[str, Any]:
        return {**KEYS.of_session("0", session)}

    def stream(self) -> str:
        session = self.session()
        return str(
            self.one(
                *[KEYS.sessions] * 4,
                KEYS.turns("0"),
                KEYS.session_turns("0", session),
                KEYS.audio("0", session),
                KEYS.audio("0", session),
                KEYS.dead,
            )
        )

    def any_key(self) -> str:
        others = (KEYS.lost, KEYS.lanes, KEYS.workers, KEYS.gate, KEYS.gate_holders, KEYS.search)
        state = KEYS.state("0", self.session())
        return str(self.one(self.stream(), state, *others, KEYS.breaker("flux"), "stt:none"))

    def text(self) -> str:
        return "x" * self.one(0, 1, 30, 62, 63, 64, 130, 500)


Weights: TypeAlias = Mapping[Callable[[Draws], Command], int]
"""Functions that draw a command, and how often each is called."""
