"""The quantized network as a PyTorch module, in integer kernels or in reference arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.ao.nn.intrinsic.quantized import ConvReLU2d
from torch.ao.nn.quantized import Conv2d

from resnet8_eval.calibrate.parameters import Grid, Parameters, grid
from resnet8_eval.network import Addition, Convolution, Dense, Layer, Pooling, output_first
from resnet8_eval.onnx_graph import module_name


class QuantizedNetwork(nn.Module):
    """The folded network, layer by layer, with ``torch.quint8`` tensors in between.

    With kernels, each convolution, addition, pooling and matrix product runs in one of PyTorch's
    integer kernels. In reference arithmetic each dequantizes its inputs, computes in float32 and
    quantizes its output. Both read the same parameters, so they differ by rounding alone. A layer
    that the parameters leave in float is computed in float32 from its quantized input either way.

    Weights are ``torch.qint8``, the only ones that the integer kernels take, or ``torch.quint8``
    with zero point 128. `levels` are maps to the largest integers of their grids, where that is not
    255. There is no narrower type; their integers are held to so many.
    """

    def __init__(
        self,
        parameters: Parameters,
        weights_dtype: torch.dtype,
        *,
        kernels: bool,
        levels: Mapping[str, int] = {},
    ) -> None:
        super().__init__()
        self._network = parameters.rounded
        self._kernels = kernels
        self._levels = {name: most for name, most in levels.items() if most < 255}
        self._grids = {
            name: grid(low, high, levels.get(name, 255))
            for name, (low, high) in parameters.activations.items()
        }
        self._divisors = {
            layer.name: self._pinned(layer)
            for layer in self._network.layers
            if isinstance(layer, Pooling)
        }
        constants = self._network.constants()
        self._names = {
            layer.output: module_name(place, layer.name)
            for place, layer in enumerate(self._network.weighted)
        }
        self.layers = nn.ModuleDict()
        for layer in self._network.weighted:
            bias = torch.from_numpy(constants[layer.bias].copy())
            if layer.weight in parameters.scales:
                integers = parameters.integers[layer.weight]
                weight = _quantized(integers, parameters.scales[layer.weight], weights_dtype)
            else:
                weight = torch.from_numpy(output_first(layer, constants[layer.weight]).copy())
            self.layers[self._names[layer.output]] = self._module(layer, weight, bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Preprocessed images, float32 (N, 32, 32, 3), to float32 scores (N, 10)."""
        return self.tensors(images)[self._network.output]

    def tensors(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor that `images` give, by its name in the network."""
        network = self._network
        pixels = torch.quantize_per_tensor(images, *self._grids[network.input], torch.quint8)
        values = {network.input: pixels, network.planes: pixels.permute(0, 3, 1, 2)}

        def compute(layer: Layer, inputs: list[torch.Tensor]) -> torch.Tensor:
            match layer:
                case Convolution() | Dense():
                    y = self.layers[self._names[layer.output]](*inputs)
                case Addition():
                    y = self._add(layer, *inputs)
                case Pooling():
                    y = self._pool(layer, *inputs)
            return self._held(y, layer.output) if layer.output in self._levels else y

        # TorchScript names values as these variables are: another name makes another file.
        network.walk(values, compute, lambda y: y.flatten(1))
        if network.softmax:
            y = values[network.dense.output]
            values[network.output] = y.softmax(-1)
        return values

    def _module(self, layer: Convolution | Dense, weight: Any, bias: torch.Tensor) -> nn.Module:
        kernels = self._kernels and weight.is_quantized
        if isinstance(layer, Dense):
            return _Score(weight, bias, kernels=kernels)
        kind = _ConvolutionKernel if kernels else _ReferenceConvolution
        return kind(layer, weight, bias, self._grids[layer.output])

    def _add(self, layer: Addition, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = self._grids[layer.output]
        relu = layer.before_relu is not None
        if self._kernels:
            add = torch.ops.quantized.add_relu if relu else torch.ops.quantized.add
            return add(a, b, *out)
        total = a.dequantize() + b.dequantize()
        return torch.quantize_per_tensor(total.relu() if relu else total, *out, torch.quint8)

    def _held(self, y: torch.Tensor, name: str) -> torch.Tensor:
        scale, zero_point = self._grids[name]
        return y.clamp(-zero_point * scale, (self._levels[name] - zero_point) * scale)

    def _pinned(self, layer: Pooling) -> int:
        """What the kernel, which cannot rescale, divides sums by to reach the pooled grid."""
        before, wanted = self._grids[layer.inputs[0]], self._grids[layer.output]
        divisor = max(1, round(layer.area * wanted.scale / before.scale))
        self._grids[layer.output] = Grid(before.scale * divisor / layer.area, before.zero_point)
        return divisor

    def _pool(self, layer: Pooling, x: torch.Tensor) -> torch.Tensor:
        out = self._grids[layer.output]
        if self._kernels:
            divisor = self._divisors[layer.name]
            pooled = nn.functional.avg_pool2d(x, layer.window, divisor_override=divisor)
            return torch._make_per_tensor_quantized_tensor(pooled.int_repr(), *out)
        mean = nn.functional.avg_pool2d(x.dequantize(), layer.window)
        return torch.quantize_per_tensor(mean, *out, torch.quint8)


def _quantized(
    integers: NDArray[np.int8], scales: NDArray[np.float32], dtype: torch.dtype
) -> torch.Tensor:
    """The stored weight as a per-channel quantized tensor, output channel first."""
    zero_point = 128 if dtype == torch.quint8 else 0
    shifted = integers.astype(np.int16) + zero_point
    return torch._make_per_channel_quantized_tensor(
        torch.from_numpy(shifted.astype(np.uint8 if zero_point else np.int8)),
        torch.from_numpy(scales.astype(np.float64)),
        torch.full((len(scales),), zero_point, dtype=torch.int64),
        0,
    )


def _real(weight: torch.Tensor) -> torch.Tensor:
    return weight.dequantize() if weight.is_quantized else weight


class _Padded(nn.Module):
    """A convolution's geometry; PyTorch's kernels pad alike on both sides, ONNX need not."""

    def __init__(self, layer: Convolution) -> None:
        super().__init__()
        top, left, bottom, right = layer.pads
        even = (top, left) == (bottom, right)
        self.padding = (top, left) if even else (0, 0)
        self.uneven = None if even else (left, right, top, bottom)
        self.stride = layer.strides
        self.relu = layer.before_relu is not None

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        # The grid's zero point stands for zero, and ReLU's outputs have it at 0.
        return x if self.uneven is None else nn.functional.pad(x, self.uneven)


class _ConvolutionKernel(_Padded):
    def __init__(
        self, layer: Convolution, weight: torch.Tensor, bias: torch.Tensor, out: Grid
    ) -> None:
        super().__init__(layer)
        kind = ConvReLU2d if self.relu else Conv2d
        channels_out, channels_in, *kernel = weight.shape
        self.kernel = kind(
            channels_in, channels_out, kernel, stride=self.stride, padding=self.padding
        )
        self.kernel.set_weight_bias(weight, bias)
        self.kernel.scale, self.kernel.zero_point = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernel(self.pad(x))


class _ReferenceConvolution(_Padded):
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self, layer: Convolution, weight: torch.Tensor, bias: torch.Tensor, out: Grid
    ) -> None:
        super().__init__(layer)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.out = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(
            self.pad(x.dequantize()), _real(self.weight), self.bias, self.stride, self.padding
        )
        return torch.quantize_per_tensor(y.relu() if self.relu else y, *self.out, torch.quint8)


class _Score(nn.Module):
    """The last layer: 8-bit inputs, 8-bit weights, float32 score, so that no two classes tie."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, *, kernels: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self._kernel = _integer_product() if kernels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._kernel is None:
            return nn.functional.linear(x.dequantize(), _real(self.weight), self.bias)
        return self._kernel(x, self.weight, self.bias)


@functools.cache  # TorchScript numbers what is scripted anew, and the file then depends on it
def _integer_product() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The product of oneDNN with a float32 result, scripted: tracing cannot record its list."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x.int_repr(),
            x.q_scale(),
            x.q_zero_point(),
            torch.ops.onednn.qlinear_prepack(weight.int_repr(), None),
            weight.q_per_channel_scales().float(),
            weight.q_per_channel_zero_points().int(),
            bias,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )

    return torch.jit.script(product)
