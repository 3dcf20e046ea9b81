"""Static quantization with PyTorch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from resnet8_eval import torchscript
from resnet8_eval.quantize.parameters import Parameters
from resnet8_eval.quantize.recipes import Recipe
from resnet8_eval.store import Record

_TWO_OPERANDS: Final = frozenset({"conv2d", "_convolution", "linear", "matmul", "add"})
_KERNELS: Final = frozenset({"conv2d", "conv2d_relu", "add", "add_relu"})
_PRODUCT: Final = "onednn::qlinear_pointwise"
_COMPUTING_NOTHING: Final = frozenset(
    {
        *("permute", "pad", "flatten", "relu"),
        *("quantize_per_tensor", "dequantize", "int_repr", "_make_per_tensor_quantized_tensor"),
        *("q_scale", "q_zero_point", "q_per_channel_scales", "q_per_channel_zero_points", "to"),
        "qlinear_prepack",
    }
)
"""Operators that move, convert or describe tensors; ReLU is merged into the range that follows."""
_EIGHT_BIT: Final = frozenset(
    {
        "aten::quantize_per_tensor",
        "aten::_make_per_tensor_quantized_tensor",
        *(f"quantized::{name}" for name in _KERNELS),
    }
)
_DTYPES: Final = {12: "int8", 13: "uint8"}
"""c10::ScalarType of qint8 and quint8, as a TorchScript graph has them."""
_DTYPE_NAMES: Final = {"torch.qint8": "int8", "torch.quint8": "uint8", "torch.float32": "float32"}


def quantize(parameters: Parameters, recipe: Recipe, path: Path) -> Record:
    """Build a quantized PyTorch network and save it as TorchScript.

    Parameters
    ----------
    parameters
        From calibration.
    recipe
        A recipe of framework ``"torch"``.
    path
        Where to write the ``.pt`` file; read it with ``torch.jit.load``.

    Returns
    -------
    dict
        ``quantized_ops`` and ``float_ops`` by type, ``weights`` (layer to stored dtype),
        ``activations`` (dtypes), ``engine`` and ``support``.
    """
    kernels = recipe.execution == "kernel"
    torchscript.save(network(parameters, recipe, kernels=kernels), path)
    return {
        **census(path),
        "engine": torchscript.ENGINE if kernels else None,
        "support": None if kernels else unsigned_kernel_support(),
    }


def network(parameters: Parameters, recipe: Recipe, *, kernels: bool) -> Any:
    """The quantized network as a module, in integer kernels or in reference arithmetic.

    Parameters
    ----------
    parameters
        From calibration.
    recipe
        A recipe of framework ``"torch"``.
    kernels
        Whether to use the integer kernels, of :data:`resnet8_eval.torchscript.ENGINE`.

    Returns
    -------
    resnet8_eval.quantize.torch_model.QuantizedNetwork
        Ready to run.
    """
    import torch

    from resnet8_eval.quantize.torch_model import QuantizedNetwork

    if kernels:
        torch.backends.quantized.engine = torchscript.ENGINE
    dtype = torch.quint8 if recipe.weights_dtype == "uint8" else torch.qint8
    with torchscript.deprecations_ignored():
        return QuantizedNetwork(parameters, dtype, kernels=kernels).eval()


def census(path: Path) -> Record:
    """Count what a stored TorchScript network computes from 8-bit tensors and what from float ones.

    An operator is quantized if every tensor that it computes with is an 8-bit one or comes out of
    one, as in the census of an ONNX model. In reference arithmetic such an operator still computes
    in float32; the recipe's ``execution`` tells.

    Parameters
    ----------
    path
        A TorchScript file.

    Returns
    -------
    dict
        ``quantized_ops`` and ``float_ops``, operator to count; ``weights``, layer to stored dtype;
        ``activations``, the dtypes that activations are quantized to.
    """
    module = torchscript.load(path)
    graph = module.inlined_graph
    quantized: Counter[str] = Counter()
    in_float: Counter[str] = Counter()
    activations = set()
    for node in graph.nodes():
        space, _, operator = node.kind().partition("::")
        if operator == "quantize_per_tensor":
            activations.add(_DTYPES[list(node.inputs())[-1].toIValue()])
        if space == "prim" or operator in _COMPUTING_NOTHING:
            continue
        operands = list(node.inputs())[: 2 if operator in _TWO_OPERANDS else 1]
        exact = node.kind() in (*_EIGHT_BIT, _PRODUCT) or all(map(_is_eight_bit, operands))
        (quantized if exact else in_float)[operator] += 1
    return {
        "quantized_ops": dict(quantized),
        "float_ops": dict(in_float),
        "weights": {
            name: _DTYPE_NAMES.get(str(weight.dtype), str(weight.dtype))
            for name, (weight, _) in stored_layers(module).items()
        },
        "activations": sorted(activations),
    }


def unsigned_kernel_support() -> dict[str, Any]:
    """Ask the installed PyTorch whether an integer convolution takes unsigned weights.

    Returns
    -------
    dict
        ``unsigned_weights`` (bool), and for each engine what it ``said``.
    """
    import torch

    said = {}
    with torchscript.deprecations_ignored():
        ones = torch.ones(1, 1, 1, 1)
        weight = torch.quantize_per_tensor(ones, 1.0, 128, torch.quint8)
        image = torch.quantize_per_tensor(ones, 1.0, 0, torch.quint8)
        for name in torch.backends.quantized.supported_engines:
            if name == "none":
                continue
            torch.backends.quantized.engine = name
            try:
                # An engine may accept weights and refuse them only when it runs.
                packed = torch.ops.quantized.conv2d_prepack(
                    weight, torch.zeros(1), [1, 1], [0, 0], [1, 1], 1
                )
                torch.ops.quantized.conv2d(image, packed, 1.0, 0)
            except RuntimeError as error:
                said[name] = str(error).splitlines()[0]
            else:
                said[name] = "accepted"
    torch.backends.quantized.engine = torchscript.ENGINE
    return {"unsigned_weights": "accepted" in said.values(), "said": said}


def _is_eight_bit(value: Any) -> bool:
    """Whether a value is an 8-bit tensor, or comes out of one.

    ``dequantize`` of a float tensor is that tensor, so what goes into it counts as well. The dtype
    of a stored tensor is reported with the weights.
    """
    node = _origin(value)
    if node.kind() != "aten::dequantize":
        return node.kind() in _EIGHT_BIT
    return _origin(next(iter(node.inputs()))).kind() in (*_EIGHT_BIT, "prim::GetAttr")


def _origin(value: Any) -> Any:
    """The node that computed a value, past those that only move values."""
    node = value.node()
    while node.kind() in ("aten::pad", "aten::permute", "aten::flatten"):
        node = next(iter(node.inputs())).node()
    return node


def stored_layers(module: Any) -> dict[str, tuple[Any, Any]]:
    """Weight and bias of every convolution and matrix product of a loaded TorchScript network.

    Parameters
    ----------
    module
        From :func:`resnet8_eval.torchscript.load`.

    Returns
    -------
    dict
        Layer to two tensors: the weight, quantized or not, output channel first, and the bias.
    """
    import torch

    found = {}
    for name, part in module.named_modules():
        if hasattr(part, "_packed_params"):
            weight, bias = torch.ops.quantized.conv2d_unpack(part._packed_params)
        else:
            tensors = {
                **dict(part.named_parameters(recurse=False)),
                **dict(part.named_buffers(recurse=False)),
            }
            weight, bias = tensors.get("weight"), tensors.get("bias")
        if weight is not None:
            found[name.removeprefix("layers.").removesuffix(".kernel")] = (weight, bias)
    return found
