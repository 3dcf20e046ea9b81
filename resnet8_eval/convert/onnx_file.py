"""What an ONNX file says of itself, read before anything computes with it.

ONNX holds no code, but a file may point at other files, take other images, or hold weights that are
no numbers. All of that is said in one sentence here, and not by whatever would stumble over it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval.errors import ModelError

MAX_FILE_BYTES: Final = 64 * 2**20
KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
FOLDED_OPERATORS: Final = {
    "Transpose": 1,
    "Conv": 9,
    "Relu": 7,
    "Add": 3,
    "AveragePool": 1,
    "Reshape": 1,
    "Gemm": 1,
    "Softmax": 1,
}
"""A ResNet8 as tf2onnx writes it, with its batch normalisations folded."""
_WEIGHTED: Final = ("Conv", "Gemm")


def demand_readable(path: Path) -> None:
    """Refuse a file that is no whole ONNX model of CIFAR-10 images, complete in itself.

    Parameters
    ----------
    path
        ONNX model, in float32 or quantized.

    Raises
    ------
    ModelError
        If the file is damaged or too large, refers to another file, has operators or subgraphs
        that no ResNet8 has, takes something else than batches of 32x32 RGB images, or has weights
        that are not finite.
    """
    import onnx

    if path.stat().st_size > MAX_FILE_BYTES:
        raise _refusal(path, f"a file of {path.stat().st_size:,} bytes")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has no public base class for its errors
        raise _refusal(path, f"{type(error).__name__}: {error}") from error
    _demand_simple(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _refusal(path, str(error).splitlines()[0]) from error
    taken = [_shape(value) for value in model.graph.input]
    if taken not in ([(None, 32, 32, 3)], [(None, None, None, None)]):
        raise _refusal(path, f"input of shape {', '.join(map(str, taken))}")
    _demand_finite(model, path)


def demand_resnet8(folded: Path, name: str) -> None:
    """Refuse a network that is not built as a ResNet8; quantization knows no other.

    Parameters
    ----------
    folded
        ONNX model with its batch normalisations folded.
    name
        What the user calls the model.

    Raises
    ------
    ModelError
        If its operators, their settings or its output are not a ResNet8's.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folded)
    _demand_finite(model, folded)
    graph = model.graph
    zero = {t.name for t in graph.initializer if not numpy_helper.to_array(t).any()}
    dead = [n.name for n in graph.node if n.op_type in _WEIGHTED and zero.issuperset(n.input[1:])]
    found = dict(Counter(node.op_type for node in graph.node))
    strange = [node.name or node.op_type for node in graph.node if not _plain(node)]
    outputs = [_shape(value) for value in graph.output]
    for wrong, given in [
        (found != FOLDED_OPERATORS, f"operators: {_counted(found)}"),
        (strange, f"without a bias, in groups or transposed: {', '.join(strange)}"),
        (dead, f"all weights zero: {', '.join(dead)}"),
        (outputs != [(None, 10)], f"output of shape {', '.join(map(str, outputs))}"),
    ]:
        if wrong:
            raise ModelError(
                f"{name} is not a ResNet8, and only that can be quantized.",
                expected=f"after folding: {_counted(FOLDED_OPERATORS)}; output (N, 10)",
                given=given,
                next_step="give the Keras model of a ResNet8, or the ONNX model that `convert`"
                " makes of it",
            )


def _demand_simple(model: Any, path: Path) -> None:
    if model.functions or any(
        attribute.HasField("g") or attribute.graphs
        for node in model.graph.node
        for attribute in node.attribute
    ):
        raise _refusal(path, "functions or subgraphs")
    for node in model.graph.node:
        if node.domain not in KNOWN_DOMAINS:
            raise _refusal(path, f"the custom operator {node.domain}.{node.op_type}")
    for tensor in _tensors(model.graph):
        if tensor.external_data:
            raise _refusal(path, f"data kept in another file, {tensor.name!r}")


def _demand_finite(model: Any, path: Path) -> None:
    from onnx import numpy_helper

    for tensor in _tensors(model.graph):
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise _refusal(path, f"weights that are NaN or infinite, {tensor.name!r}")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _plain(node: Any) -> bool:
    """Whether a weighted node has a bias and the layout that quantization counts on."""
    settings = {entry.name: entry for entry in node.attribute}
    if node.op_type == "Conv":
        return len(node.input) == 3 and ("group" not in settings or settings["group"].i == 1)
    if node.op_type == "Gemm":
        turned = any(settings[name].i for name in ("transA", "transB") if name in settings)
        scaled = any(settings[name].f != 1 for name in ("alpha", "beta") if name in settings)
        return len(node.input) == 3 and not turned and not scaled
    return True


def _shape(value: Any) -> tuple[int | None, ...]:
    """Sizes of an input or output; None where any size is taken."""
    return tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)


def _counted(operators: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(operators.items()))


def _refusal(path: Path, given: str) -> ModelError:
    return ModelError(
        f"{path.name} is not an ONNX model that this suite can judge.",
        expected="one whole .onnx file of standard operators and finite weights, with the single"
        " input (N, 32, 32, 3)",
        given=f"{given}, in {path}",
        next_step="save the network with its weights inside, for batches of any size of 32×32 RGB"
        " images",
    )
