"""Exit 0 if the worker of this container answers /livez, 1 if not."""

import os
import sys
from http.client import HTTPConnection, HTTPException

host, _, port = os.environ["TURNBUS_ADMIN_ADDR"].rpartition(":")
loopback = "::1" if host.startswith("[") else "127.0.0.1"
connection = HTTPConnection(loopback, int(port), timeout=4)
try:
    connection.request("GET", "/livez")
    status = connection.getresponse().status
except (OSError, HTTPException) as error:
    sys.exit(f"/livez: {error}")
sys.exit(f"/livez: {status}" if status != 200 else 0)
