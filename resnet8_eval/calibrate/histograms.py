"""What a recipe quantizes, for people to look at: weights and activations, and where they are cut.

Counts and limits of layers and channels, never a value of a single image.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import onnx_graph
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.probe import Tensor
from resnet8_eval.calibrate.ranges import BINS, Observed
from resnet8_eval.network import Addition, Convolution, Dense, Layer, output_first
from resnet8_eval.store import Record

SHOWN: Final = 64
"""Bins of a histogram as it is recorded; :data:`BINS` is a multiple of it."""


def layers(parameters: Parameters, observed: Observed, limit: int) -> list[Record]:
    """Every layer in order, with the histograms of its weights and of what it gives.

    Parameters
    ----------
    observed
        The activations of ``parameters.exact`` on the calibration images.
    limit
        Largest magnitude of a rounded weight.

    Returns
    -------
    list of dict
        As :class:`resnet8_eval.record.NetworkLayer`, histograms in :data:`SHOWN` bins.
    """
    network = parameters.exact
    shapes, makers = onnx_graph.shapes(network.model), {network.input: "images"}
    told = []
    for layer in network.layers:
        reads = [makers[network.moved.get(name, name)] for name in layer.inputs]
        makers[layer.output] = layer.name
        told.append(
            {
                "name": layer.name,
                "kind": type(layer).__name__.lower(),
                "keras": _keras(layer),
                "reads": reads,
                "shape": _channels_last(shapes[layer.output]),
                "weights": _weights(layer, parameters, limit)
                if isinstance(layer, Convolution | Dense)
                else None,
                "output": _output(layer.output, parameters, observed)
                if layer.output in observed.histograms
                else None,
            }
        )
    return told


def _keras(layer: Layer) -> list[str]:
    """Its own layer, then those whose names its output bears: a normalisation, a ReLU."""
    outputs = [layer.before_relu] if isinstance(layer, Convolution | Addition) else []
    parts = [name.partition("/")[0] for name in (*filter(None, outputs), layer.output)]
    return list(dict.fromkeys([layer.name, *(part for part in parts if ":" not in part)]))


def _channels_last(shape: tuple[int, ...]) -> list[int]:
    """A shape without the batch; a map of one value is a row of channels."""
    _, channels, *size = shape
    return [channels] if set(size) <= {1} else [*size, channels]


def _weights(layer: Convolution | Dense, parameters: Parameters, limit: int) -> Record:
    rows = output_first(layer, parameters.exact.weights()[layer.weight])
    rows = rows.reshape(len(rows), -1)
    scales = parameters.scales.get(layer.weight)
    low, high = float(rows.min()), float(rows.max())
    lowest, highest = rows.min(axis=1), rows.max(axis=1)
    starts, ends = lowest, highest
    if scales is not None:  # one for each channel, or for all of them
        ends = np.broadcast_to(np.asarray(scales, np.float64) * limit, highest.shape)
        starts = -ends
    # A weight on the edge of its range is not outside of it for a last bit.
    room = 1e-6 * np.abs(rows)
    outside = (rows - room > ends[:, None]) | (rows + room < starts[:, None])
    counts, _ = np.histogram(rows, SHOWN, (low, high))
    return _told(low, high, counts, outside.mean(), None, (lowest, highest, starts, ends))


def _output(name: str, parameters: Parameters, observed: Observed) -> Record:
    (low, high), counts = observed.extremes[name], observed.histograms[name]
    start, end = parameters.activations[name]
    middles = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    outside = counts[(middles < start) | (middles > end)].sum() / max(counts.sum(), 1)
    lowest, highest = observed.channels[name]
    few = counts.reshape(SHOWN, -1).sum(axis=1)
    limits = lowest, highest, np.full_like(lowest, start), np.full_like(highest, end)
    return _told(low, high, few, outside, [_short(start), _short(end)], limits)


def _told(
    low: float,
    high: float,
    counts: NDArray[np.integer],
    outside: float,
    clip: list[float] | None,
    limits: tuple[Tensor, ...],
) -> Record:
    return {
        "low": _short(low),
        "high": _short(high),
        "counts": counts.tolist(),
        "clipped_percent": _short(100 * float(outside)),
        "clip": clip,
        "channels": [[_short(value) for value in channel] for channel in zip(*limits, strict=True)],
    }


def _short(value: float) -> float:
    """As many digits as a drawing shows."""
    return float(f"{value:.5g}")
