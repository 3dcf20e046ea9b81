"""Make the channels that share a scale alike, without changing the function.

Cross-layer equalization (Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and
Bias Correction*, section 4.1), extended to residual streams and driven by activations: dividing a
channel by d > 0 in every layer that writes it and multiplying it by d in every layer that reads it
leaves the network's function as it was, because ReLU, addition and averaging commute with it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np

from resnet8_eval.calibrate.probe import Probe, Tensor
from resnet8_eval.network import Addition, Dense, Network, Pooling
from resnet8_eval.preprocess import Images

FLOOR: Final = 0.02
"""A channel is enlarged at most fifty times; dead channels would grow without end."""


def equalize(network: Network, images: Images) -> Network:
    """The same function with other weights: a stream's channels span one range on the images."""
    streams = _streams(network)
    ranges = _channel_ranges(network, images)
    weights = network.weights()
    for stream in streams:
        alive = [ranges[name] for name in stream if name in ranges and ranges[name].any()]
        if not alive:  # a dead stream has nothing to make alike
            continue
        factor = np.max([values / values.max() for values in alive], axis=0)
        factor = np.maximum(factor / factor.max(), FLOOR)
        for layer in network.weighted:
            weight, bias = layer.weight, layer.bias
            if layer.output in stream:
                weights[weight] = _stored(weights[weight] / factor[:, None, None, None])
                weights[bias] = _stored(weights[bias] / factor)
            if layer.inputs[0] in stream:
                along = factor[:, None] if isinstance(layer, Dense) else factor[:, None, None]
                weights[weight] = _stored(weights[weight] * along)
    return network.with_weights(weights)


def _stored(values: Tensor) -> Tensor:
    """Values as float32 holds them."""
    return values.astype(np.float32).astype(np.float64)


def _streams(network: Network) -> list[set[str]]:
    """Sets of tensors that share their channels: all that additions and the pool connect."""
    streams: list[set[str]] = []
    for layer in network.maps:
        tied = {layer.output}
        if isinstance(layer, Addition | Pooling):
            tied.update(layer.inputs)
        if isinstance(layer, Pooling):
            tied.add(layer.flat)
        joined = [stream for stream in streams if stream & tied]
        streams = [stream for stream in streams if not stream & tied]
        streams.append(tied.union(*joined))
    return streams


def _channel_ranges(network: Network, images: Images) -> dict[str, Tensor]:
    """For each map, the mean over batches of each channel's largest magnitude."""
    names = sorted(layer.output for layer in network.maps)
    total: dict[str, Any] = defaultdict(float)
    for values in Probe(network, names).run(images):
        for name, value in values.items():
            total[name] = total[name] + np.abs(value).max(axis=(0, 2, 3))
    return total
