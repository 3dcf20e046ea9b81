"""ONNX Runtime: sessions, static quantization to QDQ models, and what a stored model holds."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval import onnx_graph
from resnet8_eval.backends import Execution, Session, StoredTensor, Tensors, counted
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.configurations import Configuration
from resnet8_eval.environment import is_x86
from resnet8_eval.errors import no_room, unreadable_model
from resnet8_eval.network import Dense, Network, read
from resnet8_eval.preprocess import Images, batches
from resnet8_eval.store import Record

SIGNED_ALLOWED: Final = {"session.qdqisint8allowed": "1"}
"""Entries of a session with integer kernels. Without this one, on x86, ONNX Runtime turns signed
activations into unsigned ones, passes over each tensor that is read twice, and then leaves six of
the nine convolutions of the int8 model in float."""
RUNS_AS_UNSIGNED: Final = "unsigned activations: 128 added to each value and each zero point"
"""See :func:`unsigned`."""
_ENTRIES: Final[dict[Execution, dict[str, str]]] = {
    "kernel": SIGNED_ALLOWED,
    "signed kernel": SIGNED_ALLOWED,
    "reference": {"session.disable_quant_qdq": "1"},
    "default": {},
}
_LITTLE: Final = 16 * 2**20
"""Bytes free. What did not fit is some megabytes, and already gone."""
_WEIGHTED: Final = ("Conv", "Gemm", "MatMul")
_MOVING: Final = ("Transpose", "Reshape", "Flatten", "Relu")
"""Operators that compute nothing new; ReLU is merged into the range that follows it."""


def open_model(path: Path, threads: int, execution: Execution = "kernel") -> Session:
    """Open an ONNX model; see :class:`resnet8_eval.backends.Backend`."""
    session = open_session(path, threads, execution)
    name = session.get_inputs()[0].name
    return Session(
        lambda batch: np.asarray(session.run(None, {name: batch})[0]),
        lambda: int(session.get_session_options().intra_op_num_threads),
    )


def open_session(
    path: Path, threads: int, execution: Execution = "kernel", *, save_to: Path | None = None
) -> Any:
    """Open an ONNX model with ONNX Runtime, on the CPU; ModelError if that refuses it.

    Parameters
    ----------
    threads
        Threads for its operators.
    execution
        ``"kernel"``: integer kernels, the fast ones of this processor: on x86, signed activations
        run as unsigned ones (:func:`unsigned`). ``"signed kernel"``: integer kernels on the model
        as it is stored. ``"reference"``: quantize and dequantize as they are written, with float32
        operators between them. ``"default"``: what a session without any entry makes of the model.
    save_to
        Where to save the graph as ONNX Runtime rewrote it, in the temporary folder.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for name, value in _ENTRIES[execution].items():
        options.add_session_config_entry(name, value)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    try:
        model = unsigned(path) if execution == "kernel" and is_x86() else str(path)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common base class for its errors
        if save_to is not None and shutil.disk_usage(save_to.parent).free < _LITTLE:
            # It does not say why it could not save.
            raise no_room(OSError(errno.ENOSPC, "little is left"), save_to) from error
        raise unreadable_model(path, "onnxruntime", error) from error


def unsigned(path: Path) -> bytes | str:
    """A QDQ model with every signed activation turned into an unsigned one; else its path.

    128 is added to the zero point and, by the quantize step, to every value. Differences from the
    zero point stay what they were, so convolutions and matrix products give the same integers.
    Additions are computed in float. Where a result lies halfway between two integers, ONNX Runtime
    may round it to the other one. The proof of a configuration compares the result with the model
    as it is stored.

    x86 multiplies unsigned by signed bytes. For signed by signed bytes ONNX Runtime has no vector
    kernel on x86, and takes seven to ten times as long (``docs/performance.md``). In a default
    session it makes the same change itself, but not for tensors that are read twice.
    """
    from onnx import numpy_helper

    model = onnx_graph.load_quantized(path)
    graph = model.graph
    stored, readers = onnx_graph.constants(graph), onnx_graph.readers(graph)
    outputs = {entry.name for entry in graph.output}
    moved: dict[str, Any] = {}
    for quantize in graph.node:
        if quantize.op_type != "QuantizeLinear" or "output_dtype" in onnx_graph.settings(quantize):
            continue
        step = [quantize, *readers[quantize.output[0]]]
        zero_points = {node.input[2] if len(node.input) > 2 else "" for node in step}
        name = next(iter(zero_points))
        if (
            len(zero_points) == 1
            and name in stored
            and stored[name].dtype == np.int8
            and all(node.op_type == "DequantizeLinear" for node in step[1:])
            and quantize.output[0] not in outputs
        ):
            if name not in moved:
                zero_point = stored[name].astype(np.int16) + 128
                moved[name] = numpy_helper.from_array(zero_point.astype(np.uint8), f"{name}+128")
            for node in step:
                node.input[2] = moved[name].name
    if not moved:
        return str(path)
    graph.initializer.extend(moved.values())
    # The types that it records for 8-bit tensors between nodes are no longer right.
    del graph.value_info[:]
    return bytes(model.SerializeToString())


def quantize(folded: Path, images: Images, row: Configuration, path: Path, threads: int) -> Record:
    """Quantize with ``quantize_static`` alone; see :class:`resnet8_eval.backends.Backend`.

    As ONNX Runtime's documentation has it: a preprocessed model (`folded` is one), QDQ format, a
    ``CalibrationDataReader``, and defaults for the rest.
    """
    import onnx
    import onnxruntime.quantization as tools

    fed, name = hashlib.sha256(), read(folded).input

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = batches(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            fed.update(batch.data)
            return {name: batch}

    kinds = {"int8": tools.QuantType.QInt8, "uint8": tools.QuantType.QUInt8}
    tools.quantize_static(
        onnx.load(folded),  # given a path, it would write beside it, where others are reading
        path,
        Reader(),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=row.quantized_by.granularity == "per-channel",
        activation_type=kinds[row.activations_dtype],
        weight_type=kinds[row.weights_dtype],
    )
    found = kernels(path, "default")  # a stock model is measured in a default session
    return {
        **census(path),
        "kernels": found,
        "default_kernels": found,
        "fed_sha256": fed.hexdigest(),
    }


def lower(path: Path, row: Configuration, images: Images) -> None:
    """Nothing: a session fuses a stock model itself, and `quantize` counts its kernels."""


def write(parameters: Parameters, row: Configuration, path: Path) -> Record:
    """Quantize with ``onnxruntime.quantization.quantize_static``.

    It is given the ranges as a calibration cache, so that it runs no calibration of its own, and
    the weights' scales as overrides. The matrix product of the last layer is quantized; its
    result, the score, stays in float32, so that no two classes tie.

    Returns
    -------
    dict
        As :func:`census`, and ``kernels``: the operators of the graph as ONNX Runtime runs it here;
        ``default_kernels``: the same in a session that is opened without any of our settings;
        ``runs_as``: what is done to activations before they run as ``kernels``, or None.
    """
    import onnxruntime.quantization as tools

    network = parameters.rounded
    kinds = {"int8": tools.QuantType.QInt8, "uint8": tools.QuantType.QUInt8}
    weight_kind, activation_kind = kinds[row.weights_dtype], kinds[row.activations_dtype]
    zero_point = np.array(128 if row.weights_dtype == "uint8" else 0, row.weights_dtype)
    in_float = [layer.name for layer in network.weighted if layer.weight not in parameters.scales]
    overrides = {
        layer.weight: [
            {
                "quant_type": weight_kind,
                "axis": 1 if isinstance(layer, Dense) else 0,
                "scale": np.float32(scale),
                "zero_point": zero_point,
            }
            for scale in parameters.scales[layer.weight]
        ]
        for layer in network.weighted
        if layer.name not in in_float
    }
    ranges = tools.TensorsData(
        tools.CalibrationMethod.MinMax,
        {
            name: tools.TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in parameters.every_range().items()
        },
    )
    softmax = [node.name for node in network.model.graph.node if node.op_type == "Softmax"]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "ranges.json"
        tools.save_tensors_data(ranges, cache)
        tools.quantize_static(
            network.with_weights({}).model,  # it may change what it is given
            path,
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=activation_kind,
            weight_type=weight_kind,
            calibrate_method=tools.CalibrationMethod.MinMax,
            calibration_cache_path=cache,
            nodes_to_exclude=[*softmax, *in_float],
            extra_options={
                "TensorQuantOverrides": overrides,
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "ForceQuantizeNoInputCheck": True,
                "QDQDisableWeightAdjustForInt32Bias": True,
            },
        )
    shifted = row.activations_dtype == "int8" and is_x86()
    return {
        **census(path),
        "kernels": kernels(path),
        "default_kernels": kernels(path, "default"),
        "runs_as": RUNS_AS_UNSIGNED if shifted else None,
    }


def weights_bytes(path: Path) -> int:
    """Bytes of a model's constants: weights, biases, and the scales of quantized ones."""
    import onnx

    return sum(value.nbytes for value in onnx_graph.constants(onnx.load(path).graph).values())


def census(path: Path) -> Record:
    """Count operators of a stored QDQ model; see :class:`resnet8_eval.backends.Backend`."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    stored, makers = onnx_graph.constants(graph), onnx_graph.makers(graph)
    operators, weights, activations = [], {}, set()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            activations.add(str(stored[node.input[2]].dtype))
        if node.op_type in (*onnx_graph.QUANTIZE_STEPS, *_MOVING):
            continue
        data = list(node.input)[:2] if node.op_type in (*_WEIGHTED, "Add") else [node.input[0]]
        sources = [makers.get(name) for name in data]
        exact = all(
            source is not None and source.op_type == "DequantizeLinear" for source in sources
        )
        operators.append((node.op_type, exact))
        if node.op_type in _WEIGHTED:
            source = sources[1]
            name = source.input[0] if source is not None else node.input[1]
            weights[node.name] = str(stored[name].dtype) if name in stored else "computed"
    return counted(operators, model.producer_name, weights, activations)


def kernels(path: Path, execution: Execution = "kernel") -> dict[str, int]:
    """Count the operators of a model's graph as ONNX Runtime optimizes it for this processor.

    Such as ``{"QLinearConv": 9, ...}``; `execution` is as for :func:`open_session`.
    """
    return dict(Counter(node.op_type for node in _optimized(path, execution).graph.node))


def _optimized(path: Path, execution: Execution) -> Any:
    """A model as ONNX Runtime rewrites it for this processor."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, 1, execution, save_to=optimized)
        return onnx.load(optimized)


def read_back(path: Path, network: Network) -> list[StoredTensor]:
    """Read a stored QDQ model; see :class:`resnet8_eval.backends.Backend`."""
    graph = onnx_graph.load_quantized(path).graph
    constants, makers = onnx_graph.constants(graph), onnx_graph.makers(graph)
    readers, found = onnx_graph.readers(graph), []
    for node in graph.node:
        using = readers[node.output[0]]
        constant = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if node.op_type != "QuantizeLinear" and not (constant and using):
            continue
        scale, zero_point = (constants[name] for name in node.input[1:3])
        axis, dtype = onnx_graph.settings(node).get("axis", 1), str(zero_point.dtype)
        along = axis if scale.ndim else None
        if not constant:
            # What all its steps hold: it may be taken from its integers by others than into them.
            steps = [node, *(each for each in using if each.op_type in onnx_graph.QUANTIZE_STEPS)]
            held = ((constants[name].ravel() for name in step.input[1:3]) for step in steps)
            pairs = [(float(s), int(z)) for parts in held for s, z in zip(*parts, strict=True)]
            scales, zeros = zip(*dict.fromkeys(pairs), strict=True)
            found.append(
                StoredTensor(node.input[0], "activation", dtype, along, [*scales], [*zeros])
            )
            continue
        reader, integers = using[-1], constants[node.input[0]].astype(np.int64)
        maker = makers.get(reader.input[1])
        weight = reader.input[1] if maker is None else maker.input[0]
        name = weight.removesuffix("_quantized")
        grid = scale.ravel().tolist(), zero_point.ravel().tolist()
        if node.output[0] == reader.input[1]:
            output_axis = 1 if reader.op_type == "Gemm" else 0
            less = onnx_graph.along_axis(node, zero_point.astype(np.int64), integers.ndim)
            values = np.moveaxis(integers - less, output_axis, 0)
            wrong_axis = bool(scale.size > 1 and axis != output_axis)
            found.append(StoredTensor(name, "weight", dtype, along, *grid, values, wrong_axis))
        else:
            values = (integers - zero_point) * scale.astype(np.float64)
            found.append(StoredTensor(name, "bias", dtype, along, *grid, values))
    return found


def signed_weights(path: Path) -> int:
    """Largest magnitude of the int8 weights that a stored model's kernels multiply by.

    They are those of the graph as ONNX Runtime rewrites it, so that models of any tool are covered,
    in QDQ or QOperator format, with weights in initializers, ``Constant`` nodes or made by a
    quantize step. What nothing reads is not in it. Nor counts a weight that is dequantized first or
    multiplied by signed activations: such kernels add in 32 bits.
    """
    graph = _optimized(path, "kernel").graph
    readers, constants = onnx_graph.readers(graph), onnx_graph.constants(graph)

    def multiplies(node: Any) -> bool:
        """By unsigned activations: their zero point is the third input of each such kernel."""
        zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
        signed = zero_point is not None and zero_point.dtype == np.int8
        return not signed and any(part in node.op_type for part in _WEIGHTED)

    magnitudes = (
        int(np.abs(values.astype(np.int16)).max(initial=0))
        for name, values in constants.items()
        if values.dtype == np.int8
        and values.ndim > 1
        and any(multiplies(node) for node in readers[name])
    )
    return max(magnitudes, default=0)


def tensors(
    path: Path, parameters: Parameters, row: Configuration, images: Images, threads: int
) -> Iterator[Tensors]:
    """Yield outputs of the stored model's layers; see :class:`resnet8_eval.backends.Backend`.

    They are computed in reference arithmetic, because a tensor that is also an output cannot stay
    inside an integer kernel.
    """
    import onnx

    model = onnx.load(path)
    quantized, dequantized = (
        {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == kind}
        for kind in onnx_graph.QUANTIZE_STEPS
    )
    names = [layer.output for layer in parameters.exact.weighted]
    seen = [dequantized[quantized[name]] if name in quantized else name for name in names]
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in seen
    )
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / "exposed.onnx"
        onnx.save(model, exposed)
        session = open_session(exposed, threads, "reference")
    feed = session.get_inputs()[0].name
    for batch in batches(images):
        yield dict(zip(names, session.run(None, {feed: batch}), strict=True))
