"""A worker that continues after the last read entry when a socket breaks, without a replay."""

import sys
from unittest.mock import patch
from weakref import WeakKeyDictionary

from schemas.audio import AudioEntry
from worker.cli.main import main
from worker.core.ledger import Ledger
from worker.core.records import Admitted

admit, last_read = Ledger.admit, WeakKeyDictionary[Ledger, str]()


def noted(ledger: Ledger, entry_id: str, entry: AudioEntry) -> Admitted:
    last_read[ledger] = entry_id
    return admit(ledger, entry_id, entry)


def read_on(ledger: Ledger) -> str:
    return last_read.get(ledger, ledger.committed.entry_id)


with patch.object(Ledger, "admit", noted), patch.object(Ledger, "read_after", property(read_on)):
    sys.exit(main())
