"""A worker whose commits are taken although another owns the session by now."""

import hashlib
import re
import sys

from worker.bus.scripts import COMMIT
from worker.cli import main

text, removed = re.subn(
    r"^if state\[1\] ~= ARGV\[1\].*?^end\n", "", COMMIT.text, flags=re.DOTALL | re.MULTILINE
)
assert removed == 1
COMMIT.text = text
COMMIT.sha = hashlib.sha1(text.encode()).hexdigest()
sys.exit(main())
