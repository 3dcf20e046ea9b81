"""Which stored weights x86 kernels can saturate on, and where."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from resnet8_eval import (
    backends,
    cifar10,
    cli,
    configurations,
    environment,
    onnx_graph,
    proof,
    quantized_onnx,
    saturation,
)
from resnet8_eval.backends import StoredTensor, torchscript
from resnet8_eval.cifar10 import Split
from resnet8_eval.cli import judging
from resnet8_eval.pipeline import Pipeline, model_path


def weight(largest: int, dtype: str = "int8") -> StoredTensor:
    values = np.array([[3, -largest], [0, 1]])
    return StoredTensor("w", "weight", dtype, 0, [0.1, 0.2], [0], values)


@pytest.mark.parametrize(
    ("largest", "dtype", "bits", "needed"),
    [
        (63, "int8", 7, None),
        (64, "int8", 8, None),
        (65, "int8", 8, "VNNI"),
        (127, "int8", 8, "VNNI"),
        (127, "uint8", 8, None),
        (63, "uint8", 7, None),
    ],
)
def test_what_weights_need(largest: int, dtype: str, bits: int, needed: str | None) -> None:
    found = [weight(5), weight(largest, dtype)]
    assert saturation.weights_bits(found) == bits
    assert saturation.needs(found, "onnxruntime", "kernel") == needed
    assert saturation.needs(found, "onnxruntime", "reference") is None
    assert saturation.needs(found, "torch", "kernel") == (needed and "AVX-512 VNNI")


@pytest.mark.parametrize("framework", ["onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("flags", "largest", "dtype", "possible"),
    [
        ([], 127, "int8", True),
        ([], 65, "int8", True),
        ([], 64, "int8", False),
        ([], 127, "uint8", False),
        (["avx512_vnni"], 127, "int8", False),
    ],
)
def test_saturation_is_named_only_where_it_is_possible(
    monkeypatch: pytest.MonkeyPatch,
    framework: str,
    flags: list[str],
    largest: int,
    dtype: str,
    possible: bool,
) -> None:
    monkeypatch.setattr(environment, "cpu", lambda: {"flags": flags, "onednn_max_cpu_isa": None})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    said = proof.probable_cause([weight(largest, dtype)], framework, as_decided=False)
    assert ("saturate" in said) == possible
    assert (f"±{largest}" in said) == possible


@pytest.mark.parametrize("row", configurations.quantized(), ids=lambda row: row.name)
def test_no_tuned_row_needs_any_instruction(
    pipeline: Pipeline, row: configurations.Configuration
) -> None:
    found = pipeline.artifact(f"proof/{row.name}").record
    signed = row.weights_dtype == "int8" and row.execution == "kernel"
    assert found["needs"] == ("VNNI" if row.is_stock and signed else None)
    assert row.is_stock or found["weights_bits"] == (7 if signed else 8)


SIGNED = configurations.of("onnxruntime-int8-stock")
WITHOUT_VNNI = {"flags": ["avx2"], "onednn_max_cpu_isa": None}


def evaluated(pipeline: Pipeline, row: configurations.Configuration, *words: str) -> Result:
    model = model_path(pipeline, row)
    return CliRunner().invoke(cli.app, ["evaluate", str(model), "--assets=stand-in", *words])


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("without", [True, False])
def test_evaluate_warns_of_weights_that_saturate_here(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    honest = {**environment.cpu(), "flags": ["avx2", "avx512_vnni"], "onednn_max_cpu_isa": None}
    cpu = honest | (WITHOUT_VNNI if without else {})
    monkeypatch.setattr(environment, "cpu", lambda: cpu)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    said = " ".join(evaluated(pipeline, SIGNED).stdout.split())
    assert ("warning: signed weights go up to ±127, and this processor has no VNNI" in said) == (
        without
    )
    assert ("note: signed weights up to ±127: on x86 without VNNI" in said) != without
    found = json.loads(evaluated(pipeline, SIGNED, "--json").stdout)["saturation"]
    assert (found["largest_weight"], found["needs"]) == (127, "VNNI")
    if without:
        assert found["exact_correct"] == found_exactly(pipeline)
        assert f"get {found['exact_correct']} right" in said
    tuned = evaluated(pipeline, configurations.of("onnxruntime-int8-tuned")).stdout
    assert "warning" not in tuned
    assert "note: signed weights up to ±63: no x86 kernel saturates on them" in tuned


@pytest.mark.parametrize("row", configurations.quantized("onnxruntime"), ids=lambda row: row.name)
def test_what_runs_otherwise_than_in_a_plain_session_is_told(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, row: configurations.Configuration
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    signed = row.activations_dtype == "int8"
    said = judging._runs_as(model_path(pipeline, row))
    told = dict.fromkeys(("hint", "batch_effect", "saturation"))
    lines = judging._doubts({**told, "runs_as": said, "notes": []})
    assert ["note: run with unsigned activations" in line for line in lines] == [True] * signed


def found_exactly(pipeline: Pipeline) -> int:
    test = cifar10.read_split(pipeline.settings.assets.dataset, "test")
    exact = quantized_onnx.read(model_path(pipeline, SIGNED))
    return int((exact.scores(test.images).argmax(axis=1) == test.labels).sum())


def test_images_that_saturation_changes_are_counted(
    pipeline: Pipeline, standin_test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that gave seven images another class than their integers."""
    monkeypatch.setattr(environment, "cpu", lambda: WITHOUT_VNNI)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    path = model_path(pipeline, SIGNED)
    images, labels = standin_test.images[:100], standin_test.labels[:100]
    scores = quantized_onnx.read(path).scores(images)
    for count in (0, 7):
        scores[:count] = np.roll(scores[:count], 1, axis=1)
        found = saturation.told(path, images, labels, scores)
        assert found is not None
        assert found["disagreements"] == count
        assert f"another class on {count} of 100 images" in found["warning"]


def test_kernels_give_what_a_stock_model_is_in_exact_integers(
    pipeline: Pipeline, standin_test: Split
) -> None:
    for name in ("onnxruntime-int8-stock", "onnxruntime-uint8-stock", "onnxruntime-int8-tuned"):
        path = model_path(pipeline, configurations.of(name))
        images = standin_test.images[:300]
        kernels = backends.scores(path, images, threads=1)
        exact = quantized_onnx.read(path).scores(images)
        assert (kernels.argmax(axis=1) != exact.argmax(axis=1)).sum() == 0, name
        # One step of a stock model's probabilities, which are of 8 bits.
        assert np.abs(kernels - exact).max() < 1.01 / 255, name


def test_what_cannot_be_computed_is_said(
    pipeline: Pipeline, standin_test: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu", lambda: WITHOUT_VNNI)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    model = onnx.load(model_path(pipeline, SIGNED))
    relu = onnx.helper.make_node("LeakyRelu", [model.graph.output[0].name], ["end"])
    model.graph.node.append(relu)
    model.graph.output[0].name = "end"
    onnx.save(model, tmp_path / "other.onnx")
    images, labels = standin_test.images, standin_test.labels
    found = saturation.told(tmp_path / "other.onnx", images, labels, np.zeros((2000, 10), "f4"))
    assert found is not None
    assert found["disagreements"] is None
    assert "could not be computed" in found["warning"]
    assert "(dense/Softmax)" in found["warning"]  # where the reading ended


def as_constants(graph: onnx.GraphProto) -> None:
    kept = list(graph.node)
    del graph.node[:]
    for entry in graph.initializer:
        graph.node.add(op_type="Constant", output=[entry.name]).attribute.append(
            onnx.helper.make_attribute("value", entry)
        )
    del graph.initializer[:]
    graph.node.extend(kept)


def without_zero_points(graph: onnx.GraphProto) -> None:
    constants = onnx_graph.constants(graph)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and not constants[node.input[2]].any():
            del node.input[2:]


def made_of_float(graph: onnx.GraphProto) -> None:
    """As quantization-aware training exports weights."""
    constants, kept = onnx_graph.constants(graph), list(graph.node)
    del graph.node[:]
    for node in kept:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            values, scale, _ = (constants[name] for name in node.input)
            if values.dtype == np.int8:
                name, step = node.input[0], graph.node.add()
                step.CopyFrom(node)
                step.op_type, step.input[0], step.output[0] = "QuantizeLinear", f"{name} f", name
                real = (values * scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.float32)
                graph.initializer.append(onnx.numpy_helper.from_array(real, f"{name} f"))
                (old,) = (entry for entry in graph.initializer if entry.name == name)
                graph.initializer.remove(old)
        graph.node.append(node)


@pytest.mark.parametrize("written", [as_constants, without_zero_points, made_of_float])
def test_other_ways_to_write_a_model_are_read_as_well(
    pipeline: Pipeline,
    standin_test: Split,
    tmp_path: Path,
    written: Callable[[onnx.GraphProto], None],
) -> None:
    stock, path = model_path(pipeline, SIGNED), tmp_path / "written.onnx"
    model, images = onnx.load(stock), standin_test.images[:50]
    written(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    assert backends.backend("onnxruntime").signed_weights(path) == 127
    exact = quantized_onnx.read(path).scores(images)
    assert np.array_equal(exact, quantized_onnx.read(stock).scores(images))
    kernels = backends.scores(path, images, threads=1)
    assert np.array_equal(kernels.argmax(axis=1), exact.argmax(axis=1))


def test_a_matrix_that_nothing_reads_saturates_nowhere(pipeline: Pipeline, tmp_path: Path) -> None:
    model = onnx.load(model_path(pipeline, configurations.of("onnxruntime-int8-tuned")))
    unused = onnx.numpy_helper.from_array(np.full((2, 2), 127, np.int8), "unused")
    model.graph.initializer.append(unused)
    onnx.save(model, tmp_path / "model.onnx")
    assert backends.backend("onnxruntime").signed_weights(tmp_path / "model.onnx") == 63


@pytest.mark.parametrize(("dtype", "counted"), [(np.uint8, 127), (np.int8, 0)])
def test_kernels_for_signed_activations_add_in_32_bits(
    tmp_path: Path, dtype: type[np.integer[Any]], counted: int
) -> None:
    """Those of a model in QOperator format run as they are stored."""
    make, from_array = onnx.helper, onnx.numpy_helper.from_array
    kernel = make.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "s", "z"], ["y"])
    kind = make.np_dtype_to_tensor_dtype(np.dtype(dtype))
    sides = [make.make_tensor_value_info(name, kind, [1, 4, 8, 8]) for name in "xy"]
    held = {
        "s": np.float32(0.1),
        "z": dtype(0),
        "w": np.full((4, 4, 1, 1), 127, np.int8),
        "wz": np.int8(0),
    }
    constants = [from_array(np.asarray(value), name) for name, value in held.items()]
    graph = make.make_graph([kernel], "one", sides[:1], sides[1:], constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "one.onnx")
    assert backends.backend("onnxruntime").signed_weights(tmp_path / "one.onnx") == counted


SEVEN_BITS = {"largest_weight": 63, "needs": None, "warning": None}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("torch-int8-tuned", SEVEN_BITS), ("torch-float32", None), ("keras-float32", None)],
)
def test_models_of_other_kinds_are_read_as_well(
    pipeline: Pipeline, standin_test: Split, name: str, expected: object
) -> None:
    path = model_path(pipeline, configurations.of(name))
    scores = np.zeros((2000, 10), np.float32)
    assert saturation.told(path, standin_test.images, standin_test.labels, scores) == expected


def eager(path: Path, kinds: Sequence[str], *, frozen: bool = False) -> Path:
    """A network of the layers that ``torch.ao.quantization`` makes, their weights up to ±100."""
    import torch
    from torch.ao.nn import quantized

    def held(layer: Any, size: tuple[int, ...]) -> Any:
        weight = torch.quantize_per_tensor(torch.full(size, -100.0), 1.0, 0, torch.qint8)
        layer.set_weight_bias(weight, torch.zeros(size[0]))
        return layer

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.volume = held(quantized.Conv3d(3, 3, 1), (3, 3, 1, 1, 1))
            self.map = held(quantized.Conv2d(3, 3, 1), (3, 3, 1, 1))
            self.linear = held(quantized.Linear(3072, 10), (10, 3072))
            self.dynamic = held(quantized.dynamic.Linear(10, 10), (10, 10))
            self.by_layer = torch.nn.Linear(10, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            y = torch.quantize_per_tensor(images.permute(0, 3, 1, 2), 1.0, 0, torch.quint8)
            if "volume" in kinds:
                y = self.volume(y.unsqueeze(2)).squeeze(2)
            y = self.map(y) if "map" in kinds else y
            if "linear" in kinds:
                return self.linear(y.flatten(1)).dequantize()
            scores = y.dequantize().flatten(1)[:, :10]
            return self.dynamic(scores) if "dynamic" in kinds else self.by_layer(scores)

    with torchscript.deprecations_ignored(), torch.inference_mode():
        script = torch.jit.trace(Own().eval(), torch.zeros(2, 32, 32, 3))
        torch.jit.save(torch.jit.freeze(script) if frozen else script, str(path))
    return path


@pytest.mark.parametrize("frozen", [False, True], ids=["as traced", "frozen"])
@pytest.mark.parametrize(
    ("kinds", "largest"),
    [(["map"], 100), (["linear"], 100), (["map", "linear"], 100), (["dynamic"], 100), ([], 0)],
    ids=lambda given: "-".join(given) or "float" if isinstance(given, list) else "",
)
def test_weights_in_the_layers_of_pytorchs_own_tools_are_found(
    tmp_path: Path, kinds: list[str], largest: int, frozen: bool
) -> None:
    """What nothing reads is not counted: each network has all the layers."""
    path = eager(tmp_path / "own.pt", kinds, frozen=frozen)
    assert backends.backend("torch").signed_weights(path) == largest


@pytest.mark.usefixtures("few")
def test_weights_that_cannot_be_read_do_not_cost_the_figure(tmp_path: Path) -> None:
    path = str(eager(tmp_path / "own.pt", ["volume", "map"]))
    runner, words = CliRunner(), ["evaluate", path, "--assets=stand-in"]
    done = runner.invoke(cli.app, words)
    assert done.exit_code == 0
    assert "own.pt: " in done.stdout
    assert "note: its weights could not be read (quantized.Conv3dPackedParamsBase)" in done.stdout
    found = json.loads(runner.invoke(cli.app, [*words, "--json"]).stdout)["saturation"]
    assert (found["largest_weight"], found["warning"]) == (None, None)


def test_weights_of_a_torchscript_model_are_found(pipeline: Pipeline) -> None:
    torch = backends.backend("torch")
    assert torch.signed_weights(model_path(pipeline, configurations.of("torch-int8-tuned"))) == 63
    assert torch.signed_weights(model_path(pipeline, configurations.of("torch-uint8-tuned"))) == 0
