"""The quantized network as a PyTorch module, in integer kernels or in reference arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.ao.nn.intrinsic.quantized import ConvReLU2d
from torch.ao.nn.quantized import Conv2d

from resnet8_eval.quantize.parameters import Parameters, grid

_MOVING_OR_SCORE = ("Transpose", "Reshape", "Flatten", "Gemm", "Softmax")


class Grid(NamedTuple):
    """Scale and zero point of a ``torch.quint8`` tensor."""

    scale: float
    zero_point: int


class QuantizedNetwork(nn.Module):
    """The folded ONNX network, node by node, with ``torch.quint8`` tensors in between.

    With kernels, each convolution, addition, pooling and matrix product runs in one of PyTorch's
    integer kernels. In reference arithmetic each dequantizes its inputs, computes in float32 and
    quantizes its output. Both read the same parameters, so they differ by rounding alone.

    Parameters
    ----------
    parameters
        Ranges, scales and rounded weights.
    weights_dtype
        ``torch.qint8``, or ``torch.quint8`` with zero point 128.
    kernels
        Whether to use the integer kernels, which take ``torch.qint8`` weights alone.
    """

    def __init__(
        self, parameters: Parameters, weights_dtype: torch.dtype, *, kernels: bool
    ) -> None:
        super().__init__()
        graph = onnx.load(parameters.model).graph
        tensors = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
        self._input, self._output = graph.input[0].name, graph.output[0].name
        self._kernels = kernels
        self._steps = _fuse_relu(list(graph.node))
        self._grids = {
            name: Grid(*grid(low, high)) for name, (low, high) in parameters.activations.items()
        }
        self.layers = nn.ModuleDict()
        for step in self._steps:
            self._pin_pool(step)
            if step.node.op_type in ("Conv", "Gemm"):
                weight = _quantized(
                    parameters.integers[step.node.input[1]],
                    parameters.scales[step.node.input[1]],
                    weights_dtype,
                )
                bias = torch.from_numpy(tensors[step.node.input[2]].copy())
                self.layers[step.key] = self._layer(step, weight, bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 images (N, 32, 32, 3) in [0, 255] to float32 probabilities (N, 10)."""
        return self.tensors(images)[self._output]

    def tensors(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor that `images` give, by its name in the ONNX network."""
        values = {
            self._input: torch.quantize_per_tensor(images, *self._grids[self._input], torch.quint8)
        }
        for step in self._steps:
            x = values[step.node.input[0]]
            match step.node.op_type:
                case "Transpose":
                    y = x.permute(*step.ints("perm"))
                case "Conv" | "Gemm":
                    y = self.layers[step.key](x)
                case "Add":
                    y = self._add(x, values[step.node.input[1]], step)
                case "AveragePool" | "GlobalAveragePool":
                    y = self._pool(x, step)
                case "Reshape" | "Flatten":
                    y = x.flatten(1)
                case "Softmax":
                    y = x.softmax(-1)
                case other:
                    raise NotImplementedError(f"no quantized form of {other}")
            values[step.output] = y
        return values

    def weight_names(self) -> dict[str, str]:
        """Name of each weighted layer here, to the name of its weight in the ONNX network."""
        return {s.key: s.node.input[1] for s in self._steps if s.key in self.layers}

    def grids(self) -> dict[str, Grid]:
        """Scales and zero points of the input and of each tensor computed, in that order."""
        outputs = [s.output for s in self._steps if s.node.op_type not in _MOVING_OR_SCORE]
        return {name: self._grids[name] for name in (self._input, *outputs)}

    def _layer(self, step: _Step, weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
        if step.node.op_type == "Gemm":
            return _Score(weight, bias, kernels=self._kernels)
        if self._kernels:
            return _ConvolutionKernel(step, weight, bias, self._grids[step.output])
        return _ReferenceConvolution(step, weight, bias, self._grids[step.output])

    def _add(self, a: torch.Tensor, b: torch.Tensor, step: _Step) -> torch.Tensor:
        out = self._grids[step.output]
        if self._kernels:
            add = torch.ops.quantized.add_relu if step.relu else torch.ops.quantized.add
            return add(a, b, *out)
        total = a.dequantize() + b.dequantize()
        return torch.quantize_per_tensor(total.relu() if step.relu else total, *out, torch.quint8)

    def _pin_pool(self, step: _Step) -> None:
        """Find the whole number that the integer kernel divides by to reach the pooled grid.

        The kernel sums 64 integers, divides, and keeps its input's scale. Dividing by another
        number than 64 gives the result a scale of its own, and with it the bits that the mean of
        a mostly zero map would leave unused.
        """
        if "Pool" in step.node.op_type:
            before, wanted = (self._grids[name] for name in (step.node.input[0], step.output))
            self._divisor = max(1, round(64 * wanted.scale / before.scale))
            self._grids[step.output] = Grid(before.scale * self._divisor / 64, before.zero_point)

    def _pool(self, x: torch.Tensor, step: _Step) -> torch.Tensor:
        out = self._grids[step.output]
        if self._kernels:
            pooled = nn.functional.avg_pool2d(x, 8, divisor_override=self._divisor)
            return torch._make_per_tensor_quantized_tensor(pooled.int_repr(), *out)
        mean = nn.functional.avg_pool2d(x.dequantize(), 8)
        return torch.quantize_per_tensor(mean, *out, torch.quint8)


class _Step(NamedTuple):
    """One ONNX node, merged with the ReLU that follows it."""

    node: onnx.NodeProto
    output: str
    relu: bool

    @property
    def key(self) -> str:
        return self.node.name.replace(".", "_")

    def ints(self, name: str, default: list[int] | None = None) -> list[int]:
        return next((list(a.ints) for a in self.node.attribute if a.name == name), default or [])


def _fuse_relu(nodes: list[onnx.NodeProto]) -> list[_Step]:
    relus = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Relu"}
    return [
        _Step(node, relus.get(node.output[0], node.output[0]), node.output[0] in relus)
        for node in nodes
        if node.op_type != "Relu"
    ]


def _quantized(
    integers: np.ndarray[Any, np.dtype[np.int8]],
    scales: np.ndarray[Any, np.dtype[np.float32]],
    dtype: torch.dtype,
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


class _Padded(nn.Module):
    """A convolution's geometry; PyTorch's kernels pad alike on both sides, ONNX need not."""

    def __init__(self, step: _Step) -> None:
        super().__init__()
        top, left, bottom, right = step.ints("pads", [0, 0, 0, 0])
        even = (top, left) == (bottom, right)
        self.padding = (top, left) if even else (0, 0)
        self.uneven = None if even else (left, right, top, bottom)
        self.stride = tuple(step.ints("strides", [1, 1]))
        self.relu = step.relu

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        # The grid's zero point stands for zero, and ReLU's outputs have it at 0.
        return x if self.uneven is None else nn.functional.pad(x, self.uneven)


class _ConvolutionKernel(_Padded):
    def __init__(self, step: _Step, weight: torch.Tensor, bias: torch.Tensor, out: Grid) -> None:
        super().__init__(step)
        kind = ConvReLU2d if step.relu else Conv2d
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

    def __init__(self, step: _Step, weight: torch.Tensor, bias: torch.Tensor, out: Grid) -> None:
        super().__init__(step)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.out = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(
            self.pad(x.dequantize()), self.weight.dequantize(), self.bias, self.stride, self.padding
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
            return nn.functional.linear(x.dequantize(), self.weight.dequantize(), self.bias)
        return self._kernel(x, self.weight, self.bias)


def _integer_product() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The integer matrix product with a float32 result, of oneDNN, as a TorchScript function.

    It has an argument that is a list of optional numbers, which scripting can record in a
    TorchScript file and tracing cannot.
    """

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
