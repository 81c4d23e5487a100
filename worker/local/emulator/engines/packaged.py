"""Files inside other packages, located without importing the packages, and verified.

Nothing is downloaded. The packages are part of `turnbus[local]`. They are pinned, because other
versions contain other files or none.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import msgspec

from worker.errors import MissingExtraError


class PackagedFile(msgspec.Struct, frozen=True):
    """Location and expected checksum of one file."""

    requirement: str  # the exact pin, as pip reads it
    package: str
    path: str  # inside the package
    sha256: str

    def locate(self) -> Path:
        """Find and verify the file.

        Raises LocalPartMissing if the file is missing or its checksum differs.
        """
        # find_spec does not run the package: importing Moonshine's needs a sound card.
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise self._missing("is not installed")
        path = Path(spec.submodule_search_locations[0], self.path)
        if not path.is_file():
            raise self._missing(f"is installed in a version without {self.path}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                raise self._missing(f"is installed with a changed {self.path}")
        return path

    def _missing(self, why: str) -> MissingExtraError:
        return MissingExtraError(f"{self.requirement} {why}; run: pip install 'turnbus[local]'")
