"""A worker whose commits are accepted although another worker owns the session."""

import hashlib
import re
import sys

from worker.bus.scripts import COMMIT
from worker.cli.main import main

# Each owner numbers its own commits: a comparison with another owner's could fence it by chance.
GUARDS = (r"^if state\[1\] ~= ARGV\[1\].*?^end\n", r"^if tonumber\(ARGV\[12\]\) <.*?^end\n")

text = COMMIT.text
for guard in GUARDS:
    text, removed = re.subn(guard, "", text, flags=re.DOTALL | re.MULTILINE)
    assert removed == 1
COMMIT.text = text
COMMIT.sha = hashlib.sha1(text.encode()).hexdigest()
sys.exit(main())
