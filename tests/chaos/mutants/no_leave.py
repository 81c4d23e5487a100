"""A worker whose sessions never give up their places at the gate."""

import sys
from unittest.mock import patch

from worker.bus.gate import Gate, Seat
from worker.cli import main


async def stay(gate: Gate, seat: Seat) -> None:
    gate.forget(seat.entry)


with patch.object(Gate, "leave", stay):
    sys.exit(main())
