"""Files of secrets, one a line, which may change while the gateway runs."""

import logging
from pathlib import Path
from typing import Final

from worker.errors import SettingsError
from worker.files import file_version

log = logging.getLogger(__name__)

MAX_BYTES: Final = 65_536
"""Maximum size of a file of secrets."""


class SecretFile:
    """One file and the secrets it holds; each of them is valid.

    The file is read at the start, and again after each change. If it can then not be read, its last
    secrets stay valid, so that a failed rotation does not end the authentication of every client.
    """

    def __init__(
        self, path: str, variable: str, min_bytes: int = 1, *, has_users: bool = False
    ) -> None:
        """Read the file. Raises `SettingsError`, which names the variable and no secret.

        With `has_users` each line is `USER:PASSWORD`.
        """
        self._path: Final = Path(path)
        self._variable: Final = variable
        self._min_bytes: Final = min_bytes
        self._has_users: Final = has_users
        self._version = file_version(self._path)
        self._secrets = self._read()

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets of the file, in its order."""
        version = file_version(self._path)
        if version != self._version:
            self._version = version
            try:
                self._secrets = self._read()
                log.info("%s: the file has changed, its secrets are in use", self._variable)
            except SettingsError as error:
                log.error("%s; the secrets before remain in use", error)  # noqa: TRY400 - one line
        return self._secrets

    def _read(self) -> tuple[str, ...]:
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
        except OSError as error:
            raise self._error(f"the file cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._error("the file is not UTF-8 text") from None
        if len(text) > MAX_BYTES:
            raise self._error(f"the file is larger than {MAX_BYTES} bytes")
        secrets = tuple(line.strip() for line in text.splitlines() if line.strip())
        if not secrets:
            raise self._error("the file holds no secret; write one a line")
        if any(len(each.encode()) < self._min_bytes for each in secrets):
            advice = "openssl rand -hex 32 makes one"
            raise self._error(f"a line has fewer than {self._min_bytes} bytes; {advice}")
        if self._has_users and any(":" not in each for each in secrets):
            raise self._error("each line must be USER:PASSWORD")
        return secrets

    def _error(self, problem: str) -> SettingsError:
        return SettingsError([f"{self._variable}: {problem}"])
