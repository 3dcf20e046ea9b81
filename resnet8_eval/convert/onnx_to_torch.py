"""ONNX to PyTorch with onnx2torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from resnet8_eval import onnx_graph
from resnet8_eval.checks import Check, equal

if TYPE_CHECKING:
    import onnx
    import torch

EXPECTED_MODULES: Final = {
    "Transpose": "OnnxTranspose",
    "Conv": "Conv2d",
    "Relu": "ReLU",
    "Add": "OnnxBinaryMathOperation",
    "AveragePool": "AvgPool2d",
    "GlobalAveragePool": "OnnxGlobalAveragePoolWithKnownInputShape",
    "Reshape": "Flatten",
    "Gemm": "Linear",
    "Softmax": "Softmax",
}
"""The torch module that onnx2torch makes of each operator of the folded model, and the Flatten
that :func:`convert` puts in the place of its Reshape."""


@contextmanager
def torchvision_not_needed() -> Iterator[None]:
    """Let onnx2torch be imported without torchvision.

    onnx2torch imports torchvision for two detection operators (NMS and RoiAlign). The package
    index's torchvision is built for CUDA and cannot be imported beside a CPU build of torch; where
    it can be, importing it takes a second. A placeholder stands in for it while onnx2torch is
    imported, and is gone afterwards. A torchvision that is imported already is left alone.
    """
    if "torchvision" in sys.modules:
        yield
        return

    operators = ModuleType("torchvision.ops")
    operators.roi_align = None  # type: ignore[attr-defined]
    placeholders = {"torchvision": ModuleType("torchvision"), operators.__name__: operators}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in placeholders:
            del sys.modules[name]


def convert(onnx_path: Path) -> torch.fx.GraphModule:
    """Convert the folded ONNX model to a PyTorch module.

    Parameters
    ----------
    onnx_path
        Folded float32 model.

    Returns
    -------
    torch.fx.GraphModule
        In evaluation mode; float32 (N, 32, 32, 3) in [0, 255] to (N, 10) probabilities. Its
        modules are called by the places and names of the ONNX nodes
        (:func:`resnet8_eval.onnx_graph.module_name`). onnx2torch's Reshape reads the values of a
        tensor, which ``torch.export`` cannot follow; a Flatten takes its place.
    """
    import onnx
    import torch

    with torchvision_not_needed():
        import onnx2torch
        from onnx2torch.node_converters.reshape import OnnxReshape

    # Given a path, it would write beside the model, which others are reading.
    module: torch.fx.GraphModule = onnx2torch.convert(_named(onnx.load(onnx_path))).eval()
    for node in list(module.graph.nodes):
        if node.op == "call_module" and isinstance(
            module.get_submodule(str(node.target)), OnnxReshape
        ):
            module.add_submodule(str(node.target), torch.nn.Flatten(1))
            node.args = node.args[:1]
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, its nodes called as modules may be, in place."""
    for place, node in enumerate(model.graph.node):
        node.name = onnx_graph.module_name(place, node.name)
    return model


def export(module: torch.nn.Module, path: Path) -> None:
    """Save a module as ``.pt2``, for any batch size; ``torch.export.load`` reads it."""
    import torch

    with warnings.catch_warnings():
        # Said of a weight that is stored as its transpose, which is then saved whole.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(export_program(module), path)


def export_program(module: torch.nn.Module) -> torch.export.ExportedProgram:
    """Trace a module of images (N, 32, 32, 3), for any N."""
    import torch

    example = (torch.zeros(2, 32, 32, 3),)
    program = torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim("N")},))
    for node in program.graph.nodes:
        # Where the packages lie on this machine is no part of the model, nor where in this
        # process's memory the graphs lay that it was made from.
        node.meta.pop("stack_trace", None)
        node.meta.pop("from_node", None)
    return program


def verify(onnx_path: Path, module: torch.fx.GraphModule) -> list[Check]:
    """Hold a PyTorch module against the folded ONNX model that :func:`convert` made it from.

    Held are the sequence of layers, module types, the shape of every layer's output, and that every
    float32 initializer is bit-equal.
    """
    import onnx
    import torch
    from torch.fx.passes.shape_prop import ShapeProp

    model = onnx.shape_inference.infer_shapes(_named(onnx.load(onnx_path)), strict_mode=True)
    nodes = list(model.graph.node)
    constants = onnx_graph.constants(model.graph)
    onnx_shapes = onnx_graph.sizes((*model.graph.value_info, *model.graph.output))

    with torch.inference_mode():
        ShapeProp(module).propagate(torch.zeros(2, 32, 32, 3))
    calls = {str(call.target): call for call in module.graph.nodes if call.op == "call_module"}
    made = {name: module.get_submodule(name) for name in calls}
    # onnx2torch wraps an unevenly padded Conv2d with its padding.
    made = {n: m[-1] if isinstance(m, torch.nn.Sequential) else m for n, m in made.items()}

    floats = {name: value for name, value in constants.items() if value.dtype == np.float32}
    different = [
        name
        for node in nodes
        for part, name in zip(("weight", "bias"), list(node.input)[1:], strict=False)
        if name in floats and not _bit_equal(floats[name], getattr(made.get(node.name), part, None))
    ]
    return [
        equal("layer sequence", [node.name for node in nodes], list(made)),
        equal(
            "layer types",
            {node.name: EXPECTED_MODULES.get(node.op_type, "none") for node in nodes},
            {name: type(part).__name__ for name, part in made.items()},
        ),
        equal(
            "output shape of every layer",
            {node.name: onnx_shapes.get(node.output[0], ())[1:] for node in nodes},
            {n: tuple(call.meta["tensor_meta"].shape)[1:] for n, call in calls.items()},
        ),
        equal("initializers that did not arrive bit-equal", [], different),
        equal(
            "parameters",
            sum(value.size for value in floats.values()),
            sum(parameter.numel() for parameter in module.parameters()),
        ),
    ]


def verify_export(onnx_path: Path, exported: Path) -> list[Check]:
    """Hold an exported program against the folded ONNX model that it comes from.

    It has to load, take any batch size, and hold every float32 initializer's bytes.
    """
    import onnx
    import torch

    program = torch.export.load(exported)
    module = program.module()
    sizes = [tuple(module(torch.zeros(n, 32, 32, 3)).shape) for n in (1, 3)]
    arrays = onnx_graph.constants(onnx.load(onnx_path).graph).values()
    wanted = [array for array in arrays if array.dtype == np.float32]
    held = {tensor.detach().numpy().tobytes() for tensor in program.state_dict.values()}
    # torch.nn.Linear keeps the matrix transposed.
    missing = sum(
        array.tobytes() not in held and np.ascontiguousarray(array.T).tobytes() not in held
        for array in wanted
    )
    return [
        equal("exported program's output for batches of 1 and 3", [(1, 10), (3, 10)], sizes),
        equal(f"of {len(wanted)} initializers, missing in the exported program", 0, missing),
    ]


def _bit_equal(source: Any, parameter: Any) -> bool:
    if parameter is None:
        return False
    here = parameter.detach().numpy()
    # torch.nn.Linear keeps its matrix transposed, and folding leaves Gemm's as it multiplies.
    source = source.T if source.ndim == 2 else source
    return here.shape == source.shape and here.tobytes() == np.ascontiguousarray(source).tobytes()
