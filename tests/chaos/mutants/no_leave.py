"""A worker whose sessions never release their connection permits."""

import sys
from unittest.mock import patch

from worker.bus.permits import ConnectionPermits, Permit
from worker.cli.main import main


async def stay(gate: ConnectionPermits, seat: Permit) -> None:
    gate.discard(seat.entry_id)


with patch.object(ConnectionPermits, "release", stay):
    sys.exit(main())
