"""The quantized network in exact integer arithmetic, in NumPy alone.

What kernels are held against: it is computed from what a stored model holds, shares no code with
the writers, and runs in no framework. Weights and activations are integers, less their zero points,
and their products are summed exactly. What happens to a sum that falls between two integers of the
output's grid depends on the order of a few float32 steps, so these are those of the kernels:
ONNX Runtime's, and PyTorch's three (:func:`rounding`). All round halves to even. ONNX Runtime's
scores are met to 1e-6, and PyTorch's.

A float32 product (BLAS) is exact here. Each product of two integers is an integer, and so is each
partial sum, in whatever order and with or without fused multiply-add. None is larger than the sum
of the magnitudes of a channel's weights times that of the largest input, and float32 holds every
integer up to 2**24. 8-bit inputs (255) and weights within ±63 over 576 inputs give at most
9,253,440. A bias of no more than 2**24 is one more such integer, and adding it rounds the exact
total once, as converting an int32 to float32 does. Where a layer's own weights or bias exceed the
bound, its sums are taken in float64, which holds every integer up to 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import environment
from resnet8_eval.backends import StoredTensor
from resnet8_eval.batchwise import Share, batchwise
from resnet8_eval.convolution import by_line, convolve
from resnet8_eval.errors import ModelError
from resnet8_eval.network import Addition, Convolution, Dense, Layer, Network, Pooling
from resnet8_eval.preprocess import Images, batches

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Rounding = Literal["onnxruntime", "onednn", "onednn-once", "fbgemm"]

BATCH: Final = 16
"""Images at a time, so that a layer's columns stay in the processor's cache."""
_EXACT_IN_FLOAT32: Final = 2**24
_ONE: Final = np.float32(1)


@dataclass(frozen=True)
class Grid:
    """An affine grid of integers.

    `zero_point` stands for zero, counted from the `lowest` integer of its type (-128 or 0), so that
    an int8 grid and the uint8 grid that it is shifted to are one. `levels` is the largest integer,
    counted so: 255 for 8 bits.
    """

    scale: np.float32
    zero_point: int
    lowest: int
    levels: int = 255

    def clipped(self, values: Floats, *, relu: bool = False) -> Floats:
        """Integers less the zero point, held to those that the type (and ReLU) has. In place."""
        low = 0 if relu else -self.zero_point
        return np.clip(values, low, self.levels - self.zero_point, out=values)

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
        Less their zero point, as float32 or float64: a type in which every sum is exact. Of a
        convolution (height, width x channels, O), of a dense layer (inputs, O). Of a layer in
        float, its float32 weights.
    scales
        One for each output channel, float32; None for a layer in float.
    bias
        Integers of the scale input x weight in the type of `integers`, or float32 numbers.
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
        self.grids: dict[str, Grid] = {}
        for entry in tensors:
            if entry.kind == "activation":
                scale, lowest = np.float32(entry.scales[0]), -128 if entry.dtype == "int8" else 0
                levels = 15 if entry.dtype == "uint4" else 255
                self.grids[entry.name] = Grid(scale, entry.zero_points[0] - lowest, lowest, levels)
        weights = {entry.name: entry for entry in tensors if entry.kind == "weight"}
        biases = {entry.name: entry for entry in tensors if entry.kind == "bias"}
        exact = network.constants()
        self._sums_of_pairs: dict[str, Floats] = {}
        self._steps: dict[str, list[NDArray[Any]]] = {}
        self.weights: dict[str, Weights] = {}
        for layer in network.weighted:
            stored = weights.get(layer.weight)
            if stored is None:
                values = np.asarray(exact[layer.weight], np.float32)
                values = values if isinstance(layer, Dense) else by_line(values)
                found = Weights(values, None, exact[layer.bias])
            elif layer.weight not in biases:
                raise KeyError(f"the bias of {layer.name}")
            else:
                found = _weights(stored, biases[layer.weight])
            self.weights[layer.name] = found

    def scores(self, images: Images, share: Share = lambda: 1) -> Floats:
        """The network's output: probabilities where it ends in a softmax."""
        dense, output = self.network.dense.output, self.network.output
        scores = batchwise(
            lambda some: np.concatenate([batch[dense] for batch in self.tensors(some)]),
            images,
            share,
        )
        if dense in self.grids:
            scores *= self.grids[dense].scale
        if not self.network.softmax:
            return scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
        if output in self.grids:
            scores = self.grids[output].quantized(scores) * self.grids[output].scale
        return scores

    def tensors(self, images: Images, batch: int = BATCH) -> Iterator[Arrays]:
        """Every tensor of a few images at a time.

        Yields tensor to its integers less the zero point, float32 (n, height, width, channels). The
        dense layer's output, (n, 10), holds real scores where the model stores no grid for it.
        """
        network = self.network
        for fed in batches(images, batch):
            planes = self.grid(network.planes).quantized(fed)
            yield network.walk({network.planes: planes}, self._compute)

    def _compute(self, layer: Layer, inputs: list[Floats]) -> Floats:
        match layer:
            case Convolution():
                return self._convolution(layer, *inputs)
            case Addition():
                return self._addition(layer, *inputs)
            case Pooling():
                return self._pooling(layer, *inputs)
            case Dense():
                return self._product(layer, *inputs)

    def grid(self, name: str) -> Grid:
        """The grid of a tensor; what is only moved has that of what it was moved from."""
        return self.grids[name if name in self.grids else self.network.moved[name]]

    def multipliers(self, layer: Convolution | Dense) -> Floats:
        """What brings an integer sum of a quantized layer to its output, for each channel."""
        scales = self.weights[layer.name].scales
        if scales is None:
            raise ModelError(
                f"{layer.name} is computed in float and has no integers.",
                expected="8-bit weights in every convolution and matrix product",
                given="float32 weights",
                next_step="quantize every layer, as `resnet8-eval quantize` does",
            )
        products = self.grid(layer.inputs[0]).scale * scales
        out = self.grids.get(layer.output)
        return products if out is None else products / out.scale

    def _convolution(self, layer: Convolution, x: Floats) -> Floats:
        weights, out = self.weights[layer.name], self.grid(layer.output)
        relu = layer.before_relu is not None
        scale = self.grid(layer.inputs[0]).scale
        if weights.scales is None:
            return out.quantized(
                convolve(x * scale, weights.integers, layer) + weights.bias, relu=relu
            )
        sums = convolve(x, weights.integers, layer)
        shape = sums.shape
        steps = self._steps.get(layer.name)
        if steps is None:  # each channel's numbers for the whole map: short rows are slow
            each = (weights.bias, weights.scales, self.multipliers(layer))
            steps = self._steps[layer.name] = [np.tile(one, shape[1] * shape[2]) for one in each]
        bias, scales, multipliers = steps
        sums = sums.reshape(len(sums), -1)
        if self.rounding.startswith("onednn"):
            # To real numbers, the bias, and to the grid with its zero point as a float.
            sums = sums.astype(np.float32, copy=False)
            given = _ONE / (_ONE / scale)  # PyTorch hands over the reciprocal
            if self.rounding == "onednn":
                sums *= given
                sums *= scales
            else:
                sums *= given * scales
            sums += bias
            sums *= _ONE / out.scale
            sums += np.float32(out.zero_point)
            np.rint(sums, out=sums)
            sums -= np.float32(out.zero_point)
        else:
            # The bias in steps of the sum, one multiplication, the zero point as an integer.
            if self.rounding == "fbgemm":
                bias = bias / (scale * scales)
            sums = sums.astype(bias.dtype, copy=False)
            sums += bias
            sums = sums.astype(np.float32, copy=False)
            sums *= multipliers
            np.rint(sums, out=sums)
        return out.clipped(sums, relu=relu).reshape(shape)

    def _addition(self, layer: Addition, a: Floats, b: Floats) -> Floats:
        """The sum of two maps, looked up: there are 65,536 pairs of integers."""
        one, two = (self.grid(name).zero_point for name in layer.inputs)
        table = self._sums_of_pairs.get(layer.name)
        if table is None:
            table = self._sums_of_pairs[layer.name] = self._pairs(layer)
        pair = a * np.float32(256)
        pair += b
        places = pair.astype(np.int32)  # half the time of intp
        places += 256 * one + two
        return np.take(table, places, mode="wrap")  # which looks for no errors

    def _pairs(self, layer: Addition) -> Floats:
        """What each pair of integers adds up to, float32 (65536,), with fused multiply-add."""
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

    def _pooling(self, layer: Pooling, x: Floats) -> Floats:
        before, out = self.grid(layer.inputs[0]), self.grid(layer.output)
        sums = x.sum(axis=(1, 2))
        multiplier = before.scale / (out.scale * np.float32(layer.area))
        if self.rounding != "onnxruntime":
            # PyTorch's kernel divides by a whole number. If that is even, many sums are halves.
            multiplier = _ONE / np.rint(_ONE / multiplier)
        return out.clipped(np.rint(sums * multiplier))

    def _product(self, layer: Dense, x: Floats) -> Floats:
        weights = self.weights[layer.name]
        if weights.scales is None:
            real = (x * self.grid(layer.inputs[0]).scale) @ weights.integers + weights.bias
            real = np.asarray(real, np.float32)
            return self.grids[layer.output].quantized(real) if layer.output in self.grids else real
        sums = np.asarray(x.astype(weights.integers.dtype, copy=False) @ weights.integers)
        if self.rounding == "onnxruntime":
            sums += weights.bias
        product = np.asarray(sums, np.float32) * self.multipliers(layer)
        if layer.output in self.grids:
            return self.grids[layer.output].clipped(np.rint(product))
        if self.rounding != "onnxruntime":
            product += weights.bias
        return product


def rounding(framework: str) -> Rounding:
    """Whose steps a framework's kernels take on this processor.

    PyTorch's engine ``x86`` convolves with oneDNN where it finds ``avx512_vnni``, else with FBGEMM;
    oneDNN has two kinds of kernels, by the instructions that it may use.
    """
    if framework == "onnxruntime":
        return "onnxruntime"
    if "avx512_vnni" not in environment.cpu()["flags"]:
        return "fbgemm"
    return "onednn-once" if environment.onednn_multiplies_once() else "onednn"


def _fused(a: Any, b: np.float32, c: Any) -> Any:
    """The product a x b plus c, rounded once."""
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def _weights(stored: StoredTensor, bias: StoredTensor) -> Weights:
    values, numbers = np.asarray(stored.values), np.asarray(bias.values)
    bound = 255 * int(np.abs(values).reshape(len(values), -1).sum(axis=1).max())
    if bias.scales:
        numbers = np.rint(numbers / np.asarray(bias.scales))
        bound = max(bound, int(np.abs(numbers).max()))
    exact = np.float32 if bound <= _EXACT_IN_FLOAT32 else np.float64
    return Weights(
        (by_line(values) if values.ndim == 4 else values.T).astype(exact),
        np.broadcast_to(np.asarray(stored.scales, np.float32), len(numbers)),
        numbers.astype(exact if bias.scales else np.float32),
    )
