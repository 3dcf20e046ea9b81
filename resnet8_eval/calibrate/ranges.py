"""Which range of real values the 8 bits of each activation span."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.calibrate.parameters import Range, Ranges, grid
from resnet8_eval.calibrate.probe import Probe, Tensor
from resnet8_eval.configurations import TUNED, Recipe
from resnet8_eval.network import Network, Pooling
from resnet8_eval.preprocess import Images, fed

BINS: Final = 2048
_LEAST: Final = 1e-20
"""A map that spans less counts as zeros: float32 does not hold the products of such steps. Weight
decay makes as little of a layer that is not needed."""
SHRINKINGS: Final = np.linspace(0.05, 1.0, 96)
"""Ranges that the least squared error is looked for among, relative to the widest."""


class Observed(NamedTuple):
    """What the activations were on the calibration images; every recipe cuts its ranges from it.

    `extremes` are each tensor's smallest (at most 0) and largest (at least 0) value; of the
    network's input, those that its preprocessing can give. `histograms` are counts of a map's
    values in :data:`BINS` bins between its extremes, `channels` the smallest and largest value of
    each channel, (2, channels). `fed_sha256` is the hash of all the bytes that the network was fed.
    """

    extremes: Ranges
    histograms: dict[str, NDArray[np.int64]]
    channels: dict[str, Tensor]
    fed_sha256: str


def observe(network: Network, images: Images) -> Observed:
    """Collect a histogram of every map on the calibration images."""
    measured = [layer.output for layer in network.maps]
    probe = Probe(network, measured)
    channels = _of_channels(probe, images)
    extremes = _of_tensors(channels)
    fed_sha256 = probe.fed_sha256
    histograms = _histograms(probe, extremes, images)
    extremes[network.input] = fed(images).preprocessing.span
    return Observed(extremes, histograms, channels, fed_sha256)


def activation_ranges(
    network: Network, observed: Observed, recipe: Recipe = TUNED, levels: int = 255
) -> Ranges:
    """Cut the range of every map as `recipe` says with its ``ranges`` and ``percentile``.

    Parameters
    ----------
    observed
        From :func:`observe`, of this network.
    levels
        Largest integer of the grid; it counts where the error of rounding is weighed.

    Returns
    -------
    dict
        Tensor name to (lowest, highest). The input spans exactly what it can be. Raw, that is
        0–255, so that its integers are the pixels themselves.
    """
    ranges = {
        name: _cut(*observed.extremes[name], counts, recipe, levels)
        for name, counts in observed.histograms.items()
    }
    ranges[network.input] = observed.extremes[network.input]
    for layer in network.maps:
        if isinstance(layer, Pooling):
            before = ranges[layer.inputs[0]] = _on_grid(*ranges[layer.inputs[0]], levels)
            ranges[layer.output] = _pooled(before, ranges[layer.output], layer.area)
    return ranges


def smallest_and_largest(probe: Probe, images: Images) -> Ranges:
    """Smallest (at most 0) and largest (at least 0) value of each tensor, as float32 holds them."""
    return _of_tensors(_of_channels(probe, images))


def _of_channels(probe: Probe, images: Images) -> dict[str, Tensor]:
    """Smallest and largest value of each channel, the second axis, as (2, channels)."""
    found: dict[str, Tensor] = {}
    for values in probe.run(images):
        for name, value in values.items():
            axes = tuple(axis for axis in range(value.ndim) if axis != 1)
            low, high = value.min(axis=axes), value.max(axis=axes)
            if name in found:
                low, high = np.minimum(low, found[name][0]), np.maximum(high, found[name][1])
            found[name] = np.stack([np.atleast_1d(low), np.atleast_1d(high)])
    return found


def _of_tensors(channels: dict[str, Tensor]) -> Ranges:
    return {
        name: (float(np.float32(min(low.min(), 0.0))), float(np.float32(max(high.max(), 0.0))))
        for name, (low, high) in channels.items()
    }


def _histograms(probe: Probe, extremes: Ranges, images: Images) -> dict[str, NDArray[np.int64]]:
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    for values in probe.run(images):
        for name, value in values.items():
            low, high = extremes[name]
            step = BINS / max(high - low, _LEAST)
            bins = ((value.ravel() - low) * step).astype(np.int32)
            counts[name] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    return counts


def _cut(low: float, high: float, counts: NDArray[np.int64], recipe: Recipe, levels: int) -> Range:
    """The range that the recipe keeps of the values between `low` and `high`."""
    if high - low < _LEAST:  # quantizers do not agree on the grid of no range at all
        return 0.0, 1.0
    if recipe.ranges == "minmax":
        return low, high
    if recipe.ranges == "mse":
        return _least_squares(low, high, counts, levels)
    return _percentile(low, high, counts, recipe.percentile)


def _least_squares(low: float, high: float, counts: NDArray[np.int64], levels: int) -> Range:
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


def _percentile(low: float, high: float, counts: NDArray[np.int64], percent: float) -> Range:
    """The range that keeps `percent` of the values; of two tails, each loses half."""
    share = np.cumsum(counts) / max(counts.sum(), 1)
    edges = np.linspace(low, high, BINS + 1)
    tail = (1 - percent / 100) / (2 if low < 0 else 1)
    upper = edges[min(int(np.searchsorted(share, 1 - tail)), BINS - 1) + 1]
    lower = edges[int(np.searchsorted(share, tail))] if low < 0 else 0.0
    return min(float(lower), 0.0), max(float(upper), 0.0)


def _on_grid(low: float, high: float, levels: int) -> Range:
    """A range that ends on integers of its own grid, if it goes below zero.

    Else its zero point may lie halfway between two, and that of the pooled map, which has to be the
    same, be rounded to the other.
    """
    if low == 0:
        return low, high
    scale, zero_point = grid(low, high, levels)
    return 0.0 - zero_point * scale, (levels - zero_point) * scale


def _pooled(before: Range, pooled: Range, area: int) -> Range:
    """Widen a pooled range to n/area of the map's, n whole, which PyTorch's kernel can reach.

    No mean of values that are held to a range lies beyond it. Where zero is no end of the range, n
    is odd, so that no mean lies halfway between two integers: that kernel adds the zero point
    before it rounds in some channels, and afterwards in others.
    """
    share = [min(mean / whole, 1.0) for mean, whole in zip(pooled, before, strict=True) if whole]
    divisor = max(1, math.ceil(area * max(share))) if share else area
    if before[0] < 0:
        divisor |= 1
    return before[0] * divisor / area, before[1] * divisor / area
