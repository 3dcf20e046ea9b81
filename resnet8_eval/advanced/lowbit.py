"""A network of 4 and 8 bits, stored as ONNX.

Weights of 4 bits are stored as INT4, two in a byte, with a DequantizeLinear behind them (opset 21);
the others as INT8. Maps pass through UINT4 or UINT8, and biases are int32 in steps of the sum. A
plain session of ONNX Runtime computes layers of 8 bits in integers, and the others in float32
between dequantize and quantize steps.

2 bits are left out. ONNX has INT2, and ONNX Runtime 1.32 dequantizes it; but a plain session takes
a convolution with such weights for one of 8 bits, and then refuses its own graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import backends, onnx_graph, proof
from resnet8_eval.advanced.bits import Bits, largest, limit
from resnet8_eval.analysis import compare
from resnet8_eval.backends import StoredTensor
from resnet8_eval.calibrate.parameters import Parameters, grid
from resnet8_eval.checks import Check, equal
from resnet8_eval.configurations import Configuration
from resnet8_eval.evaluate import probabilities
from resnet8_eval.inputs import Labelled
from resnet8_eval.integers import ExactNetwork
from resnet8_eval.network import Convolution, Dense, output_first
from resnet8_eval.store import Record, file_sha256

OPSET: Final = 21
IR_VERSION: Final = 10
"""The first that have 4 bits."""
ROW: Final = Configuration("onnxruntime", "int8", "int8", "uint8")
"""What stored integers stand for, of however many bits."""


def write(parameters: Parameters, bits: Bits, path: Path) -> None:
    """Write a network as ONNX with the bits that each layer has, 4 or 8.

    The integers of `parameters` lie within the limit of their bits, and its ranges are those that
    the activations' bits span.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter

    network = parameters.rounded
    model = version_converter.convert_version(network.with_weights({}).model, OPSET)
    model.ir_version = IR_VERSION
    graph = model.graph
    biases, widths = whole_biases(parameters, bits), {**bits.activations, network.input: 8}
    written = {name for layer in network.weighted for name in (layer.weight, layer.bias)}
    kept = [entry for entry in graph.initializer if entry.name not in written]
    steps: dict[str, list[Any]] = {}
    renamed: dict[str, str] = {}

    def constant(name: str, array: Any, kind: int) -> str:
        typed = np.asarray(array, helper.tensor_dtype_to_np_dtype(kind))
        kept.append(numpy_helper.from_array(typed, name))
        return name

    def dequantize(name: str, scale: Any, zero_point: Any, kind: int, axis: int | None) -> Any:
        inputs = [
            f"{name}_quantized",
            constant(f"{name}_scale", scale, TensorProto.FLOAT),
            constant(f"{name}_zero_point", zero_point, kind),
        ]
        renamed[name] = f"{name}_dequantized"
        return helper.make_node("DequantizeLinear", inputs, [renamed[name]], axis=axis)

    for name, (low, high) in parameters.activations.items():
        kind = {4: TensorProto.UINT4, 8: TensorProto.UINT8}[widths[name]]
        back = dequantize(name, *grid(low, high, largest(widths[name])), kind, None)
        quantized, *on_grid = back.input
        steps[name] = [helper.make_node("QuantizeLinear", [name, *on_grid], [quantized]), back]
    nodes = []
    for layer in network.weighted:
        narrow, axis = bits.weights[layer.weight] == 4, int(isinstance(layer, Dense))
        integers = output_first(layer, parameters.integers[layer.weight])
        scale = parameters.scales[layer.weight]
        for name, values, step, kind, along in (
            (layer.weight, integers, scale, TensorProto.INT4 if narrow else TensorProto.INT8, axis),
            (layer.bias, *biases[layer.bias], TensorProto.INT32, 0),
        ):
            constant(f"{name}_quantized", values, kind)
            nodes.append(dequantize(name, step, np.zeros(len(step)), kind, along))
    # A plain session makes an 8-bit kernel of these, and then refuses it for the types of its maps.
    # An operator that changes nothing, but that it does not know for one, keeps it from that.
    apart = {
        layer.name
        for layer in network.weighted
        if isinstance(layer, Convolution)
        and bits.weights[layer.weight] == 8
        and widths.get(layer.inputs[0], 8) == widths[layer.output] == 4
    }
    lowest = constant("lowest", np.finfo(np.float32).min, TensorProto.FLOAT)
    nodes += steps.pop(network.input)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        (name,) = node.output
        if node.name in apart:
            node.output[0] = f"{name}_sum"
            nodes.append(helper.make_node("Max", [node.output[0], lowest], [name]))
        nodes += steps.pop(name, ())
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def whole_biases(
    parameters: Parameters, bits: Bits
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float32]]]:
    """Each bias as whole steps of its layer's sum, and that step, which is input x weight scale.

    With few bits such a step is coarse. A file with float32 biases would not be spared it: a plain
    session of ONNX Runtime rounds them so when it opens the file.
    """
    network = parameters.rounded
    values, widths = network.constants(), {**bits.activations, network.input: 8}
    found = {}
    for layer in network.weighted:
        name = network.moved.get(layer.inputs[0], layer.inputs[0])
        scale, _ = grid(*parameters.activations[name], largest(widths[name]))
        step = np.float32(scale) * parameters.scales[layer.weight]
        found[layer.bias] = np.rint(values[layer.bias] / step.astype(np.float64)), step
    return found


def with_whole_biases(parameters: Parameters, bits: Bits) -> Parameters:
    """The same parameters with every bias on the grid that it is stored on."""
    rounded = {name: w * s for name, (w, s) in whole_biases(parameters, bits).items()}
    return replace(parameters, rounded=parameters.rounded.with_weights(rounded))


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes that an ONNX file holds for each weight, dequantized or float32, as they lie in it."""
    import onnx

    graph = onnx.load(path).graph
    stored = {entry.name: entry for entry in graph.initializer}
    makers = onnx_graph.makers(graph)
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            maker = makers.get(node.input[1])
            entry = stored[maker.input[0] if maker else node.input[1]]
            found[entry.name.removesuffix("_quantized")] = len(entry.raw_data)
    return found


def judge(
    path: Path,
    parameters: Parameters,
    bits: Bits,
    test: Labelled,
    baseline: NDArray[np.float32],
    out: Path,
    threads: int,
) -> Record:
    """Score a stored network with plain ONNX Runtime, and hold it against what was decided.

    `parameters` and `bits` were decided; `baseline` are float32 scores (N, 10). The network's own
    scores are kept in `out`.

    Returns
    -------
    dict
        As :class:`resnet8_eval.advanced_record.LowBit`, with ``checks``; ``weights_bytes`` are
        those of the weights alone.
    """
    from resnet8_eval.backends import onnxruntime

    network = parameters.exact
    stored = onnxruntime.read_back(path, network)
    scores = backends.scores(path, test.images, threads=threads, execution="default")
    try:
        exact = ExactNetwork(network, stored, "onnxruntime").scores(test.images)
        disagreements = int((scores.argmax(axis=1) != exact.argmax(axis=1)).sum())
        furthest = float(np.abs(probabilities(scores) - probabilities(exact)).max())
    except KeyError:  # something is not stored as integers, as the checks say
        disagreements, furthest = len(scores), 1.0
    np.save(out / "scores.npy", scores)
    beside, sizes = compare(scores, baseline, test.labels), weight_bytes(path)
    correct = int((scores.argmax(axis=1) == test.labels).sum())
    return {
        "correct": correct,
        "total": len(scores),
        "accuracy_percent": 100 * correct / len(scores),
        **beside,
        "size_bytes": path.stat().st_size,
        "weights_bytes": sum(sizes.values()),
        "model_sha256": file_sha256(path),
        "exact_integers": {
            "disagreements": disagreements,
            "total": len(scores),
            "largest_difference": furthest,
        },
        "checks": compare_stored(stored, parameters, bits, sizes),
    }


def compare_stored(
    stored: Sequence[StoredTensor],
    parameters: Parameters,
    bits: Bits,
    sizes: Mapping[str, int],
) -> list[Check]:
    """Hold what a file stores against the bits and parameters that were decided."""
    integers = parameters.integers
    weights = [entry for entry in stored if entry.kind == "weight"]
    packed = [-(-v.size * bits.weights[name] // 8) for name, v in integers.items()]
    return [
        _types("weights", "int", bits.weights, weights),
        map_types(stored, bits),
        equal("bytes of the stored weights", packed, [sizes.get(name, 0) for name in integers]),
        equal(
            "weights with integers beyond their bits",
            [],
            [
                e.name
                for e in weights
                if e.name not in bits.weights
                or np.abs(np.asarray(e.values)).max(initial=0) > limit(bits.weights[e.name])
            ],
        ),
        *proof.compare(stored, parameters, ROW, bits.levels()),
    ]


def map_types(stored: Sequence[StoredTensor], bits: Bits) -> Check:
    """Hold the types of stored maps against their bits."""
    maps = [entry for entry in stored if entry.kind == "activation"]
    return _types("maps", "uint", bits.activations, maps)


def _types(what: str, kind: str, bits: Mapping[str, int], stored: Sequence[StoredTensor]) -> Check:
    found = {entry.name: entry.dtype for entry in stored}
    return equal(
        f"types of the stored {what}",
        [f"{kind}{width}" for width in bits.values()],
        [found.get(name, "none") for name in bits],
    )
