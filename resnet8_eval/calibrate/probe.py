"""Looking into a network while calibration images run through it.

It is computed in float64. Another processor sums in another order, and in float32 the last bits of
every parameter would then depend on it; float64 leaves differences of some 1e-15, too small to move
a parameter. So the same inputs give the same model on every processor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.convolution import by_line, convolve
from resnet8_eval.errors import ModelError
from resnet8_eval.network import Addition, Convolution, Dense, Layer, Network, Pooling
from resnet8_eval.preprocess import Images, batches

Tensor = NDArray[np.float64]
LARGEST: Final = 1e8
"""A value of a trained network is some thousands at most. At 1e13, TorchScript could not read back
the scales that it had written."""
_AT_ONCE: Final = 5
"""Images whose windows stay in the processor's cache."""


class Probe:
    """A float32 network that shows the tensors of these names from inside."""

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        self._network = network
        self._names = list(names)
        self._weights = network.weights()
        self._kernels = {
            layer.weight: by_line(self._weights[layer.weight])
            for layer in network.weighted
            if isinstance(layer, Convolution)
        }
        self._fed = hashlib.sha256()

    def run(self, images: Images) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of each batch of `images` by name, in float64; maps are NCHW.

        ModelError if a value is not finite, or too large for 8 bits to be of any use.
        """
        for batch in batches(images):
            self._fed.update(batch.data)
            parts = [
                self._tensors(batch[start : start + _AT_ONCE])
                for start in range(0, len(batch), _AT_ONCE)
            ]
            values = {name: np.concatenate([part[name] for part in parts]) for name in self._names}
            for name, value in values.items():
                largest = max(float(value.max()), -float(value.min()))
                if not largest < LARGEST:  # NaN is not, either
                    raise ModelError(
                        "The network overflows on the calibration images.",
                        expected=f"finite values below {LARGEST:,.0f} in every layer",
                        given=f"{largest:.3g} in {name}",
                        next_step="check the size of the model's weights",
                    )
            yield values

    def _tensors(self, images: NDArray[np.float32]) -> dict[str, Tensor]:
        network = self._network
        pixels = images.astype(np.float64)
        values: dict[str, Tensor] = {network.input: pixels, network.planes: pixels}

        def compute(layer: Layer, inputs: list[Tensor]) -> Tensor:
            x = inputs[0]
            match layer:
                case Convolution():
                    y = convolve(x, self._kernels[layer.weight], layer)
                    y += self._weights[layer.bias]
                case Addition():
                    y = x + inputs[1]
                case Pooling():
                    return np.asarray(x.mean(axis=(1, 2), keepdims=True))
                case Dense():
                    return np.asarray(x @ self._weights[layer.weight] + self._weights[layer.bias])
            if layer.before_relu is None:
                return y
            values[layer.before_relu] = y
            return np.maximum(y, 0)

        network.walk(values, compute)
        if network.softmax:
            y = values[network.dense.output]
            powers = np.exp(y - y.max(axis=1, keepdims=True))
            values[network.output] = powers / powers.sum(axis=1, keepdims=True)
        return {
            name: np.moveaxis(value, -1, 1) if value.ndim == 4 and name != network.input else value
            for name, value in values.items()
            if name in self._names
        }

    @property
    def fed_sha256(self) -> str:
        """SHA-256 of all the bytes that the network has been fed."""
        return self._fed.hexdigest()
