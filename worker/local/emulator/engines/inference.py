"""Runs models with onnxruntime, on the calling thread only."""

import os

# onnxruntime sends telemetry to its vendor unless this is set before the import. The engines must
# not use the network.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

from worker.local.emulator.engines.packaged import PackagedFile


def load_model(weights: PackagedFile) -> onnxruntime.InferenceSession:
    """Load a model from verified weights; many threads may run it at once.

    Raises LocalPartMissing if the weights are missing or changed.
    """
    options = onnxruntime.SessionOptions()
    # One thread per decode, and one decode per core. A decode split over threads uses more CPU in
    # total, and threads that spin between its steps block the cores for other work.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(weights.locate()), options, providers=["CPUExecutionProvider"]
    )
