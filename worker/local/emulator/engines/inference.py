"""How models are run here: on the calling thread alone, by onnxruntime."""

import os

# onnxruntime reports its use to its maker unless told not to before it is imported; nothing here
# may speak to a network.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

from worker.local.emulator.engines.packaged import PackagedFile


def load_model(weights: PackagedFile) -> onnxruntime.InferenceSession:
    """Load a model from verified weights; it may be run from many threads at once.

    Raises LocalPartMissing if the weights are missing or changed.
    """
    options = onnxruntime.SessionOptions()
    # One thread per decode, as many decodes as cores: a decode split over threads costs more in
    # all, and threads that spin between its steps take the cores from everything else.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(weights.locate()), options, providers=["CPUExecutionProvider"]
    )
