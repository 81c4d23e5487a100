"""API keys of the providers: from a file, which is read again when it changes, or a variable.

A key can be replaced without a restart: write it into the file. The next connect uses it. No part
of a key is in an error, a log line or a repr.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import SettingsError
from worker.files import file_version
from worker.settings import ENV_PREFIX, KEY_NAMES, KeyNames, Settings, key_provider

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""Minimum interval between two looks at a file."""

_OLDER_CARTESIA_FILE = "stt_api_key_file"


class ApiKey:
    """The key of one provider."""

    def __init__(self, provider: str, key: str, now: Callable[[], float] | None = None) -> None:
        self.provider = provider
        self._key = key
        self._now = now or time.monotonic
        self._file: Path | None = None
        self._source = KEY_NAMES[provider].variable
        self._checked_at = self._now()
        self._stamp: tuple[int, int, int] | None = None
        self._problem = ""

    @classmethod
    def from_file(
        cls, provider: str, source: str, file: Path, now: Callable[[], float] | None = None
    ) -> "ApiKey":
        """Read a key from a file that the setting `source` names.

        Raises `SettingsError` if the file holds no usable key.
        """
        stamp = file_version(file)
        key = cls(provider, _read_file(provider, source, file), now)
        key._file, key._source, key._stamp = file, source, stamp
        return key

    def __repr__(self) -> str:
        return f"ApiKey({self.provider!r}, from {self._source})"

    def current(self) -> str:
        """Return the key; look at its file at most once a second.

        An unreadable file, or one without a usable key, leaves the last good key in use. The
        problem is logged once.
        """
        now = self._now()
        if self._file is not None and now - self._checked_at >= CHECK_INTERVAL_S:
            self._checked_at = now
            stamp = file_version(self._file)
            if stamp is None or stamp != self._stamp:
                self._read_again(self._file, stamp)
        return self._key

    def _read_again(self, file: Path, stamp: tuple[int, int, int] | None) -> None:
        try:
            key = _read_file(self.provider, self._source, file)
        except SettingsError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("provider %s: the last good key stays in use: %s", self.provider, error)
            return
        if key != self._key or self._problem:
            log.info("provider %s: the API key was read again", self.provider)
        self._key, self._stamp, self._problem = key, stamp, ""


@dataclass(frozen=True)
class ApiKeys:
    """The keys of the configured providers."""

    usable: dict[str, ApiKey]
    """Keys by provider, in the order of the providers."""
    skipped: tuple[str, ...] = field(default=())
    """One line for each provider that is skipped because it has no key."""

    def log_skipped(self) -> None:
        """Log each provider that is skipped."""
        for line in self.skipped:
            log.warning("%s", line)


def load_keys(settings: Settings, env: Mapping[str, str]) -> ApiKeys:
    """Read the key of each configured provider.

    A provider without a key is skipped. Raises `SettingsError` with a line for each key that is
    not usable, or if no provider has a key.
    """
    usable: dict[str, ApiKey] = {}
    missing: list[str] = []
    faults: list[str] = []
    for provider in settings.providers:
        try:
            key = _find(provider, settings, env)
        except SettingsError as error:
            faults += error.problems
            continue
        if key is None:
            missing.append(provider)
        else:
            usable[provider] = key
    if not (usable or faults):
        faults = [_missing(KEY_NAMES[provider]) for provider in missing]
    if faults:
        raise SettingsError(faults)
    skipped = (
        f"provider {name}: skipped, because it has no API key; {KEY_NAMES[name].advice}"
        for name in missing
    )
    return ApiKeys(usable, tuple(skipped))


def _find(provider: str, settings: Settings, env: Mapping[str, str]) -> ApiKey | None:
    """Return a provider's key; None if neither a file nor a variable is given."""
    names = KEY_NAMES[provider]
    given = [names.file_setting] if getattr(settings, names.file_setting) else []
    if provider == "cartesia" and settings.stt_api_key_file:
        given.append(_OLDER_CARTESIA_FILE)
    if len(given) > 1:
        older = f"{ENV_PREFIX}{_OLDER_CARTESIA_FILE.upper()}"
        raise SettingsError([f"{older}: is the older name of {names.file_variable}; set only one"])
    for setting in given:
        path = Path(getattr(settings, setting))
        return ApiKey.from_file(provider, f"{ENV_PREFIX}{setting.upper()}", path)
    if env.get(names.variable, "").strip():
        return ApiKey(provider, _checked(provider, names.variable, env[names.variable]))
    return None


def _missing(names: KeyNames) -> str:
    return f"{names.variable}: no API key for the STT provider; {names.advice}"


def _read_file(provider: str, source: str, file: Path) -> str:
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise SettingsError([f"{source}: the file cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{source}: the file does not hold an API key"]) from None
    if not text.strip():
        raise SettingsError([f"{source}: the file is empty; write the API key into it"])
    return _checked(provider, source, text)


def _checked(provider: str, source: str, text: str) -> str:
    """Return the key in a text; raise `SettingsError` if it is not usable."""
    key, names = text.strip(), KEY_NAMES[provider]
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise SettingsError([f"{source}: an API key is one word of printable ASCII"])
    if key[0] in "'\"" or key[-1] in "'\"":
        raise SettingsError([f"{source}: must be without quotation marks"])
    if key.startswith(f"{names.variable}="):
        raise SettingsError([f"{source}: must be the API key alone, without a name before it"])
    other = key_provider(key)
    if other not in (None, provider):
        advice = KEY_NAMES[other].advice
        raise SettingsError([f"{source}: holds a key of provider {other}; {advice}"])
    return key
