"""Make the channels that share a scale alike, without changing the function.

Cross-layer equalization (Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and
Bias Correction*, section 4.1), extended to residual streams and driven by activations: dividing a
channel by d > 0 in every layer that writes it and multiplying it by d in every layer that reads it
leaves the network's function as it was, because ReLU, addition and averaging commute with it.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval.quantize.graph import Probe, Weights

_TIED = ("Relu", "Add", "AveragePool", "GlobalAveragePool", "Reshape")
"""Operators whose inputs and output share their channels."""
FLOOR = 0.02
"""A channel is enlarged at most fifty times; dead channels would be blown up without end."""


def equalize(model: onnx.ModelProto, images: NDArray[np.uint8], threads: int) -> onnx.ModelProto:
    """Scale channels so that each spans the same range on the calibration images.

    Parameters
    ----------
    model
        Folded float32 network.
    images
        Calibration images, uint8 (N, 32, 32, 3).
    threads
        Threads for ONNX Runtime.

    Returns
    -------
    onnx.ModelProto
        The same function with other weights.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = Weights(result)
    groups = _groups(result, weights)
    ranges = _channel_ranges(result, groups, images, threads)
    for group in groups:
        alive = [ranges[name] for name in group if name in ranges and ranges[name].any()]
        if not alive:  # a dead stream has nothing to make alike
            continue
        relative = [values / values.max() for values in alive]
        factor = np.max(relative, axis=0)
        factor = np.maximum(factor / factor.max(), FLOOR)
        for node in result.graph.node:
            if node.op_type == "Conv" and node.output[0] in group:
                weights[node.input[1]] = weights[node.input[1]] / factor[:, None, None, None]
                weights[node.input[2]] = weights[node.input[2]] / factor
            if node.op_type == "Conv" and node.input[0] in group:
                weights[node.input[1]] = weights[node.input[1]] * factor[:, None, None]
            if node.op_type == "Gemm" and node.input[0] in group:
                weights[node.input[1]] = weights[node.input[1]] * factor[:, None]
    return result


def _groups(model: onnx.ModelProto, weights: Weights) -> list[set[str]]:
    """Sets of tensors that share their channels."""
    groups: list[set[str]] = []
    for node in model.graph.node:
        if node.op_type in _TIED:
            tied = {*node.output, *(name for name in node.input if name not in weights)}
            joined = [group for group in groups if group & tied]
            groups = [group for group in groups if not group & tied]
            groups.append(tied.union(*joined))
    return groups


def _channel_ranges(
    model: onnx.ModelProto, groups: list[set[str]], images: NDArray[np.uint8], threads: int
) -> dict[str, NDArray[np.float64]]:
    """For each tied tensor, the mean over batches of each channel's largest magnitude."""
    before_relu = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    flattened = {node.output[0] for node in model.graph.node if node.op_type == "Reshape"}
    names = sorted(set().union(*groups) - before_relu - flattened)
    total = {name: np.float64(0) for name in names}
    for values in Probe(model, names, threads).run(images):
        for name, value in values.items():
            total[name] = total[name] + np.abs(value).max(axis=(0, 2, 3))
    return {name: np.asarray(value) for name, value in total.items()}
