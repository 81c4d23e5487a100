"""Exit 0 if the process of this container answers /livez, or has no such port; 1 if not.

The argument is the process's HOST:PORT; without one it is the worker's.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

address = sys.argv[1] if sys.argv[1:] else os.environ["TURNBUS_ADMIN_ADDR"]
if not address:
    sys.exit()
host, _, port = address.rpartition(":")
everywhere = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}  # noqa: S104 - not listened on here
reached = everywhere.get(host, host.strip("[]"))
connection = HTTPConnection(reached, int(port), timeout=4)
try:
    connection.request("GET", "/livez")
    status = connection.getresponse().status
except (OSError, HTTPException) as error:
    sys.exit(f"/livez: {error}")
sys.exit(f"/livez: {status}" if status != 200 else 0)
