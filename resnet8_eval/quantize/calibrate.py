"""From calibration images to quantization parameters: equalize, find the ranges, round."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval.artifacts import Record
from resnet8_eval.preprocess import batches
from resnet8_eval.quantize.equalization import equalize
from resnet8_eval.quantize.parameters import MODEL, Parameters
from resnet8_eval.quantize.ranges import PERCENTILE, activation_ranges
from resnet8_eval.quantize.rounding import round_weights


def calibrate(folded: Path, images: NDArray[np.uint8], folder: Path, threads: int) -> Record:
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

    Returns
    -------
    dict
        ``method``, and ``fed_sha256``, the hash of the bytes fed when the ranges were found.
    """
    model = equalize(_with_global_pool(onnx.load(folded)), images, threads)
    activations, fed_sha256 = activation_ranges(model, images, threads)
    rounded = round_weights(model, images, threads)
    onnx.save(rounded.model, folder / MODEL)
    Parameters(folder / MODEL, activations, rounded.scales, rounded.integers).save(folder)
    return {
        "method": {
            "equalization": "activation ranges, residual groups",
            "activations": f"per tensor, percentile {PERCENTILE}",
            "weights": "per channel, symmetric, GPTQ rounding, bias corrected",
            "input": "exact: scale 1",
            "score": "float32",
        },
        "fed_sha256": fed_sha256,
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
    """Write the average over the whole 8×8 map as GlobalAveragePool.

    It is the same function. But quantizers force an AveragePool's output onto its input's scale,
    and the mean of a mostly zero map would then use a fifth of the range.
    """
    for node in model.graph.node:
        if node.op_type == "AveragePool":
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    return model
