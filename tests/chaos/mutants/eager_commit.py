"""A worker that takes audio for settled as soon as it has read it."""

import sys
from unittest.mock import patch

from schemas.audio import AudioEntry
from worker.cli import main
from worker.core.ledger import Admission, Ledger

admit = Ledger.admit


def settled(ledger: Ledger, entry_id: str, entry: AudioEntry) -> Admission:
    admission = admit(ledger, entry_id, entry)
    ledger.commit_to(ledger.taken)
    return admission


with patch.object(Ledger, "admit", settled):
    sys.exit(main())
