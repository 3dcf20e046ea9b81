"""Exported programs (``.pt2``), as ``torch.export`` and torchao's PT2E flow leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.backends import CONVOLUTIONS, PRODUCTS, StoredTensor, counted
from resnet8_eval.network import Network
from resnet8_eval.store import Record

TWO_OPERANDS: Final = frozenset({"conv2d", "_convolution", "linear", "matmul", "add"})
COMPUTING_NOTHING: Final = frozenset(
    {
        *("permute", "pad", "flatten", "relu"),
        *("quantize_per_tensor", "dequantize", "int_repr", "_make_per_tensor_quantized_tensor"),
        *("q_scale", "q_zero_point", "q_per_channel_scales", "q_per_channel_zero_points", "to"),
        "qlinear_prepack",
    }
)
"""Operators that move, convert or describe tensors; ReLU is merged into the range that follows."""


def load(path: Path) -> Any:
    """Read an exported program; PT2E's has operators that torch does not load by itself."""
    import torch
    import torch.ao.quantization.fx._decomposed

    return torch.export.load(path)


def constants(path: Path) -> list[Any]:
    """The weights and biases that the network reads."""
    program = load(path)
    stored = {**program.state_dict, **program.constants}
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    specs = program.graph_signature.input_specs
    return [stored[s.target] for s in specs if s.target in stored and s.arg.name in read]


def census(path: Path) -> Record:
    """The census of a program of quantize, dequantize and float32 operators."""
    program = load(path)
    operators, weights, activations, makers = [], {}, set(), set()
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        space, _, operator = str(node.target).partition(".")
        operator = operator.partition(".")[0]
        if space == "quantized_decomposed":
            makers.add("PT2E")
            if operator == "quantize_per_tensor":
                activations.add(dtype_name(node.args[-1]))
            continue
        if operator in COMPUTING_NOTHING:
            continue
        operands = node.args[: 2 if operator in TWO_OPERANDS else 1]
        sources = [_dequantized(operand) for operand in operands]
        operators.append((operator, all(sources)))
        if operator in (*CONVOLUTIONS, *PRODUCTS):
            weights[node.name] = sources[1] or "float32"
    return counted(operators, " ".join(makers) or "torch.export", weights, activations)


def _dequantized(operand: Any) -> str | None:
    """The stored type of what a dequantize step gives; None for anything else."""
    while str(operand.target) in ("aten.pad.default", "aten.permute.default", "aten.relu.default"):
        operand = operand.args[0]
    if not str(operand.target).startswith("quantized_decomposed.dequantize"):
        return None
    return dtype_name(operand.args[-1])


def dtype_name(dtype: Any) -> str:
    """NumPy's name of what PyTorch stores a tensor as."""
    return str(dtype).removeprefix("torch.").removeprefix("q")


def read_back(path: Path, network: Network) -> list[StoredTensor]:
    """The tensors of a program; its layers come in the network's order."""
    program = load(path)
    held = {**program.state_dict, **program.constants}
    specs = program.graph_signature.input_specs
    stored: dict[str, Any] = {spec.arg.name: held.get(str(spec.target)) for spec in specs}
    layers = iter(network.weighted)
    found = []
    for node in program.graph.nodes:
        target = str(node.target)
        if target.startswith("quantized_decomposed.quantize_per_tensor"):
            source, scale, zero_point, *_, dtype = node.args
            kind, grid = dtype_name(dtype), ([float(scale)], [int(zero_point)])
            found.append(StoredTensor(str(source.name), "activation", kind, None, *grid))
        elif target in ("aten.conv2d.default", "aten.linear.default"):
            layer, dequantize = next(layers), node.args[1]
            axis = dequantize.args[3] if "per_channel" in str(dequantize.target) else None
            integers, scales, zero_points = (
                stored[part.name].numpy() if hasattr(part, "name") else np.array(part)
                for part in dequantize.args[:3]
            )
            kind = dtype_name(dequantize.args[-1])
            found.append(stored_weight(layer.weight, kind, axis, integers, scales, zero_points))
            found.append(stored_bias(layer.weight, stored[node.args[2].name]))
    return found


def stored_weight(
    name: str,
    dtype: str,
    axis: int | None,
    integers: NDArray[Any],
    scales: NDArray[Any],
    zero_points: NDArray[Any],
) -> StoredTensor:
    """A weight as it was read back; its channels have one zero point."""
    zeros = zero_points.ravel().tolist()
    values, wrong_axis = integers.astype(np.int64) - zeros[0], axis not in (None, 0)
    steps = scales.ravel().tolist()
    return StoredTensor(name, "weight", dtype, axis, steps, zeros, values, wrong_axis)


def stored_bias(name: str, bias: Any) -> StoredTensor:
    """A float bias as it was read back, from PyTorch's tensor."""
    values = bias.detach().numpy().astype(np.float64)
    return StoredTensor(name, "bias", "float32", None, [], [], values)
