"""The quantized network in exact integer arithmetic, in NumPy alone.

What kernels are held against: it is computed from what a stored model holds, shares no code with
the writers, and runs in no framework. Weights and activations are integers, less their zero points,
and their products are summed exactly. What happens to a sum that falls between two integers of the
output's grid depends on the order of a few float32 steps, so these are those of the kernels:
ONNX Runtime's, and PyTorch's two (:func:`rounding`). All round halves to even. ONNX Runtime's
scores are met to 1e-6. oneDNN has several kernels with other orders, so where a sum lies within
float32's precision of a half, about once in a million, its integer may be the other neighbour; the
classes have not been seen to differ.

A float32 product (BLAS) is exact here. Each product of two integers is an integer, and so is each
partial sum, in whatever order and with or without fused multiply-add. None is larger than the sum
of the magnitudes of a channel's weights times that of the largest input, and float32 holds every
integer up to 2**24. 8-bit inputs (255) and weights within ±63 over 576 inputs give at most
9,253,440. Where a layer's own bound is higher, its sums are taken in float64, which holds every
integer up to 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import environment
from resnet8_eval.backends import StoredTensor
from resnet8_eval.network import Addition, Convolution, Dense, Network, Pooling

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Rounding = Literal["onnxruntime", "onednn", "fbgemm"]

BATCH: Final = 20
"""Images at a time, so that a layer's columns stay in the processor's cache."""
_EXACT_IN_FLOAT32: Final = 2**24
_ONE: Final = np.float32(1)


@dataclass(frozen=True)
class Grid:
    """An affine grid of 8-bit integers.

    Attributes
    ----------
    scale
        Real distance of two neighbours.
    zero_point
        The integer that stands for zero, counted from the lowest of its type, so that an int8 grid
        and the uint8 grid that it is shifted to are one.
    lowest
        The lowest integer of its type: -128 or 0.
    """

    scale: np.float32
    zero_point: int
    lowest: int

    def clipped(self, values: Floats, *, relu: bool = False) -> Floats:
        """Integers less the zero point, held to those that the type (and ReLU) has. In place."""
        low = 0 if relu else -self.zero_point
        return np.clip(values, low, 255 - self.zero_point, out=values)

    def quantized(self, values: Floats, *, relu: bool = False) -> Floats:
        """Real values to integers less the zero point."""
        return self.clipped(np.rint(values / self.scale), relu=relu)

    def stored(self, values: Floats) -> NDArray[np.integer[Any]]:
        """Integers less the zero point as a file has them, int8 or uint8."""
        dtype = np.int8 if self.lowest else np.uint8
        return (values + (self.zero_point + self.lowest)).astype(dtype)


@dataclass(frozen=True)
class Weights:
    """What a stored model holds for one layer.

    Attributes
    ----------
    integers
        Less their zero point, output channel first, as float32 or float64 (O, inputs): a type in
        which every sum is exact. Of a layer in float, its float32 weights.
    scales
        One for each output channel, float32; None for a layer in float.
    bias
        int32 integers of the scale input x weight, or float32 numbers.
    """

    integers: NDArray[Any]
    scales: Floats | None
    bias: NDArray[Any]


class ExactNetwork:
    """A quantized network, to be computed in integers.

    Parameters
    ----------
    network
        The layers, and the weights of those that are computed in float.
    tensors
        What the model stores, as its backend reads it back.
    rounding
        Whose float32 steps bring a sum to its grid.

    Raises
    ------
    KeyError
        If a tensor that the integers need is not stored.
    """

    def __init__(
        self, network: Network, tensors: Sequence[StoredTensor], rounding: Rounding
    ) -> None:
        self.network = network
        self.rounding = rounding
        self.grids = {
            entry.name: Grid(
                np.float32(entry.scales[0]),
                entry.zero_points[0] + (128 if entry.dtype == "int8" else 0),
                -128 if entry.dtype == "int8" else 0,
            )
            for entry in tensors
            if entry.kind == "activation"
        }
        weights = {entry.name: entry for entry in tensors if entry.kind == "weight"}
        biases = {entry.name: entry for entry in tensors if entry.kind == "bias"}
        exact = network.constants()
        self._kernels = {
            layer.weight: exact[layer.weight].shape[2:]
            for layer in network.weighted
            if isinstance(layer, Convolution)
        }
        self._sums_of_pairs: dict[str, Floats] = {}
        self.weights: dict[str, Weights] = {}
        for layer in network.weighted:
            stored = weights.get(layer.weight)
            if stored is None:
                values = np.asarray(exact[layer.weight], np.float32)
                values = values.T if isinstance(layer, Dense) else values
                found = Weights(values.reshape(len(values), -1), None, exact[layer.bias])
            else:
                found = _weights(stored, biases[layer.weight])
            self.weights[layer.name] = found

    def scores(self, images: NDArray[np.uint8]) -> Floats:
        """What the network gives for images.

        Parameters
        ----------
        images
            uint8 (N, 32, 32, 3).

        Returns
        -------
        ndarray
            float32 (N, 10), as the network's output: probabilities where it ends in a softmax.
        """
        dense = self.network.dense.output
        scores = np.concatenate([batch[dense].T for batch in self.tensors(images)])
        if not self.network.softmax:
            return scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)

    def tensors(self, images: NDArray[np.uint8], batch: int = BATCH) -> Iterator[Arrays]:
        """Every tensor of a few images at a time.

        Yields
        ------
        dict
            Tensor to its integers less the zero point, float32 (channels, n, height, width); the
            dense layer's output holds real scores (10, n).
        """
        network = self.network
        for start in range(0, len(images), batch):
            pixels = np.ascontiguousarray(images[start : start + batch].transpose(3, 0, 1, 2))
            grid = self.grids[network.input]
            values: Arrays = {network.planes: grid.quantized(pixels.astype(np.float32))}
            for layer in network.layers:
                x = values[layer.inputs[0]]
                match layer:
                    case Convolution():
                        y = self._convolution(x, layer)
                    case Addition():
                        y = self._addition(x, values[layer.inputs[1]], layer)
                    case Pooling():
                        y = self._pooling(x, layer)
                        values[layer.flat] = y
                    case Dense():
                        y = self._product(x, layer)
                values[layer.output] = y
            yield values

    def grid(self, name: str) -> Grid:
        """The grid of a tensor; what is only moved has that of what it was moved from."""
        moved = {self.network.planes: self.network.input} | {
            layer.flat: layer.output for layer in self.network.layers if isinstance(layer, Pooling)
        }
        return self.grids[moved.get(name, name)]

    def multipliers(self, layer: Convolution | Dense) -> Floats:
        """What brings an integer sum of a quantized layer to its output, for each channel."""
        scales = self.weights[layer.name].scales
        if scales is None:
            raise ValueError(f"{layer.name} is computed in float")
        products = self.grid(layer.inputs[0]).scale * scales
        return products if isinstance(layer, Dense) else products / self.grid(layer.output).scale

    def _convolution(self, x: Floats, layer: Convolution) -> Floats:
        weights, out = self.weights[layer.name], self.grid(layer.output)
        columns, shape = _columns(x, self._kernels[layer.weight], layer)
        relu = layer.before_relu is not None
        if weights.scales is None:
            real = weights.integers @ (columns * self.grid(layer.inputs[0]).scale)
            return out.quantized(real + weights.bias[:, None], relu=relu).reshape(-1, *shape)
        sums = self._sums(weights, columns)
        if self.rounding == "fbgemm":
            # The bias in steps of the sum, one multiplication, the zero point as an integer.
            sums += (weights.bias / (self.grid(layer.inputs[0]).scale * weights.scales))[:, None]
            sums *= self.multipliers(layer)[:, None]
            np.rint(sums, out=sums)
        elif self.rounding == "onednn":
            # To real numbers, the bias, and to the grid with its zero point as a float.
            sums *= self.grid(layer.inputs[0]).scale
            sums *= weights.scales[:, None]
            sums += weights.bias[:, None]
            sums *= _ONE / out.scale
            sums += np.float32(out.zero_point)
            np.rint(sums, out=sums)
            sums -= np.float32(out.zero_point)
        else:
            # One multiplication, the zero point as an integer.
            sums *= self.multipliers(layer)[:, None]
            np.rint(sums, out=sums)
        return out.clipped(sums, relu=relu).reshape(-1, *shape)

    def _sums(self, weights: Weights, columns: Floats) -> Floats:
        """Integer sums, with an integer bias, rounded once to float32 as the kernels do."""
        sums = weights.integers @ columns.astype(weights.integers.dtype, copy=False)
        if weights.bias.dtype != np.float32:
            sums += weights.bias[:, None].astype(sums.dtype)
        return sums.astype(np.float32, copy=False)

    def _addition(self, a: Floats, b: Floats, layer: Addition) -> Floats:
        """The sum of two maps, looked up: there are 65,536 pairs of integers."""
        one, two = (self.grid(name) for name in layer.inputs)
        table = self._sums_of_pairs.get(layer.name)
        if table is None:
            table = self._sums_of_pairs[layer.name] = self._pairs(layer)
        pair = (a * np.float32(256) + b).astype(np.intp)
        pair += 256 * one.zero_point + two.zero_point
        return np.take(table, pair)

    def _pairs(self, layer: Addition) -> Floats:
        """What each pair of integers adds up to, float32 (65536,).

        The kernels use fused multiply-add: a product of float64 is exact here, and one rounding to
        float32 follows.
        """
        one, two, out = (self.grid(name) for name in (*layer.inputs, layer.output))
        a, b = (values.ravel() for values in np.indices((256, 256), np.float32))
        if self.rounding != "onnxruntime":
            total = _fused(a, one.scale, -(one.scale * np.float32(one.zero_point)))
            total += _fused(b, two.scale, -(two.scale * np.float32(two.zero_point)))
            total = np.rint(total * (_ONE / out.scale))
        else:
            first, second = one.scale / out.scale, two.scale / out.scale
            zeros = _fused(np.float32(one.zero_point), first, second * np.float32(two.zero_point))
            fixed = np.float32(out.zero_point) - zeros
            total = np.rint(_fused(a, first, _fused(b, second, fixed))) - out.zero_point
        return out.clipped(total, relu=layer.before_relu is not None)

    def _pooling(self, x: Floats, layer: Pooling) -> Floats:
        before, out = self.grid(layer.inputs[0]), self.grid(layer.output)
        sums = x.sum(axis=(2, 3))
        multiplier = before.scale / (out.scale * np.float32(layer.area))
        return out.clipped(np.rint(sums * multiplier))

    def _product(self, x: Floats, layer: Dense) -> Floats:
        weights = self.weights[layer.name]
        if weights.scales is None:
            real = weights.integers @ (x * self.grid(layer.inputs[0]).scale)
            return np.asarray(real + weights.bias[:, None], np.float32)
        product = self._sums(weights, x) * self.multipliers(layer)[:, None]
        if weights.bias.dtype == np.float32:
            product += weights.bias[:, None]
        return product


def rounding(framework: str) -> Rounding:
    """Whose steps a framework's kernels take on this processor.

    PyTorch's engine ``x86`` convolves with oneDNN where it finds ``avx512_vnni``, else with FBGEMM.
    """
    if framework == "onnxruntime":
        return "onnxruntime"
    return "onednn" if "avx512_vnni" in environment.cpu()["flags"] else "fbgemm"


def _fused(a: Any, b: np.float32, c: Any) -> Any:
    """The product a x b plus c, rounded once."""
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def _weights(stored: StoredTensor, bias: StoredTensor) -> Weights:
    values = np.asarray(stored.values)
    flat = values.reshape(len(values), -1)
    numbers = np.asarray(bias.values)
    bound = 255 * int(np.abs(flat).sum(axis=1).max())
    if bias.scales:
        numbers = np.rint(numbers / np.asarray(bias.scales)).astype(np.int64)
        bound += int(np.abs(numbers).max())
    else:
        numbers = numbers.astype(np.float32)
    scales = np.asarray(stored.scales, np.float32)
    return Weights(
        flat.astype(np.float32 if bound <= _EXACT_IN_FLOAT32 else np.float64),
        np.broadcast_to(scales, len(values)),
        numbers,
    )


def _columns(
    x: Floats, kernel: tuple[int, int], layer: Convolution
) -> tuple[Floats, tuple[int, int, int]]:
    """The inputs of every output as one column each: (inputs, n x height x width)."""
    channels, count, height, width = x.shape
    top, left, bottom, right = layer.pads
    down, across = layer.strides
    high = (height + top + bottom - kernel[0]) // down + 1
    wide = (width + left + right - kernel[1]) // across + 1
    padded = np.zeros((channels, count, height + top + bottom, width + left + right), np.float32)
    padded[:, :, top : top + height, left : left + width] = x
    columns = np.empty((channels, *kernel, count, high, wide), np.float32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            columns[:, i, j] = padded[
                :, :, i : i + down * (high - 1) + 1 : down, j : j + across * (wide - 1) + 1 : across
            ]
    return columns.reshape(channels * kernel[0] * kernel[1], -1), (count, high, wide)
