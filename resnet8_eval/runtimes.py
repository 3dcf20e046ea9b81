"""Keras, ONNX Runtime and PyTorch behind one small interface: images to scores.

A runtime is a function from one preprocessed batch to its probabilities. Opening one imports its
framework and sets its thread count; nothing else here does.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import torchscript
from resnet8_eval.errors import ModelError, unreadable_model
from resnet8_eval.onnx_session import Execution, open_session
from resnet8_eval.preprocess import batches

Framework = Literal["keras", "onnxruntime", "torch"]
Runtime = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""float32 (n, 32, 32, 3) in [0, 255] to float32 probabilities (n, 10)."""

SUFFIXES: Final[dict[str, Framework]] = {
    ".h5": "keras",
    ".keras": "keras",
    ".onnx": "onnxruntime",
    ".pt2": "torch",
    ".pt": "torch",
}


def framework_of(path: Path) -> Framework:
    """The framework that opens this kind of file.

    Raises
    ------
    ModelError
        If the suffix is none of ``.h5 .keras .onnx .pt2 .pt``.
    """
    try:
        return SUFFIXES[path.suffix]
    except KeyError:
        raise ModelError(
            f"{path.name} is no kind of model that can be evaluated.",
            expected="a file named " + ", ".join(f"*{suffix}" for suffix in SUFFIXES),
            given=str(path),
            next_step="give a Keras, ONNX or PyTorch model (torch.export or TorchScript)",
        ) from None


def scores(
    path: Path, images: NDArray[np.uint8], *, threads: int, execution: Execution = "kernel"
) -> NDArray[np.float32]:
    """Run a stored model on stored images.

    Parameters
    ----------
    path
        Keras ``.h5`` or ``.keras``, ``.onnx``, ``.pt2`` (``torch.export``) or ``.pt``
        (TorchScript).
    images
        uint8, shape (N, 32, 32, 3), RGB, NHWC.
    threads
        Threads for the framework's operators.
    execution
        For ONNX Runtime, see :func:`resnet8_eval.onnx_session.open_session`. A PyTorch file is what
        it was saved as.

    Returns
    -------
    ndarray
        float32 probabilities, shape (N, 10).

    Raises
    ------
    ModelError
        If the model cannot be opened, or does not give finite scores of shape (N, 10).
    """
    runtime = _open(path, threads, execution)
    try:
        result = run(runtime, images)
    except Exception as error:  # each framework raises its own for images of another shape
        raise ModelError(
            f"{path.name} cannot be run on the images.",
            expected="a network from float32 (N, 32, 32, 3), for any N, to one output (N, 10)",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}",
            next_step="export the network with that input and output",
        ) from error
    if result.shape != (len(images), 10) or not np.isfinite(result).all():
        raise ModelError(
            f"{path.name} does not give one finite score for each class.",
            expected=f"finite float32 of shape ({len(images)}, 10)",
            given=f"shape {result.shape}, {int((~np.isfinite(result)).sum())} not finite",
            next_step="check the model's weights for NaN and its output for ten classes",
        )
    return result.astype(np.float32, copy=False)


def run(runtime: Runtime, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Feed images to a runtime, preprocessed batch by batch.

    Parameters
    ----------
    runtime
        What takes a batch.
    images
        uint8, shape (N, 32, 32, 3).

    Returns
    -------
    ndarray
        What it gave for each image, shape (N, 10).
    """
    return np.concatenate([runtime(batch) for batch in batches(images)])


def _open(path: Path, threads: int, execution: Execution) -> Runtime:
    framework = framework_of(path)
    if framework == "keras":
        return _keras(path, threads)
    if framework == "onnxruntime":
        return _onnxruntime(path, threads, execution)
    return _torch(path, threads)


def _keras(path: Path, threads: int) -> Runtime:
    import tensorflow as tf

    from resnet8_eval.convert.keras_to_onnx import load

    _set_tensorflow_threads(tf, threads)
    model = load(path)
    forward = tf.function(
        lambda batch: model(batch, training=False),
        input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)],
    )
    return lambda batch: np.asarray(forward(batch))


def _set_tensorflow_threads(tf: Any, threads: int) -> None:
    threading = tf.config.threading
    if threading.get_intra_op_parallelism_threads() != threads:
        # Refused once TensorFlow has run anything; then `lanes.lane_environment` has decided.
        try:
            threading.set_intra_op_parallelism_threads(threads)
            threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            return


def _onnxruntime(path: Path, threads: int, execution: Execution) -> Runtime:
    session = open_session(path, threads, execution)
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def _torch(path: Path, threads: int) -> Runtime:
    import torch

    torch.set_num_threads(threads)
    if path.suffix == ".pt2":
        _demand_export(path)
    try:
        module = (
            torch.export.load(path).module() if path.suffix == ".pt2" else torchscript.load(path)
        )
    except Exception as error:  # zip, JSON and TorchScript readers each raise their own
        raise unreadable_model(path, "torch", error) from error

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(batch)).numpy())

    return run


def _demand_export(path: Path) -> None:
    """Keep any other file from torch, which would go on to try its older, unpickling readers."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise unreadable_model(path, "torch", error) from error
    if not any(name.endswith("/archive_format") for name in names):
        raise unreadable_model(path, "torch", ValueError("no torch.export archive"))
