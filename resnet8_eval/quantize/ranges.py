"""Which range of real values the 8 bits of each activation span."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval.quantize.graph import Probe
from resnet8_eval.quantize.parameters import grid
from resnet8_eval.quantize.recipes import Method

BINS = 2048
SHRINKINGS = np.linspace(0.05, 1.0, 96)
"""Ranges that the least squared error is looked for among, relative to the widest."""
_SAME_GRID = ("Transpose", "Reshape")
DEFAULT_METHOD: Final = Method()
PERCENTILE: Final = DEFAULT_METHOD.percentile
"""Share of an activation's calibration values that its range holds, in percent. Chosen on training
images: cutting the few largest values buys every other one a finer step."""
Ranges = dict[str, tuple[float, float]]


class Observed(NamedTuple):
    """What the activations were on the calibration images; every method cuts its ranges from it.

    Attributes
    ----------
    extremes
        Tensor name to its smallest (at most 0) and largest (at least 0) value.
    histograms
        Tensor name to counts of values in :data:`BINS` bins between its extremes.
    fed_sha256
        Hash of all the bytes that the network was fed.
    """

    extremes: Ranges
    histograms: dict[str, NDArray[np.int64]]
    fed_sha256: str


def observe(model: onnx.ModelProto, images: NDArray[np.uint8], threads: int) -> Observed:
    """Collect a histogram of every activation.

    Parameters
    ----------
    model
        Folded float32 network that ends its feature map in a GlobalAveragePool.
    images
        Calibration images, uint8 (N, 32, 32, 3).
    threads
        Threads for ONNX Runtime.
    """
    measured = [
        node.output[0]
        for node in model.graph.node
        if node.op_type in ("Conv", "Add", "Relu", "GlobalAveragePool")
        and node.output[0] not in _into_relu(model)
    ]
    probe = Probe(model, measured, threads)
    extremes = _extremes(probe, measured, images)
    fed_sha256 = probe.fed_sha256
    return Observed(extremes, _histograms(probe, extremes, images), fed_sha256)


def activation_ranges(
    model: onnx.ModelProto,
    observed: Observed,
    method: Method = DEFAULT_METHOD,
    levels: int = 255,
) -> Ranges:
    """Cut the range of every activation as `method` says.

    Parameters
    ----------
    model
        The network that was observed.
    observed
        From :func:`observe`.
    method
        Its ``ranges`` and ``percentile`` count here.
    levels
        Largest integer of the grid; it counts where the error of rounding is weighed.

    Returns
    -------
    dict
        Tensor name to (lowest, highest). The input spans exactly 0–255, so that its integers are
        the pixels themselves. A tensor that goes straight into a ReLU takes the ReLU's range.
    """
    nodes = list(model.graph.node)
    ranges = {
        name: _cut(*extremes, observed.histograms[name], method, levels)
        for name, extremes in observed.extremes.items()
    }
    ranges |= {before: ranges[after] for before, after in _into_relu(model).items()}
    ranges[model.graph.input[0].name] = (0.0, 255.0)
    for node in nodes:
        if node.op_type == "GlobalAveragePool":
            ranges[node.output[0]] = _pooled(ranges[node.input[0]], ranges[node.output[0]])
        if node.op_type in _SAME_GRID:
            ranges[node.output[0]] = ranges[node.input[0]]
    return ranges


def _into_relu(model: onnx.ModelProto) -> dict[str, str]:
    """Tensors that go straight into a ReLU, and what comes out of it."""
    return {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Relu"}


def _extremes(
    probe: Probe, names: list[str], images: NDArray[np.uint8]
) -> dict[str, tuple[float, float]]:
    """Smallest (at most 0) and largest (at least 0) value of each tensor."""
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for values in probe.run(images):
        for name, value in values.items():
            low[name] = min(low[name], float(value.min()))
            high[name] = max(high[name], float(value.max()))
    return {name: (low[name], high[name]) for name in names}


def _histograms(
    probe: Probe, extremes: dict[str, tuple[float, float]], images: NDArray[np.uint8]
) -> dict[str, NDArray[np.int64]]:
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    for values in probe.run(images):
        for name, value in values.items():
            low, high = extremes[name]
            step = np.float32(BINS / max(high - low, 1e-12))
            bins = ((value.ravel() - np.float32(low)) * step).astype(np.int32)
            counts[name] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    return counts


def _cut(
    low: float,
    high: float,
    counts: NDArray[np.int64],
    method: Method = DEFAULT_METHOD,
    levels: int = 255,
) -> tuple[float, float]:
    """The range that the method keeps of the values between `low` and `high`."""
    if method.ranges == "minmax":
        return low, high
    if method.ranges == "mse":
        return _least_squares(low, high, counts, levels)
    return _percentile(low, high, counts, method.percentile)


def _least_squares(
    low: float, high: float, counts: NDArray[np.int64], levels: int
) -> tuple[float, float]:
    """The range with the least mean squared error of clipping and rounding together."""
    edges = np.linspace(low, high, BINS + 1)
    values = (edges[:-1] + edges[1:]) / 2
    best, least = (low, high), math.inf
    for share in SHRINKINGS:
        scale, zero_point = grid(low * share, high * share, levels)
        steps = np.clip(np.round(values / scale) + zero_point, 0, levels) - zero_point
        error = float(counts @ (steps * scale - values) ** 2)
        if error < least:
            best, least = (low * float(share), high * float(share)), error
    return best


def _percentile(
    low: float, high: float, counts: NDArray[np.int64], percent: float
) -> tuple[float, float]:
    """The range that keeps `percent` of the values; of two tails, each loses half."""
    share = np.cumsum(counts) / max(counts.sum(), 1)
    edges = np.linspace(low, high, BINS + 1)
    tail = (1 - percent / 100) / (2 if low < 0 else 1)
    upper = edges[min(int(np.searchsorted(share, 1 - tail)), BINS - 1) + 1]
    lower = edges[int(np.searchsorted(share, tail))] if low < 0 else 0.0
    return min(float(lower), 0.0), max(float(upper), 0.0)


def _pooled(before: tuple[float, float], pooled: tuple[float, float]) -> tuple[float, float]:
    """Widen a pooled range to n/64 of the map's, for a whole n.

    PyTorch's integer pooling divides a sum of 64 integers by any whole number and cannot rescale;
    so both frameworks use a grid that it can reach.
    """
    divisor = max(1, math.ceil(64 * pooled[1] / before[1])) if before[1] else 64
    return 0.0, before[1] * divisor / 64
