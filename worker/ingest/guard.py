"""Decides on requests with the secrets of the files that the settings name."""

import time
from collections.abc import Iterator
from typing import Final

from worker.errors import SettingsError
from worker.ingest.auth import Access, Credentials, Refusal, Route
from worker.ingest.request import Request
from worker.ingest.responses import HeaderLines
from worker.ingest.secret_files import SecretFile
from worker.ingest.settings import IngestSettings
from worker.ingest.tokens import KEY_BYTES_MIN, Claims
from worker.urls import is_loopback

_PREFIX: Final = "TURNBUS_INGEST_"


class RequestRefusedError(Exception):
    """A request that may not proceed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Guard:
    """Checks requests. A changed file of secrets is used from the next request on."""

    def __init__(self, settings: IngestSettings, *, console: bool = False) -> None:
        """Read the files. Raises `SettingsError`, which names each unusable one.

        With `console` also if a page beyond loopback would have no suitable credential.
        """
        self._settings = settings
        self._is_loopback: Final = is_loopback(settings.listen[0])
        problems: list[str] = []

        def read(name: str, min_bytes: int = 1, *, has_users: bool = False) -> SecretFile | None:
            path = getattr(settings, f"ingest_{name.lower()}")
            try:
                return (
                    SecretFile(path, _PREFIX + name, min_bytes, has_users=has_users)
                    if path
                    else None
                )
            except SettingsError as error:
                problems.extend(error.problems)
                return None

        self._twilio = read("TWILIO_AUTH_TOKEN_FILE")
        self._bearer = read("BEARER_FILE")
        self._basic = read("BASIC_FILE", has_users=True)
        self._keys = read("TOKEN_KEY_FILE", KEY_BYTES_MIN)
        if console and not (self._is_loopback or settings.ingest_basic_file):
            why = "beyond loopback a browser needs a user and a password for the page"
            problems.append(f"--console: {why}; set {_PREFIX}BASIC_FILE")
        if problems:
            raise SettingsError(problems)

    def check(self, request: Request, route: Route, session: str | None = None) -> Claims | None:
        """Return what the request's token says, None if it proceeds without one.

        `session` is the one that the request names. Raises `RequestRefusedError`.
        """
        now = time.time()
        refusals = []
        for access in self._accesses():
            refusal = access.authorize(request, route, session, now)
            if refusal is None:
                return access.token_claims(request, now)
            refusals.append(refusal)
        # A token that one key signed may lack a right (403); the other keys do not know it (401).
        raise RequestRefusedError(max(refusals, key=lambda refusal: refusal.status))

    def check_page(self, request: Request) -> None:
        """Check a request for a file of the console: on loopback the page is free."""
        if not self._is_loopback:
            self.check(request, "console")

    def cors_headers(self, request: Request) -> HeaderLines:
        """Return the headers by which a page of a listed origin may read the answer."""
        origins, origin = self._settings.origins, request.headers.get("Origin")
        if not origins:
            return []
        is_listed = origin is not None and ("*" in origins or origin in origins)
        allowed = [("Access-Control-Allow-Origin", origin)] if origin and is_listed else []
        return [("Vary", "Origin"), *allowed]

    def _accesses(self) -> Iterator[Access]:
        """Yield who may do what, with each key of signed tokens in turn."""
        keys: list[bytes | None] = [key.encode() for key in _secrets(self._keys)]
        users = [line.partition(":")[::2] for line in _secrets(self._basic)]
        for key in keys or [None]:
            credentials = Credentials(
                _secrets(self._twilio), _secrets(self._bearer), tuple(users), key
            )
            yield Access(
                credentials,
                self._settings.ingest_public_url,
                self._settings.origins,
                self._is_loopback,
            )


def _secrets(file: SecretFile | None) -> tuple[str, ...]:
    return file.secrets if file is not None else ()
