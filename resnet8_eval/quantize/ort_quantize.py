"""Static quantization with ONNX Runtime, in QDQ format."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from resnet8_eval.environment import is_x86
from resnet8_eval.onnx_session import Execution, open_session
from resnet8_eval.quantize.parameters import Parameters
from resnet8_eval.quantize.recipes import Recipe
from resnet8_eval.store import Record

_WEIGHTED: Final = ("Conv", "Gemm", "MatMul")
_MOVING: Final = frozenset({"Transpose", "Reshape", "Flatten", "Relu"})
"""Operators that compute nothing new; ReLU is merged into the range that follows it."""
RUNS_AS_UNSIGNED: Final = "unsigned activations: 128 added to each value and each zero point"
"""See :func:`resnet8_eval.onnx_session.unsigned`."""


def quantize(parameters: Parameters, recipe: Recipe, path: Path) -> Record:
    """Quantize with ``onnxruntime.quantization.quantize_static``.

    The ranges come to it as its own calibration cache, so it runs no calibration of its own, and
    the weights' scales as overrides. The matrix product of the last layer is quantized; its
    result, the score, stays in float32, so that no two classes tie.

    Parameters
    ----------
    parameters
        From calibration.
    recipe
        A recipe of framework ``"onnxruntime"``.
    path
        Where to write the ONNX model.

    Returns
    -------
    dict
        As :func:`census`, and ``kernels``: the operators of the graph as ONNX Runtime runs it here;
        ``default_kernels``: the same in a session that is opened without any of our settings;
        ``runs_as``: what is done to activations before the former, or None.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        TensorData,
        TensorsData,
        quantize_static,
        save_tensors_data,
    )

    model = onnx.load(parameters.model)
    unsigned = recipe.weights_dtype == "uint8"
    kind = QuantType.QUInt8 if unsigned else QuantType.QInt8
    zero_point = np.array(128, np.uint8) if unsigned else np.array(0, np.int8)
    weighted = [node for node in model.graph.node if node.op_type in _WEIGHTED]
    overrides = {
        node.input[1]: [
            {
                "quant_type": kind,
                "axis": 1 if node.op_type == "Gemm" else 0,
                "scale": np.float32(scale),
                "zero_point": zero_point,
            }
            for scale in parameters.scales[node.input[1]]
        ]
        for node in weighted
    }
    ranges = TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in parameters.activations.items()
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "ranges.json"
        save_tensors_data(ranges, cache)
        quantize_static(
            model,
            path,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=kind,
            weight_type=kind,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=cache,
            nodes_to_exclude=[n.name for n in model.graph.node if n.op_type == "Softmax"],
            extra_options={
                "TensorQuantOverrides": overrides,
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "ForceQuantizeNoInputCheck": True,
                "QDQDisableWeightAdjustForInt32Bias": True,
            },
        )
    shifted = recipe.activations_dtype == "int8" and is_x86()
    return {
        **census(path),
        "kernels": kernels(path),
        "default_kernels": kernels(path, "default"),
        "runs_as": RUNS_AS_UNSIGNED if shifted else None,
    }


def census(path: Path) -> Record:
    """Count what a stored QDQ model computes between quantized tensors and what in float.

    Parameters
    ----------
    path
        An ONNX file.

    Returns
    -------
    dict
        ``quantized_ops`` and ``float_ops``, operator to count (an operator is quantized if every
        tensor that it computes with comes out of a DequantizeLinear); ``weights``, layer to the
        dtype that its weight is stored in; ``activations``, the dtypes that activations are
        quantized to.
    """
    import onnx

    graph = onnx.load(path).graph
    stored = {entry.name: entry for entry in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    quantized: Counter[str] = Counter()
    in_float: Counter[str] = Counter()
    weights, activations = {}, set()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            activations.add(_dtype(stored[node.input[2]]))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type in _MOVING:
            continue
        data = list(node.input)[:2] if node.op_type in (*_WEIGHTED, "Add") else [node.input[0]]
        sources = [makers.get(name) for name in data]
        exact = all(
            source is not None and source.op_type == "DequantizeLinear" for source in sources
        )
        (quantized if exact else in_float)[node.op_type] += 1
        if node.op_type in _WEIGHTED:
            source = sources[1]
            name = source.input[0] if source is not None else node.input[1]
            weights[node.name] = _dtype(stored[name]) if name in stored else "computed"
    return {
        "quantized_ops": dict(quantized),
        "float_ops": dict(in_float),
        "weights": weights,
        "activations": sorted(activations),
    }


def kernels(path: Path, execution: Execution = "kernel") -> dict[str, int]:
    """Count the operators of a model's graph as ONNX Runtime optimizes it for this processor.

    Parameters
    ----------
    path
        An ONNX file.
    execution
        How the session is opened; see :func:`resnet8_eval.onnx_session.open_session`.

    Returns
    -------
    dict
        Operator to count, such as ``{"QLinearConv": 9, ...}``.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, 1, execution, save_to=optimized)
        return dict(Counter(node.op_type for node in onnx.load(optimized).graph.node))


def _dtype(tensor: Any) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
