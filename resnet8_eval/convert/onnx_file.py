"""What an ONNX file says of itself, read before anything computes with it.

ONNX holds no code, but a file may point at other files, take other images, or hold weights that are
not numbers. Each is refused here in one sentence, before some later step stumbles over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval import onnx_graph
from resnet8_eval.errors import ModelError

MAX_FILE_BYTES: Final = 64 * 2**20
_IMAGE: Final = (32, 32, 3)
_OPSETS: Final = (13, 18)
"""From the first with a scale for each channel to the last that onnx2torch reads whole."""
KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
KNOWN_PARTS: Final = frozenset(
    f"onnx.{message}.{field}"
    for message, fields in {
        "ModelProto": ("graph", "opset_import", "metadata_props"),
        "GraphProto": ("initializer", "input", "node", "output", "value_info", "metadata_props"),
        "NodeProto": ("attribute", "metadata_props"),
        "AttributeProto": ("t",),
        "TensorProto": ("metadata_props",),
        "ValueInfoProto": ("type", "metadata_props"),
        "TypeProto": ("tensor_type",),
        "TypeProto.Tensor": ("shape",),
        "TensorShapeProto": ("dim",),
    }.items()
    for field in fields
)
"""The fields that hold messages in a network's file. Among the others are functions, subgraphs,
training steps and sparse tensors, which all can hold tensors, and weights in another file."""


def demand_readable(path: Path) -> None:
    """Refuse a file that is no whole ONNX model of CIFAR-10 images, in float32 or quantized.

    ModelError if it is damaged or too large, refers to another file, has operators or subgraphs
    that no ResNet8 has, takes something else than batches of 32x32 RGB images, gives more than
    one output, or has weights that are not finite.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _refusal(path, f"a file of {path.stat().st_size:,} bytes")
    try:
        given = _fault(path)
    # protobuf, onnx and NumPy raise a dozen kinds for a damaged file.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise _refusal(path, f"{type(error).__name__}: {first:.200}") from error
    if given:
        raise _refusal(path, given)


def take(source: Path, target: Path) -> None:
    """Copy a model that is readable, in the one form that later steps read.

    There the image is the only input, of float32, and has its size, each node has a name of its
    own, and operators are of opset 13 to 18. ModelError if a file cannot be brought to it.
    """
    import onnx
    import onnx.version_converter

    model = onnx.load(source)
    onnx_graph.unlist(model)
    onnx_graph.name_nodes(model)
    (image,) = model.graph.input
    kind = onnx.helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    if kind != np.float32:
        raise _refusal(source, f"a network that takes {kind} images")
    versions = [e.version for e in model.opset_import if e.domain in ("", "ai.onnx")]
    opset = max(versions, default=_OPSETS[0])
    nearest = int(np.clip(opset, *_OPSETS))
    for dim, size in zip(image.type.tensor_type.shape.dim[1:], _IMAGE, strict=True):
        dim.dim_value = size
    del model.graph.value_info[:]  # shapes inside are inferred again, from these sizes
    try:
        if opset != nearest:
            model = onnx.version_converter.convert_version(model, nearest)
    except Exception as error:  # of several kinds, as the operator has it
        first = (str(error).splitlines() or [""])[0]
        given = f"operators that cannot be brought to opset {nearest} ({first:.200})"
        raise _refusal(source, given) from error
    onnx.save(model, target)


def _fault(path: Path) -> str | None:
    """What is wrong with a file, in a few words; None if nothing is."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return f"data kept in another file, {tensor.name!r}"
    unknown = {field for field, _ in _parts(model)} - KNOWN_PARTS
    if unknown:
        return f"parts that no ResNet8 needs: {', '.join(sorted(unknown))}"
    for node in model.graph.node:
        if node.domain not in KNOWN_DOMAINS:
            return f"the custom operator {node.domain}.{node.op_type}"
    onnx.checker.check_model(model, full_check=True)
    onnx_graph.unlist(model)
    taken = [_shape(value) for value in model.graph.input]
    shape = taken[0] if len(taken) == 1 else ()
    if shape[:1] != (None,) or not holds(shape[1:], _IMAGE):
        why = ""
        if holds(shape[1:], _IMAGE):
            why = " (a fixed batch: export it for any)"
        elif holds(shape[1:], (3, 32, 32)):
            why = " (channels first: put a Transpose before it)"
        return f"input of shape {', '.join(map(str, taken))}{why}"
    if len(model.graph.output) != 1:  # which of them are the scores?
        return f"{len(model.graph.output)} outputs"
    for tensor in _tensors(model):
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"weights that are NaN or infinite, {tensor.name!r}"
    return None


def _tensors(message: Any) -> Iterator[Any]:
    import onnx

    return (part for _, part in _parts(message) if isinstance(part, onnx.TensorProto))


def _parts(message: Any) -> Iterator[tuple[str, Any]]:
    """Every message inside a message, and the full name of the field that holds it."""
    for field, value in message.ListFields():
        # Text is decoded only when it is looked at, and here none may be left that cannot be.
        for entry in value if field.is_repeated else [value]:
            if field.message_type:
                yield field.full_name, entry
                yield from _parts(entry)


def _shape(value: Any) -> tuple[int | None, ...]:
    """Sizes of an input or output; None where any size is taken."""
    return tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)


def holds(sizes: Sequence[int | None], wanted: Sequence[int]) -> bool:
    """Whether what is taken includes such a size."""
    return len(sizes) == len(wanted) and all(
        size in (None, due) for size, due in zip(sizes, wanted, strict=True)
    )


def _refusal(path: Path, given: str) -> ModelError:
    return ModelError(
        f"{path.name} is not an ONNX model that this suite can judge.",
        expected="one whole .onnx file of standard operators and finite weights, with the single"
        " float32 input (N, 32, 32, 3) and a single output",
        given=f"{given}, in {path}",
        next_step="save the network with its weights inside, for batches of any size of 32×32 RGB"
        " images",
    )
