"""The numbers that a stored model really holds, against those decided for it.

Written by one hand and read by another: nothing here is shared with the code that writes a model
but the parameters themselves. A wrong scale or a swapped axis computes alike in integers and in
reference arithmetic, so only this comparison tells them from a bad recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import torchscript
from resnet8_eval.checks import Check
from resnet8_eval.quantize.parameters import EQUALIZED, Parameters, grid
from resnet8_eval.quantize.recipes import Recipe

Tensor = dict[str, Any]
PROJECTION = 0.03
"""Seven times what 8 bits were measured to do (0.0043 at most, over ten layers and four seeds)."""
RELATIVE = 1e-6
"""Scales are float32, and each tool rounds its own division."""


def tensors(path: Path, parameters: Parameters, recipe: Recipe) -> list[Tensor]:
    """Read every quantized tensor of a stored model.

    Parameters
    ----------
    path
        The model.
    parameters
        Which tensors to look for.
    recipe
        What it was quantized by.

    Returns
    -------
    list of dict
        ``name``, ``kind`` (``"activation"``, ``"weight"`` or ``"bias"``), ``dtype``, ``axis`` (of
        the scales; None for one scale), ``scales`` and ``zero_points``. Weights and biases also
        have ``values``, an array: the integers less their zero point, output channel first, and
        the real numbers. A bias goes by the name of its layer's weight.
    """
    if recipe.framework == "onnxruntime":
        return _onnx_tensors(path)
    return _torch_tensors(path, parameters, recipe)


def compare(found: Sequence[Tensor], parameters: Parameters, recipe: Recipe) -> list[Check]:
    """Hold stored tensors against the parameters that calibration decided.

    Parameters
    ----------
    found
        From :func:`tensors`.
    parameters
        From calibration.
    recipe
        What the model was quantized by.

    Returns
    -------
    list of Check
        Weights, activations and biases; a failure names the first tensor that differs, and how.
    """
    by_name = {entry["name"]: entry for entry in found if entry["kind"] != "bias"}
    weight_zero = 128 if recipe.weights_dtype == "uint8" else 0
    signed = recipe.activations_dtype == "int8"
    weights = [
        _difference(by_name.get(name), scales, [weight_zero] * len(scales))
        or _other_integers(by_name[name], parameters.integers[name])
        for name, scales in parameters.scales.items()
    ]
    stored_biases = {entry["name"]: entry for entry in found if entry["kind"] == "bias"}
    biases = [
        _other_bias(stored_biases.get(name), bias) for name, bias in _biases(parameters).items()
    ]
    activations = []
    for entry in found:
        if entry["kind"] == "activation":
            scale, zero_point = grid(*parameters.activations[entry["name"]])
            activations.append(_difference(entry, [scale], [zero_point - 128 * signed]))
    weight_names = list(parameters.scales)
    activation_names = [entry["name"] for entry in found if entry["kind"] == "activation"]
    return [
        _check("scales, zero points and integers of weights", weight_names, weights),
        _check("scales and zero points of activations", activation_names, activations),
        _check("biases", weight_names, biases),
    ]


def compare_weights(parameters: Parameters) -> Check:
    """Hold the rounded weights against the float32 ones that they stand for.

    Rounding errors of a channel's many weights average out, so the rounded channel, projected on
    the float32 one, has length 1; a wrong scale moves that in proportion, and a swapped axis in
    most channels.

    Parameters
    ----------
    parameters
        From calibration.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(parameters.model.with_name(EQUALIZED))
    exact = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    transposed = {node.input[1] for node in model.graph.node if node.op_type == "Gemm"}
    wrong = []
    for name, integers in parameters.integers.items():
        weight = exact[name].T if name in transposed else exact[name]
        clean = weight.reshape(len(weight), -1).astype(np.float64)
        rounded = integers.reshape(len(weight), -1) * parameters.scales[name][:, None]
        power = np.square(clean).sum(axis=1)
        # A channel of zeros has no scale to be wrong.
        length = np.where(power > 0, (clean * rounded).sum(axis=1) / np.maximum(power, 1e-30), 1.0)
        worst = int(np.abs(length - 1).argmax())
        if abs(length[worst] - 1) > PROJECTION:
            wrong.append(f"{name}: channel {worst} is {length[worst]:.3f} times its float32 self")
    return Check(
        "rounded weights against float32",
        f"{len(parameters.integers)} tensors within {PROJECTION:g} of it, channel by channel",
        f"{len(parameters.integers) - len(wrong)} of them"
        + (f"; wrong scale or axis: {wrong[0]}" if wrong else ""),
        not wrong,
    )


def _check(kind: str, names: Sequence[str], differences: Sequence[str | None]) -> Check:
    wrong = [f"{n}: {d}" for n, d in zip(names, differences, strict=True) if d is not None]
    return Check(
        f"stored {kind}",
        f"{len(names)} tensors as calibration decided them",
        f"{len(names) - len(wrong)} of them" + (f"; first wrong: {wrong[0]}" if wrong else ""),
        not wrong and bool(names),
    )


def _difference(
    entry: Tensor | None,
    scales: Sequence[float] | NDArray[np.float32],
    zero_points: Sequence[int],
) -> str | None:
    """How a stored tensor differs from its parameters; None where it does not."""
    if entry is None:
        return "it is not stored as a quantized tensor"
    stored, expected = np.asarray(entry["scales"]), np.asarray(scales, np.float64)
    if stored.shape != expected.shape:
        return f"{len(stored)} scales along axis {entry['axis']}, not {len(expected)}: wrong axis?"
    if entry["wrong_axis"]:
        return (
            f"scales lie along axis {entry['axis']}, which is not the output channels: wrong axis"
        )
    relative = np.abs(stored / expected - 1)
    if relative.max() > RELATIVE:
        worst = int(relative.argmax())
        return f"scale {worst} is {stored[worst]:.6g}, not {expected[worst]:.6g}: wrong scale"
    if list(entry["zero_points"]) != list(zero_points):
        return f"zero point {entry['zero_points'][0]}, not {zero_points[0]}"
    return None


def _other_integers(entry: Tensor, integers: NDArray[np.int8]) -> str | None:
    """How a stored weight's integers differ from those decided; None where they do not."""
    if entry["values"].shape != integers.shape:
        return f"shape {entry['values'].shape}, not {integers.shape}"
    wrong = int((entry["values"] != integers).sum())
    return f"{wrong} of {integers.size} integers are others" if wrong else None


def _biases(parameters: Parameters) -> dict[str, NDArray[np.float32]]:
    """The bias beside each weight, by the weight's name."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(parameters.model).graph
    constants = {entry.name: entry for entry in graph.initializer}
    return {
        node.input[1]: numpy_helper.to_array(constants[node.input[2]])
        for node in graph.node
        if node.input[1:2] and node.input[1] in parameters.scales
    }


def _other_bias(entry: Tensor | None, bias: NDArray[np.float32]) -> str | None:
    """How a stored bias differs by more than its rounding; None where it does not."""
    if entry is None:
        return "it is not stored"
    # A float32 bias has no scale and must be equal.
    tolerance = np.asarray(entry["scales"] or 0.0) * 0.5 * (1 + RELATIVE)
    distance = np.abs(entry["values"] - bias.astype(np.float64)) - tolerance
    worst = int(distance.argmax())
    if distance[worst] > np.spacing(np.abs(bias[worst])):
        return f"bias {worst} is {entry['values'][worst]:.6g}, not {bias[worst]:.6g}"
    return None


def _onnx_tensors(path: Path) -> list[Tensor]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    makers = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        reader = readers.get(node.output[0])
        constant = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if node.op_type != "QuantizeLinear" and not (constant and reader is not None):
            continue
        scale, zero_point = (constants[name] for name in node.input[1:3])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        output_axis = 1 if reader is not None and reader.op_type == "Gemm" else 0
        entry = {
            "name": node.input[0],
            "kind": "activation",
            "dtype": str(zero_point.dtype),
            "axis": axis if scale.ndim else None,
            "wrong_axis": False,
            "scales": [float(value) for value in scale.ravel()],
            "zero_points": [int(value) for value in zero_point.ravel()],
        }
        if constant and reader is not None:
            integers = constants[node.input[0]].astype(np.int64)
            maker = makers.get(reader.input[1])
            weight = reader.input[1] if maker is None else maker.input[0]
            entry["name"] = weight.removesuffix("_quantized")
            if node.output[0] == reader.input[1]:
                entry["kind"] = "weight"
                entry["wrong_axis"] = bool(scale.size > 1 and axis != output_axis)
                entry["values"] = np.moveaxis(integers, output_axis, 0) - int(zero_point.flat[0])
            else:
                entry["kind"] = "bias"
                entry["values"] = (integers - zero_point) * scale.astype(np.float64)
        found.append(entry)
    return found


def _torch_tensors(path: Path, parameters: Parameters, recipe: Recipe) -> list[Tensor]:
    from resnet8_eval.quantize.torch_quantize import network, stored_layers

    module = torchscript.load(path)
    plan = network(parameters, recipe, kernels=recipe.execution == "kernel")
    found = []
    layers = stored_layers(module)
    for key, name in plan.weight_names().items():
        weight, bias = layers[key]
        found.append(
            {
                "name": name,
                "kind": "weight",
                "dtype": recipe.weights_dtype,
                "axis": weight.q_per_channel_axis(),
                "wrong_axis": weight.q_per_channel_axis() != 0,
                "scales": weight.q_per_channel_scales().tolist(),
                "zero_points": [int(value) for value in weight.q_per_channel_zero_points()],
                "values": weight.int_repr().numpy().astype(np.int64)
                - int(weight.q_per_channel_zero_points()[0]),
            }
        )
        found.append(
            {
                "name": name,
                "kind": "bias",
                "dtype": "float32",
                "axis": None,
                "wrong_axis": False,
                "scales": [],
                "zero_points": [],
                "values": bias.detach().numpy().astype(np.float64),
            }
        )
    outputs = []
    for node in module.inlined_graph.nodes():
        inputs = list(node.inputs())
        operator = node.kind().partition("::")[2]
        if operator in ("quantize_per_tensor", "_make_per_tensor_quantized_tensor"):
            outputs.append([value.toIValue() for value in inputs[1:3]])
        elif node.kind().startswith("quantized::"):
            outputs.append([value.toIValue() for value in inputs[2:4]])
    for name, (scale, zero_point) in zip(plan.grids(), outputs, strict=True):
        found.append(
            {
                "name": name,
                "kind": "activation",
                "dtype": recipe.activations_dtype,
                "axis": None,
                "wrong_axis": False,
                "scales": [float(scale)],
                "zero_points": [int(zero_point)],
            }
        )
    return found
