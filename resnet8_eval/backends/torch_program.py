"""Exported programs (``.pt2``), as ``torch.export`` and torchao's PT2E flow leave them."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval.backends import StoredTensor, torchscript
from resnet8_eval.errors import unreadable_model
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
_CONVOLUTIONS: Final = ("conv2d", "conv2d_relu", "_convolution")
_PRODUCTS: Final = ("linear", "addmm", "matmul", "qlinear_pointwise")


def load(path: Path) -> Any:
    """Read an exported program; PT2E's has operators that torch does not load by itself."""
    import torch
    import torch.ao.quantization.fx._decomposed

    return torch.export.load(path)


def demand(path: Path) -> None:
    """Keep any other file from torch, which would go on to try its older, unpickling readers."""
    torchscript.demand_network(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise unreadable_model(path, "torch", error) from error
    if not any(name.endswith("/archive_format") for name in names):
        raise unreadable_model(path, "torch", ValueError("no torch.export archive"))


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
    quantized: Counter[str] = Counter()
    in_float: Counter[str] = Counter()
    weights: dict[str, str] = {}
    activations, makers = set(), set()
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        space, _, operator = str(node.target).partition(".")
        operator = operator.partition(".")[0]
        if space == "quantized_decomposed":
            makers.add("PT2E")
            if operator == "quantize_per_tensor":
                activations.add(str(node.args[-1]).removeprefix("torch."))
            continue
        if operator in COMPUTING_NOTHING:
            continue
        operands = node.args[: 2 if operator in TWO_OPERANDS else 1]
        sources = [_dequantized(operand) for operand in operands]
        (quantized if all(sources) else in_float)[operator] += 1
        if operator in (*_CONVOLUTIONS, *_PRODUCTS):
            weights[node.name] = sources[1] or "float32"
    return {
        **counted(quantized, in_float),
        "maker": " ".join(makers) or "torch.export",
        "weights": weights,
        "activations": sorted(activations),
    }


def _dequantized(operand: Any) -> str | None:
    """The stored type of what a dequantize step gives; None for anything else."""
    while str(operand.target) in ("aten.pad.default", "aten.permute.default", "aten.relu.default"):
        operand = operand.args[0]
    if not str(operand.target).startswith("quantized_decomposed.dequantize"):
        return None
    return str(operand.args[-1]).removeprefix("torch.")


def counted(quantized: Counter[str], in_float: Counter[str]) -> Record:
    """The counts of a census, from those of PyTorch's operators on 8-bit tensors and in float."""
    kinds = {"convolutions": _CONVOLUTIONS, "products": _PRODUCTS}
    return {
        "quantized_ops": dict(quantized),
        "float_ops": dict(in_float),
        **{
            kind: [sum(found[name] for name in names) for found in (quantized, in_float)]
            for kind, names in kinds.items()
        },
    }


def read_back(path: Path, network: Network) -> list[StoredTensor]:
    """The tensors of a program; its layers come in the network's order."""
    program = load(path)
    stored = {
        spec.arg.name: program.state_dict.get(
            str(spec.target), program.constants.get(str(spec.target))
        )
        for spec in program.graph_signature.input_specs
    }
    layers = iter(network.weighted)
    found = []
    for node in program.graph.nodes:
        target = str(node.target)
        if target.startswith("quantized_decomposed.quantize_per_tensor"):
            scale, zero_point, dtype = node.args[1], node.args[2], node.args[-1]
            grid = [float(scale)], [int(zero_point)]
            name = str(node.args[0].name)
            kind = str(dtype).removeprefix("torch.")
            found.append(StoredTensor(name, "activation", kind, None, *grid))
        elif target in ("aten.conv2d.default", "aten.linear.default"):
            layer, dequantize = next(layers), node.args[1]
            axis = dequantize.args[3] if "per_channel" in str(dequantize.target) else None
            integers, scales, zero_points = (
                stored[part.name].numpy() if hasattr(part, "name") else np.array(part)
                for part in dequantize.args[:3]
            )
            scales, zero_points = np.atleast_1d(scales), np.atleast_1d(zero_points)
            values = integers.astype(np.int64) - int(zero_points[0])
            found.append(
                StoredTensor(
                    layer.weight,
                    "weight",
                    str(dequantize.args[-1]).removeprefix("torch."),
                    axis,
                    scales.tolist(),
                    zero_points.tolist(),
                    values,
                    wrong_axis=axis not in (None, 0),
                )
            )
            bias = stored[node.args[2].name].detach().numpy().astype(np.float64)
            found.append(StoredTensor(layer.weight, "bias", "float32", None, [], [], bias))
    return found
