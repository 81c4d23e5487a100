"""Exit 0 if the worker of this container answers /livez, 1 if not."""

import os
import sys
from http.client import HTTPConnection, HTTPException

port = int(os.environ["TURNBUS_ADMIN_ADDR"].rpartition(":")[2])
connection = HTTPConnection("127.0.0.1", port, timeout=4)
try:
    connection.request("GET", "/livez")
    status = connection.getresponse().status
except (OSError, HTTPException) as error:
    sys.exit(f"/livez: {error}")
sys.exit(f"/livez: {status}" if status != 200 else 0)
