"""From calibration images to quantization parameters: equalize, find the ranges, round."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval.errors import ModelError
from resnet8_eval.preprocess import batches
from resnet8_eval.quantize.equalization import equalize
from resnet8_eval.quantize.graph import ints
from resnet8_eval.quantize.parameters import (
    EQUALIZED,
    MODEL,
    Parameters,
    exact_weight_limit,
)
from resnet8_eval.quantize.ranges import Observed, activation_ranges, observe
from resnet8_eval.quantize.recipes import Method
from resnet8_eval.quantize.rounding import Moments, input_moments, round_weights
from resnet8_eval.store import Record

DEFAULT_METHOD: Final = Method()


class Statistics(NamedTuple):
    """All that is measured on the calibration images, before anything is decided.

    Attributes
    ----------
    model
        The float32 network, equalized if it is to be.
    observed
        Its activations.
    moments
        Of the inputs of its layers.
    """

    model: onnx.ModelProto
    observed: Observed
    moments: Moments


def calibrate(
    folded: Path,
    images: NDArray[np.uint8],
    folder: Path,
    threads: int,
    method: Method = DEFAULT_METHOD,
    limit: int | None = None,
) -> Record:
    """Decide every quantization parameter, once for both frameworks.

    Parameters
    ----------
    folded
        float32 ONNX model with batch normalisation folded.
    images
        Calibration images, uint8 (N, 32, 32, 3).
    folder
        Where :class:`resnet8_eval.quantize.parameters.Parameters` is saved.
    threads
        Threads for ONNX Runtime.
    method
        How.
    limit
        Largest magnitude of a rounded weight; by default
        :func:`resnet8_eval.quantize.parameters.exact_weight_limit`.

    Returns
    -------
    dict
        ``method``, and ``fed_sha256``, the hash of the bytes fed when the ranges were found.
    """
    statistics = collect(onnx.load(folded), images, threads, method)
    return decide(statistics, folder, method, limit or exact_weight_limit())


def collect(
    folded: onnx.ModelProto, images: NDArray[np.uint8], threads: int, method: Method
) -> Statistics:
    """Run the calibration images through the network.

    Parameters
    ----------
    folded, images, threads
        As in :func:`calibrate`.
    method
        Its ``equalize`` and ``moment_stride`` count here; methods that differ in nothing else can
        share what is collected.
    """
    model = _with_global_pool(folded)
    if method.equalize:
        model = equalize(model, images, threads)
    return Statistics(
        model,
        observe(model, images, threads),
        input_moments(model, images[:: method.moment_stride], threads),
    )


def decide(
    statistics: Statistics, folder: Path, method: Method, limit: int, levels: int = 255
) -> Record:
    """Decide every quantization parameter from what was collected.

    Parameters
    ----------
    statistics
        From :func:`collect`.
    folder, method, limit
        As in :func:`calibrate`.
    levels
        Largest integer of the activations' grids.

    Returns
    -------
    dict
        As :func:`calibrate`.
    """
    model, observed, moments = statistics
    activations = activation_ranges(model, observed, method, levels)
    rounded = round_weights(model, moments, method, limit)
    onnx.save(model, folder / EQUALIZED)
    onnx.save(rounded.model, folder / MODEL)
    Parameters(folder / MODEL, activations, rounded.scales, rounded.integers).save(folder)
    return {"method": _describe(method, limit), "fed_sha256": observed.fed_sha256}


def _describe(method: Method, limit: int) -> dict[str, Any]:
    """The method in words, for results.json."""
    cut = f" {method.percentile}" if method.ranges == "percentile" else ""
    rounding = "GPTQ rounding" if method.rounding == "gptq" else "rounded to nearest"
    return {
        "equalization": "activation ranges, residual groups" if method.equalize else "none",
        "activations": f"per tensor, {method.ranges}{cut}",
        "weights": f"{method.granularity}, symmetric, {rounding}"
        + (", bias corrected" if method.correct_bias else ""),
        "weight_limit": limit,
        "input": "exact: scale 1",
        "score": "float32",
    }


def compare_feeds(images: NDArray[np.uint8], fed_sha256: str) -> Record:
    """Hold what calibration fed to the network against what evaluation would feed it.

    Parameters
    ----------
    images
        The calibration images, uint8 (N, 32, 32, 3).
    fed_sha256
        What :func:`calibrate` recorded while it ran.

    Returns
    -------
    dict
        ``differing_bytes`` of ``compared_bytes`` (``expected_bytes``: four for each value of each
        image), between this moment's two feeds; ``evaluation_sha256``; ``calibration_sha256``,
        which is `fed_sha256`.
    """
    from resnet8_eval import runtimes

    evaluated: list[NDArray[np.float32]] = []

    def tap(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        evaluated.append(batch.copy())
        return np.zeros((len(batch), 10), np.float32)

    runtimes.run(tap, images)
    evaluation = np.concatenate(evaluated).tobytes()
    calibration = np.concatenate(list(batches(images))).tobytes()
    shared = min(len(evaluation), len(calibration))
    differing = int(
        (
            np.frombuffer(evaluation[:shared], np.uint8)
            != np.frombuffer(calibration[:shared], np.uint8)
        ).sum()
    )
    return {
        "differing_bytes": differing + abs(len(evaluation) - len(calibration)),
        "compared_bytes": shared,
        "expected_bytes": 4 * images.size,
        "evaluation_sha256": hashlib.sha256(evaluation).hexdigest(),
        "calibration_sha256": fed_sha256,
    }


def _with_global_pool(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write the average over the whole map as GlobalAveragePool.

    It is the same function. But quantizers force an AveragePool's output onto its input's scale,
    and the mean of a mostly zero map would then use a fifth of the range.

    Raises
    ------
    ModelError
        If a pool averages a smaller window: written so, it would be another function.
    """
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        if node.op_type == "AveragePool":
            window, whole = ints(node, "kernel_shape", []), shapes[node.input[0]][2:]
            if window != whole:
                raise ModelError(
                    "The network averages only a part of its last map.",
                    expected=f"an average over the whole map, {_times(whole)}",
                    given=f"windows of {_times(window)}",
                    next_step="give AveragePooling2D the size of the map, or use"
                    " GlobalAveragePooling2D",
                )
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    return model


def _times(sizes: list[int]) -> str:
    return "×".join(map(str, sizes))
