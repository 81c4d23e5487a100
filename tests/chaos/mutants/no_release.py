"""A worker whose sessions never release their connection permits."""

import sys
from unittest.mock import patch

from worker.bus.permits import ConnectionPermits, Permit
from worker.cli.main import main


async def keep(permits: ConnectionPermits, permit: Permit) -> None:
    permits.discard(permit.entry_id)


with patch.object(ConnectionPermits, "release", keep):
    sys.exit(main())
