"""`python -m worker` is `turnbus`."""

import sys

from worker.cli import main

sys.exit(main())
