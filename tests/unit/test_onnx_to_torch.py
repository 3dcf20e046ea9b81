"""ONNX to PyTorch: every weight's bits, every layer in its place, with or without torchvision."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from resnet8_eval.checks import failed
from resnet8_eval.cifar10 import Split
from resnet8_eval.convert import onnx_to_torch
from resnet8_eval.convert.onnx_to_torch import torchvision_not_needed
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.preprocess import preprocess
from tests.planted import edited, perturb

SEQUENCE, TYPES = "layer sequence", "layer types"
SHAPES, BITS = "output shape of every layer", "initializers that did not arrive bit-equal"
COUNT = "parameters"


@pytest.fixture(scope="module")
def folded(pipeline: Pipeline) -> Path:
    return pipeline.artifact("folded").path("folded.onnx")


@pytest.fixture(scope="module")
def converted(folded: Path) -> torch.fx.GraphModule:
    return onnx_to_torch.convert(folded)


@pytest.fixture
def module(converted: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy, to plant faults in."""
    return copy.deepcopy(converted)


def test_an_honest_conversion_passes(folded: Path, module: torch.fx.GraphModule) -> None:
    checks = onnx_to_torch.verify(folded, module)
    assert failed(checks) == []
    assert [check.name for check in checks] == [SEQUENCE, TYPES, SHAPES, BITS, COUNT]
    kinds = [type(layer).__name__ for layer in module.modules()]
    assert (kinds.count("Conv2d"), kinds.count("Linear"), kinds.count("ReLU")) == (9, 1, 7)
    assert not module.training


def test_nodes_may_have_any_names(folded: Path, tmp_path: Path) -> None:
    """Those of attributes, of words of Python, of nothing, and some that are alike in PyTorch."""
    model, names = onnx.load(folded), ["k.1", "k/1", "", "", "forward", "class", 'a "b"', "große"]
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    onnx.save(model, tmp_path / "own.onnx")
    module = onnx_to_torch.convert(tmp_path / "own.onnx")
    assert failed(onnx_to_torch.verify(tmp_path / "own.onnx", module)) == []
    assert {"n00_k_1", "n01_k_1"} <= dict(module.named_children()).keys()
    onnx_to_torch.export(module, tmp_path / "own.pt2")
    assert failed(onnx_to_torch.verify_export(tmp_path / "own.onnx", tmp_path / "own.pt2")) == []


def test_nothing_is_written_beside_the_model_meanwhile(folded: Path, tmp_path: Path) -> None:
    """An artefact with one file more counts as damaged for whoever reads it at that moment."""
    path = tmp_path / "folded.onnx"
    path.write_bytes(folded.read_bytes())
    before = tmp_path.stat().st_mtime_ns
    onnx_to_torch.convert(path)
    assert tmp_path.stat().st_mtime_ns == before


def test_scores_are_those_of_onnxruntime(
    pipeline: Pipeline, module: torch.fx.GraphModule, standin_test: Split
) -> None:
    with torch.inference_mode():
        found = module(torch.from_numpy(preprocess(standin_test.images[:50]))).numpy()
    wanted = np.load(pipeline.artifact("scores/onnxruntime-float32").path("scores.npy"))[:50]
    assert np.abs(found - wanted).max() <= 1e-5


def first(module: torch.nn.Module, kind: type[torch.nn.Module], position: int = 0) -> Any:
    return [part for part in module.modules() if type(part) is kind][position]


def nudge_weight(module: torch.fx.GraphModule) -> None:
    weight = first(module, torch.nn.Conv2d, 4).weight.data.view(-1)
    weight[7] = torch.nextafter(weight[7], torch.tensor(9.0))


def negate_a_zero(module: torch.fx.GraphModule) -> None:
    """Equal to the number, but not to its bits."""
    first(module, torch.nn.Linear).bias.data[0] = -0.0


def swap_layers(module: torch.fx.GraphModule) -> None:
    a, b = (first(module, torch.nn.Conv2d, position) for position in (1, 2))
    a.weight.data, b.weight.data = b.weight.data, a.weight.data


def change_stride(module: torch.fx.GraphModule) -> None:
    (last,) = [n for n in module.graph.nodes if n.op == "call_module" and "pool" in str(n.target)]
    pool: Any = module.get_submodule(str(last.target))
    pool.stride, pool.kernel_size = (4, 4), (8, 4)
    flat = next(n for n in module.graph.nodes if "flatten" in str(n.target))
    setattr_by_path(module, str(flat.target), torch.nn.AdaptiveAvgPool2d(1))
    flat_user = next(iter(flat.users))
    with module.graph.inserting_after(flat):
        module.add_submodule("extra", torch.nn.Flatten(1))
        extra = module.graph.call_module("extra", (flat,))
    flat_user.replace_input_with(flat, extra)
    module.recompile()


def setattr_by_path(module: torch.nn.Module, name: str, part: torch.nn.Module) -> None:
    module._modules[name] = part  # onnx2torch's names have slashes, not dots


def drop_relu(module: torch.fx.GraphModule) -> None:
    node = next(n for n in module.graph.nodes if "activation" in str(n.target))
    node.replace_all_uses_with(node.args[0])
    module.graph.erase_node(node)
    module.recompile()


def other_function(module: torch.fx.GraphModule) -> None:
    node = next(n for n in module.graph.nodes if "activation" in str(n.target))
    setattr_by_path(module, str(node.target), torch.nn.GELU())


def extra_parameter(module: torch.fx.GraphModule) -> None:
    module.register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))


def drop_bias(module: torch.fx.GraphModule) -> None:
    first(module, torch.nn.Conv2d, 3).bias = None


FAULTS: dict[str, tuple[Callable[[torch.fx.GraphModule], None], set[str]]] = {
    "one bit of one weight": (nudge_weight, {BITS}),
    "two layers swapped": (swap_layers, {BITS}),
    "another shape": (change_stride, {SEQUENCE, TYPES, SHAPES}),
    "a ReLU dropped": (drop_relu, {SEQUENCE, TYPES, SHAPES}),
    "a ReLU replaced": (other_function, {TYPES}),
    "a parameter more": (extra_parameter, {COUNT}),
    "a bias less": (drop_bias, {BITS, COUNT}),
}


@pytest.mark.parametrize(("plant", "names"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_module(
    folded: Path,
    module: torch.fx.GraphModule,
    plant: Callable[[torch.fx.GraphModule], None],
    names: set[str],
) -> None:
    plant(module)
    checks = onnx_to_torch.verify(folded, module)
    assert {check.name for check in failed(checks)} == names


def test_equal_numbers_of_other_bits_are_other_weights(
    tmp_path: Path, folded: Path, module: torch.fx.GraphModule
) -> None:
    def zero(model: Any) -> None:
        from onnx import numpy_helper

        (entry,) = [e for e in model.graph.initializer if list(e.dims) == [10]]
        values = numpy_helper.to_array(entry).copy()
        values[0] = 0
        entry.CopyFrom(numpy_helper.from_array(values, entry.name))

    (tmp_path / "zeroed.onnx").write_bytes(edited(folded, zero))
    negate_a_zero(module)
    checks = onnx_to_torch.verify(tmp_path / "zeroed.onnx", module)
    assert {check.name for check in failed(checks)} == {BITS}


def test_a_perturbed_source_is_not_the_one_that_was_converted(
    tmp_path: Path, folded: Path, module: torch.fx.GraphModule
) -> None:
    (tmp_path / "other.onnx").write_bytes(edited(folded, perturb("Conv", 6, 2, ulp=True)))
    checks = onnx_to_torch.verify(tmp_path / "other.onnx", module)
    assert {check.name for check in failed(checks)} == {BITS}


# --- the exported program ------------------------------------------------------------------------


@pytest.fixture
def exported(pipeline: Pipeline) -> Path:
    return pipeline.artifact("torch").path("model.pt2")


def test_an_export_does_not_tell_where_it_was_made(exported: Path) -> None:
    content = exported.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content


def test_an_honest_export_passes(folded: Path, exported: Path) -> None:
    checks = onnx_to_torch.verify_export(folded, exported)
    assert len(checks) == 2
    assert failed(checks) == []


@pytest.mark.parametrize("change", [perturb("Conv", 0, 1, ulp=True), perturb("Gemm", 0, 2)])
def test_a_perturbed_export_is_seen(
    tmp_path: Path, folded: Path, exported: Path, change: Callable[[Any], None]
) -> None:
    (tmp_path / "other.onnx").write_bytes(edited(folded, change))
    (check,) = failed(onnx_to_torch.verify_export(tmp_path / "other.onnx", exported))
    assert "missing in the exported program" in check.name
    assert check.observed == "1"


def test_the_module_can_be_exported_for_any_batch(
    tmp_path: Path, folded: Path, module: torch.fx.GraphModule
) -> None:
    onnx_to_torch.export(module, tmp_path / "model.pt2")
    assert failed(onnx_to_torch.verify_export(folded, tmp_path / "model.pt2")) == []


# --- torchvision ---------------------------------------------------------------------------------

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"
WHOLE = "from . import ops\nloaded = True\n"


def forget(*packages: str) -> dict[str, ModuleType]:
    """Take modules out of ``sys.modules``, and return them."""
    return {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if name.partition(".")[0] in packages
    }


@pytest.fixture
def imports_afresh() -> Iterator[None]:
    """Let the test import onnx2torch and torchvision anew, and put back what was there."""
    before = forget("torchvision", "onnx2torch")
    yield
    forget("torchvision", "onnx2torch")
    sys.modules.update(before)


class Absent(MetaPathFinder):
    """Makes torchvision impossible to find."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname.partition(".")[0] == "torchvision":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.fixture
def install(
    imports_afresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str | None], None]:
    """Put a torchvision of our own first in the path, or none at all."""

    def install(content: str | None) -> None:
        if content is None:
            monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
            return
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(content)
        (tmp_path / "torchvision" / "ops.py").write_text("def roi_align(): return 'real'\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.mark.parametrize("content", [None, BROKEN, WHOLE], ids=["absent", "broken", "whole"])
def test_onnx2torch_can_be_imported_whatever_torchvision_is(
    install: Callable[[str | None], None], content: str | None
) -> None:
    install(content)
    with torchvision_not_needed():
        import onnx2torch
    assert callable(onnx2torch.convert)
    assert "torchvision" not in sys.modules
    assert "torchvision.ops" not in sys.modules


def test_a_whole_torchvision_can_be_imported_afterwards(
    install: Callable[[str | None], None],
) -> None:
    install(WHOLE)
    with torchvision_not_needed():
        pass
    import torchvision

    assert torchvision.loaded
    assert torchvision.ops.roi_align() == "real"


def test_a_torchvision_that_is_imported_already_is_left_alone(
    install: Callable[[str | None], None],
) -> None:
    install(WHOLE)
    import torchvision

    with torchvision_not_needed():
        assert sys.modules["torchvision"] is torchvision
    assert sys.modules["torchvision"] is torchvision
    assert sys.modules["torchvision.ops"] is torchvision.ops


def test_the_placeholder_goes_when_the_import_fails(imports_afresh: None) -> None:
    with pytest.raises(ImportError), torchvision_not_needed():
        raise ImportError("onnx2torch is not there")
    assert "torchvision" not in sys.modules
