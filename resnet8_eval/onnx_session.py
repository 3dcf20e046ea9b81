"""ONNX Runtime sessions: with its integer kernels, or in reference arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from resnet8_eval.environment import is_x86
from resnet8_eval.errors import unreadable_model

Execution = Literal["kernel", "signed kernel", "reference", "default"]

SIGNED_ALLOWED: Final = {"session.qdqisint8allowed": "1"}
"""Entries of a session with integer kernels. Without this one, on x86, ONNX Runtime turns signed
activations into unsigned ones, passes over each tensor that is read twice, and then leaves six of
the nine convolutions of the int8 model in float."""
_REFERENCE: Final = {"session.disable_quant_qdq": "1"}
_ENTRIES: Final[dict[Execution, dict[str, str]]] = {
    "kernel": SIGNED_ALLOWED,
    "signed kernel": SIGNED_ALLOWED,
    "reference": _REFERENCE,
    "default": {},
}


def open_session(
    path: Path, threads: int, execution: Execution = "kernel", *, save_to: Path | None = None
) -> Any:
    """Open an ONNX model with ONNX Runtime.

    Parameters
    ----------
    path
        ONNX model.
    threads
        Threads for its operators.
    execution
        ``"kernel"``: integer kernels, the fast ones of this processor: on x86, signed activations
        run as unsigned ones (:func:`unsigned`). ``"signed kernel"``: integer kernels on the model
        as it is stored. ``"reference"``: quantize and dequantize as they are written, with float32
        operators between them. ``"default"``: what a session without any entry makes of the model.
    save_to
        Where to save the graph as ONNX Runtime rewrote it.

    Returns
    -------
    onnxruntime.InferenceSession
        On the CPU.

    Raises
    ------
    ModelError
        If ONNX Runtime refuses the model.
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
        raise unreadable_model(path, "onnxruntime", error) from error


def unsigned(path: Path) -> bytes | str:
    """A QDQ model with every signed activation turned into an unsigned one.

    128 is added to the zero point and, by the quantize step, to every value. Differences from the
    zero point stay what they were, so convolutions and matrix products give the same integers.
    Additions are computed in float, and of two values that are equally near ONNX Runtime may take
    another; the proof of a configuration holds the result against the model as it is stored.

    x86 multiplies unsigned with signed bytes; for signed with signed ones ONNX Runtime has no
    vector kernel there, and needs nine times as long (``docs/performance.md``). It does the same
    itself in a default session, but not with tensors that are read twice.

    Parameters
    ----------
    path
        ONNX model; nothing is written.

    Returns
    -------
    bytes or str
        The model; `path` where it has no signed activations.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph
    stored = {entry.name: entry for entry in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {entry.name for entry in graph.output}
    moved: dict[str, onnx.TensorProto] = {}
    for quantize in graph.node:
        if quantize.op_type != "QuantizeLinear" or quantize.output[0] in outputs:
            continue
        if any(attribute.name == "output_dtype" for attribute in quantize.attribute):
            continue
        step = [quantize, *readers.get(quantize.output[0], ())]
        zero_points = {node.input[2] if len(node.input) > 2 else "" for node in step}
        name = next(iter(zero_points))
        if (
            len(zero_points) == 1
            and name in stored
            and stored[name].data_type == onnx.TensorProto.INT8
            and all(node.op_type == "DequantizeLinear" for node in step[1:])
        ):
            if name not in moved:
                zero_point = numpy_helper.to_array(stored[name]).astype(np.int16) + 128
                moved[name] = numpy_helper.from_array(zero_point.astype(np.uint8), f"{name}+128")
            for node in step:
                node.input[2] = moved[name].name
    if not moved:
        return str(path)
    graph.initializer.extend(moved.values())
    # What it says of 8-bit tensors between nodes is no longer so.
    del graph.value_info[:]
    return bytes(model.SerializeToString())
