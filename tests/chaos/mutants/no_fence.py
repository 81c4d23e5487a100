"""A worker whose commits are taken although another owns the session by now."""

import hashlib
import re
import sys

from worker.bus.scripts import COMMIT
from worker.cli.main import main

# The numbers of commits are each owner's own: compared with another's they would stop it by chance.
GUARDS = (r"^if state\[1\] ~= ARGV\[1\].*?^end\n", r"^if tonumber\(ARGV\[12\]\) <.*?^end\n")

text = COMMIT.text
for guard in GUARDS:
    text, removed = re.subn(guard, "", text, flags=re.DOTALL | re.MULTILINE)
    assert removed == 1
COMMIT.text = text
COMMIT.sha = hashlib.sha1(text.encode()).hexdigest()
sys.exit(main())
