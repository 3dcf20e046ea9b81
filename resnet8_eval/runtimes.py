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
from resnet8_eval.errors import ModelError
from resnet8_eval.preprocess import batches

Framework = Literal["keras", "onnxruntime", "torch"]
Execution = Literal["kernel", "reference"]
Runtime = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""float32 (n, 32, 32, 3) in [0, 255] to float32 probabilities (n, 10)."""

SUFFIXES: Final[dict[str, Framework]] = {
    ".h5": "keras",
    ".keras": "keras",
    ".onnx": "onnxruntime",
    ".pt2": "torch",
    ".pt": "torch",
}

SESSION: Final = {"session.qdqisint8allowed": "1"}
"""Entries of every ONNX Runtime session. Without this one, on x86, it turns signed activations into
unsigned ones, passes over each tensor that is read twice, and then leaves six of the nine
convolutions of the int8 model in float."""


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
        ``"reference"`` makes ONNX Runtime compute quantize and dequantize as they are written,
        without fusing them into integer kernels. A PyTorch file is what it was saved as.

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
        return _onnxruntime(path, threads, optimize=execution == "kernel")
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
        # Refused once TensorFlow has run anything; the first caller in a process decides.
        try:
            threading.set_intra_op_parallelism_threads(threads)
            threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            return


def onnx_session(
    path: Path, threads: int, *, optimize: bool = True, save_to: Path | None = None
) -> Any:
    """Open an ONNX model with ONNX Runtime.

    Parameters
    ----------
    path
        ONNX model.
    threads
        Threads for its operators.
    optimize
        Whether ONNX Runtime may rewrite the graph, and so use integer kernels.
    save_to
        Where to save the graph as it was rewritten.

    Raises
    ------
    ModelError
        If ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for name, value in SESSION.items():
        options.add_session_config_entry(name, value)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common base class for its errors
        raise _unreadable(path, error) from error


def _onnxruntime(path: Path, threads: int, *, optimize: bool) -> Runtime:
    session = onnx_session(path, threads, optimize=optimize)
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
        raise _unreadable(path, error) from error

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
        raise _unreadable(path, error) from error
    if not any(name.endswith("/archive_format") for name in names):
        raise _unreadable(path, ValueError("no torch.export archive"))


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path.name} cannot be opened.",
        expected=f"a model that {framework_of(path)} can load",
        given=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        next_step="check that the file is whole and was written by the pinned versions",
    )
