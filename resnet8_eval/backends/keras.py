"""Keras: the framework that models come from. It runs them, and quantizes nothing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from resnet8_eval.backends import Execution, Session


def open_model(path: Path, threads: int, execution: Execution = "kernel") -> Session:
    """Open a Keras model, which runs in one way; see :class:`resnet8_eval.backends.Backend`."""
    import tensorflow as tf

    from resnet8_eval.convert.keras_to_onnx import load

    threading = tf.config.threading
    if threading.get_intra_op_parallelism_threads() != threads:
        # TensorFlow refuses this once it has run anything. The number of threads is then the one
        # that `lanes.lane_environment` set.
        with suppress(RuntimeError):
            threading.set_intra_op_parallelism_threads(threads)
            threading.set_inter_op_parallelism_threads(1)
    model = load(path)
    forward = tf.function(
        lambda batch: model(batch, training=False),
        input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)],
    )
    return Session(
        lambda batch: np.asarray(forward(batch)),
        threading.get_intra_op_parallelism_threads,
    )


def weights_bytes(path: Path) -> int:
    """Bytes of the weights of a Keras file; see :class:`resnet8_eval.backends.Backend`."""
    from resnet8_eval.convert.keras_file import array_bytes

    return array_bytes(path)["weights_bytes"]
