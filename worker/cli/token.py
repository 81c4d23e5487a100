"""`turnbus token`: a signed token for one session at the gateway."""

import os
import time
from typing import Annotated

from msgspec import Meta

from schemas.audio import Lane, SessionId
from worker.cli.command import Command, Config, Option
from worker.errors import SettingsError
from worker.ingest.secret_files import SecretFile
from worker.ingest.tokens import KEY_BYTES_MIN, Scope, issue
from worker.settings import load_ingest

_VARIABLE = "TURNBUS_INGEST_TOKEN_KEY_FILE"


class Token(Command, kw_only=True):
    """Print a signed token by which a client opens one session at the gateway.

    It is for clients without other credentials, a browser say, which give it in the query: token=.
    TURNBUS_INGEST_TOKEN_KEY_FILE names the file with the key, which the gateway also reads. Each
    person with the token may use it until it expires.

    examples:
      turnbus token --session call-1
      turnbus token --session call-1 --ttl 60 --scope events
    """

    session: Annotated[SessionId, Option("the only session that the token is for", "ID")]
    ttl: Annotated[
        Annotated[int, Meta(ge=1, le=31_536_000)], Option("seconds until the token expires", "S")
    ] = 300
    scope: Annotated[
        Scope, Option("what the token is for: sending audio, reading events, or both")
    ] = "both"
    lane: Annotated[Lane, Option("lane of the session", "NAME")] = "0"
    config: Config = None

    def run(self) -> int:
        """Print the token. Raises SettingsError without a key."""
        _, gateway = load_ingest(os.environ, self.config)
        if not gateway.ingest_token_key_file:
            advice = "name a file with the key; openssl rand -hex 32 makes one"
            raise SettingsError([f"{_VARIABLE}: not set; {advice}"])
        keys = SecretFile(gateway.ingest_token_key_file, _VARIABLE, KEY_BYTES_MIN).secrets
        expires_at = int(time.time()) + self.ttl
        print(issue(keys[0].encode(), self.session, self.scope, expires_at, self.lane))
        return 0
