"""A worker whose commits are accepted although another worker owns the session."""

import hashlib
import re
import sys

from worker.bus.scripts import commit
from worker.cli.main import main

# Each owner numbers its own commits: a comparison with another owner's could fence it by chance.
GUARDS = (r"^if state\[1\] ~= entry_id.*?^end\n", r"^if tonumber\(commit_number\) <.*?^end\n")

text = commit.text
for guard in GUARDS:
    text, removed = re.subn(guard, "", text, flags=re.DOTALL | re.MULTILINE)
    assert removed == 1
commit.text = text
commit.sha = hashlib.sha1(text.encode()).hexdigest()
sys.exit(main())
