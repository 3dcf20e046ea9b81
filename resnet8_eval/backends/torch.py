"""PyTorch: running, static quantization to TorchScript, and what a stored model holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.backends import (
    Execution,
    Session,
    StoredTensor,
    Tensors,
    counted,
    torch_program,
    torchscript,
)
from resnet8_eval.backends.torch_program import COMPUTING_NOTHING, TWO_OPERANDS, dtype_name
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.configurations import Configuration
from resnet8_eval.errors import ModelError, unreadable_model
from resnet8_eval.network import Network
from resnet8_eval.onnx_graph import module_name
from resnet8_eval.preprocess import BATCH_SIZE, Images, batches
from resnet8_eval.store import Record

_PRODUCT: Final = "onednn::qlinear_pointwise"
_EIGHT_BIT: Final = frozenset(
    {
        "aten::quantize_per_tensor",
        "aten::_make_per_tensor_quantized_tensor",
        *(f"quantized::{name}" for name in ("conv2d", "conv2d_relu", "add", "add_relu")),
    }
)
_DTYPES: Final = {12: "int8", 13: "uint8"}
"""c10::ScalarType of qint8 and quint8, as a TorchScript graph has them."""


def open_model(path: Path, threads: int, execution: Execution = "kernel") -> Session:
    """Open a ``.pt2`` or ``.pt`` file; see :class:`resnet8_eval.backends.Backend`."""
    import torch

    torch.set_num_threads(threads)
    torchscript.demand_network(path)
    try:
        module = (
            torch_program.load(path).module() if path.suffix == ".pt2" else torchscript.load(path)
        )
    except Exception as error:  # zip, JSON and TorchScript readers each raise their own
        raise unreadable_model(path, "torch", error) from error

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        # OpenMP has a number for each thread that calls it; this sets it to the one set above.
        torch.get_num_threads()
        with torch.inference_mode():
            scores = module(torch.from_numpy(batch))
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"the network gives a {type(scores).__name__}, not one tensor")
        return np.asarray(scores.numpy())

    return Session(run, torch.get_num_threads)


def quantize(folded: Path, images: Images, row: Configuration, path: Path, threads: int) -> Record:
    """Quantize with torchao's PT2E flow; see :class:`resnet8_eval.backends.Backend`.

    As torchao's documentation has it: export, ``prepare_pt2e`` with the quantizer for x86 and its
    default configuration, calibrate, ``convert_pt2e``. For unsigned weights the same quantizer is
    given a specification of unsigned 8 bits. The result computes in reference arithmetic, and is
    saved as an exported program.

    Returns
    -------
    dict
        As the protocol says; also ``support`` for unsigned weights (see
        :func:`unsigned_kernel_support`), and ``observed``, the scale and zero point that each
        observer of activations came to.
    """
    import torch

    with torchscript.deprecations_ignored():
        from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    from resnet8_eval.convert import onnx_to_torch

    torch.set_num_threads(threads)
    configuration = x86.get_default_x86_inductor_quantization_config()
    weight, unsigned = configuration.weight, row.weights_dtype == "uint8"
    if unsigned:
        weight = replace(weight, dtype=torch.uint8, quant_min=0, quant_max=255)
    if row.quantized_by.granularity == "per-tensor":
        weight = replace(
            weight,
            qscheme=torch.per_tensor_symmetric,
            ch_axis=None,
            observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12),
        )
    configuration = replace(configuration, weight=weight)
    quantizer = x86.X86InductorQuantizer().set_global(configuration)
    fed = hashlib.sha256()
    with torchscript.deprecations_ignored():
        exported = onnx_to_torch.export_program(onnx_to_torch.convert(folded)).module()
        module = prepare_pt2e(exported, quantizer)
        # What the observers see, not what a loop meant to show them: no later check of PyTorch's
        # ranges would notice that images were left out.
        hook = module.register_forward_pre_hook(lambda _, given: fed.update(given[0].numpy().data))
        for batch in batches(images):
            module(torch.from_numpy(batch))
        hook.remove()
        observed = [
            [part.item() for part in observer.calculate_qparams()]
            for observer in module.modules()
            if isinstance(observer, HistogramObserver)
        ]
        onnx_to_torch.export(convert_pt2e(module), path)
    return {
        **census(path),
        "fed_sha256": fed.hexdigest(),
        "observed": observed,
        "support": unsigned_kernel_support() if unsigned else None,
    }


def lower(path: Path, row: Configuration, images: Images) -> Record | None:
    """Try torchao's own lowering; see :class:`resnet8_eval.backends.Backend`.

    It is compiled, which takes some ten seconds.
    """
    if row.weights_dtype == "uint8":
        return None  # no integer kernel takes such weights
    import torch

    with torchscript.deprecations_ignored():
        from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

        example = (torch.from_numpy(next(batches(images[-BATCH_SIZE:]))),)
        with torch.inference_mode():
            expected = torch_program.load(path).module()(*example).argmax(1)
        try:
            lowered = lower_pt2e_quantized_to_x86(torch_program.load(path).module(), example)
            with torch.inference_mode():
                found = lowered(*example).argmax(1)
        except Exception as error:  # inductor raises whatever the part that failed raised
            return {"images": len(expected), "differing": None, "said": str(error).splitlines()[0]}
    return {"images": len(expected), "differing": int((found != expected).sum()), "said": None}


def write(
    parameters: Parameters, row: Configuration, path: Path, levels: Mapping[str, int] = {}
) -> Record:
    """Build a quantized network and save it as TorchScript, for ``torch.jit.load``.

    Parameters
    ----------
    levels
        Map to the largest integer of its grid, where that is not 255.

    Returns
    -------
    dict
        As :func:`census`, ``engine``, and ``support`` (see :func:`unsigned_kernel_support`).
    """
    kernels = row.execution == "kernel"
    torchscript.save(_network(parameters, row, levels), path)
    return {
        **census(path),
        "engine": torchscript.engine() if kernels else None,
        "support": None if kernels else unsigned_kernel_support(),
    }


def _network(parameters: Parameters, row: Configuration, levels: Mapping[str, int] = {}) -> Any:
    import torch

    from resnet8_eval.backends.torch_network import QuantizedNetwork

    kernels = row.execution == "kernel"
    if kernels:
        torch.backends.quantized.engine = torchscript.engine()
    dtype = torch.quint8 if row.weights_dtype == "uint8" else torch.qint8
    with torchscript.deprecations_ignored():
        return QuantizedNetwork(parameters, dtype, kernels=kernels, levels=levels).eval()


def weights_bytes(path: Path) -> int:
    """Bytes of the weights, scales and biases that the network reads.

    torchao keeps others beside them.
    """
    if path.suffix == ".pt2":
        held = torch_program.constants(path)
    else:
        held = [part for pair in _stored_layers(torchscript.load(path)).values() for part in pair]
        quantized = [part for part in held if part.is_quantized]
        held += [part.q_per_channel_scales() for part in quantized]
        held += [part.q_per_channel_zero_points() for part in quantized]
    return sum(part.numel() * part.element_size() for part in held)


def census(path: Path) -> Record:
    """Count operators of a TorchScript model; see :class:`resnet8_eval.backends.Backend`."""
    if path.suffix == ".pt2":
        return torch_program.census(path)
    module = torchscript.load(path)
    graph, operators, activations = module.inlined_graph, [], set()
    for node in graph.nodes():
        space, _, operator = node.kind().partition("::")
        if operator == "quantize_per_tensor":
            activations.add(_DTYPES[list(node.inputs())[-1].toIValue()])
        if space == "prim" or operator in COMPUTING_NOTHING:
            continue
        operands = list(node.inputs())[: 2 if operator in TWO_OPERANDS else 1]
        exact = node.kind() in (*_EIGHT_BIT, _PRODUCT) or all(map(_is_eight_bit, operands))
        operators.append((operator, exact))
    weights = {
        name: dtype_name(weight.dtype) for name, (weight, _) in _stored_layers(module).items()
    }
    return counted(operators, "TorchScript", weights, activations)


def unsigned_kernel_support() -> dict[str, Any]:
    """Ask the installed PyTorch whether an integer convolution takes unsigned weights.

    Returns ``unsigned_weights`` (bool), and for each engine what it ``said``.
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
    torch.backends.quantized.engine = torchscript.engine()
    return {"unsigned_weights": "accepted" in said.values(), "said": said}


def _is_eight_bit(value: Any) -> bool:
    """Whether a value is 8-bit, or what ``dequantize`` makes of one or of a stored tensor."""
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


def _stored_layers(module: Any) -> dict[str, tuple[Any, Any]]:
    """Weight, output channel first, and bias of each layer of a loaded network."""
    import torch

    found = {}
    for name, part in module.named_modules():
        if hasattr(part, "_packed_params"):
            weight, bias = torch.ops.quantized.conv2d_unpack(part._packed_params)
        else:
            weight, bias = (getattr(part, kind, None) for kind in ("weight", "bias"))
        if weight is not None:
            found[name.removeprefix("layers.").removesuffix(".kernel")] = (weight, bias)
    return found


def read_back(path: Path, network: Network) -> list[StoredTensor]:
    """Read a TorchScript model; see :class:`resnet8_eval.backends.Backend`.

    A TorchScript graph does not name its tensors. It computes them in the order of the network's
    layers, the input first.
    """
    if path.suffix == ".pt2":
        return torch_program.read_back(path, network)
    module = torchscript.load(path)
    layers = _stored_layers(module)
    found = []
    for place, layer in enumerate(network.weighted):
        weight, bias = layers[module_name(place, layer.name)]
        if weight.is_quantized:
            parts = weight.int_repr(), weight.q_per_channel_scales()
            arrays = [part.numpy() for part in (*parts, weight.q_per_channel_zero_points())]
            axis, kind = weight.q_per_channel_axis(), dtype_name(weight.dtype)
            found.append(torch_program.stored_weight(layer.weight, kind, axis, *arrays))
        found.append(torch_program.stored_bias(layer.weight, bias))
    grids: list[tuple[str, float, int]] = []
    for node in module.inlined_graph.nodes():
        inputs = list(node.inputs())
        operator = node.kind().partition("::")[2]
        if operator in ("quantize_per_tensor", "_make_per_tensor_quantized_tensor"):
            grids.append(("uint8", *(value.toIValue() for value in inputs[1:3])))
        elif node.kind().startswith("quantized::"):
            grids.append(("uint8", *(value.toIValue() for value in inputs[2:4])))
        elif operator == "clamp":  # 8 bits hold the integers of fewer
            _, scale, zero_point = grids[-1]
            levels = round(inputs[2].toIValue() / scale) + zero_point
            grids[-1] = (f"uint{levels.bit_length()}", scale, zero_point)
    names = [network.input, *(layer.output for layer in network.maps)]
    for name, (dtype, scale, zero_point) in zip(names, grids, strict=True):
        grid = [float(scale)], [int(zero_point)]
        found.append(StoredTensor(name, "activation", dtype, None, *grid))
    return found


def signed_weights(path: Path) -> int:
    """As in :class:`resnet8_eval.backends.Backend`; an exported program has no integer kernels."""
    if path.suffix == ".pt2":
        return 0
    import torch

    weights = (_unpacked(held, path) for held in _held(torchscript.load(path)))
    kept = (w.int_repr().short() for w in weights if w.is_quantized and w.dtype == torch.qint8)
    return max((int(integers.abs().max()) for integers in kept), default=0)


def _held(module: Any) -> list[Any]:
    """The tensors and packed parameters that a network reads, whoever made it.

    ``torch.jit.freeze`` moves them from the layers into the graph.
    """
    import torch

    graph = module.inlined_graph  # what is taken from it lives no longer than it
    values = {next(graph.inputs()).debugName(): module}
    for node in graph.findAllNodes("prim::GetAttr"):
        whose = values.get(next(node.inputs()).debugName())
        if whose is not None:  # else of an object that the network makes while it runs
            values[node.output().debugName()] = getattr(whose, node.s("name"))
    inside = (node.output().toIValue() for node in graph.findAllNodes("prim::Constant"))
    found = (*values.values(), *inside)
    return [value for value in found if isinstance(value, torch.Tensor | torch.ScriptObject)]


def _unpacked(held: Any, path: Path) -> Any:
    """A tensor, or the weight in a layer's packed parameters; ModelError if none is known there."""
    import torch

    if isinstance(held, torch.Tensor):
        return held
    unpack = {
        "quantized.Conv2dPackedParamsBase": torch.ops.quantized.conv2d_unpack,
        "quantized.LinearPackedParamsBase": torch.ops.quantized.linear_unpack,
    }
    kind = held._type().qualified_name().removeprefix("__torch__.torch.classes.")
    if kind not in unpack:
        raise ModelError(
            f"{path.name} holds weights that cannot be read.",
            expected=" or ".join(unpack),
            given=kind,
            next_step="save the network with convolutions of maps and linear layers alone",
        )
    return unpack[kind](held)[0]


def tensors(
    path: Path, parameters: Parameters, row: Configuration, images: Images, threads: int
) -> Iterator[Tensors]:
    """Yield outputs of the network's layers; see :class:`resnet8_eval.backends.Backend`.

    TorchScript shows no tensor from inside, so the network is built again from its parameters.
    """
    import torch

    torch.set_num_threads(threads)
    module, names = _network(parameters, row), [y.output for y in parameters.exact.weighted]
    for batch in batches(images):
        with torch.inference_mode(), torchscript.deprecations_ignored():
            found = module.tensors(torch.from_numpy(batch))
        yield {name: found[name].dequantize().numpy() for name in names}
