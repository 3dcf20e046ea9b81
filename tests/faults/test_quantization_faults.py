"""Models that are not what their name says, and the requirement that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from resnet8_eval import configurations
from resnet8_eval.backends import file_of, torchscript
from resnet8_eval.backends import onnxruntime as ort_backend
from resnet8_eval.backends import torch as torch_backend
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.convert import onnx_to_torch
from resnet8_eval.evaluate import same_function
from tests.planted import (
    Bench,
    as_npy,
    edited,
    float_activation,
    float_weight,
    nodes,
    weight_made_8_bit_on_the_fly,
)

Change = Callable[[Any], object]
ORT = {
    "onnxruntime-int8-tuned": "ORT-01",
    "onnxruntime-uint8-tuned": "ORT-02",
    "onnxruntime-uint8-int8-tuned": "ORT-02",
}
PTQ = {"torch-int8-tuned": "PTQ-01", "torch-uint8-tuned": "PTQ-02"}


def disguise_onnx(bench: Bench, tmp_path: Path, name: str, content: bytes) -> None:
    """Put an ONNX model under the name of a quantized one; the suite counts what it is."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    record = {**ort_backend.census(path), "kernels": ort_backend.kernels(path)}
    bench.plant(f"model/{name}", record, {"model.onnx": content})


def disguise_torch(bench: Bench, name: str, path: Path) -> None:
    bench.plant(f"model/{name}", torch_backend.census(path), {"model.pt": path.read_bytes()})


def stored(bench: Bench, name: str) -> Path:
    return bench.artifact(f"model/{name}").path(file_of(configurations.of(name)))


def other(name: str) -> str:
    """The same framework's other type."""
    row = configurations.of(name)
    dtype = "int8" if row.dtype == "uint8" else "uint8"
    return next(
        other.name for other in configurations.calibrated(row.framework) if other.dtype == dtype
    )


# --- ONNX Runtime --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORT)
@pytest.mark.parametrize("source", ["onnx", "folded"])
def test_a_float_model_that_wears_an_8_bit_name(
    bench: Bench, tmp_path: Path, name: str, source: str
) -> None:
    path = next(bench.artifact(source).folder.glob("*.onnx"))
    disguise_onnx(bench, tmp_path, name, path.read_bytes())
    said = bench.verdict(ORT[name])
    assert "weighted layers left in float: measured 10 layers" in said
    assert "stored weights" in said
    assert "convolutions that run in integers: expected 9, observed 0" in said


@pytest.mark.parametrize("name", ["onnxruntime-int8-tuned", "onnxruntime-uint8-tuned"])
def test_a_model_of_the_other_type(bench: Bench, tmp_path: Path, name: str) -> None:
    disguise_onnx(bench, tmp_path, name, stored(bench, other(name)).read_bytes())
    said = bench.verdict(ORT[name])
    assert "stored weights" in said
    assert "stored activations" in said


PARTLY_FLOAT: dict[str, tuple[Change, str]] = {
    "one weight in float": (float_weight("Conv", 4), "measured 1 layer,"),
    "the dense weight in float": (float_weight("Gemm", 0), "measured 1 layer,"),
    "one input in float": (float_activation("Conv", 4), "measured 1 layer,"),
    "one weight stored in float": (weight_made_8_bit_on_the_fly(6), "stored weights"),
}


@pytest.mark.parametrize(("change", "said"), PARTLY_FLOAT.values(), ids=PARTLY_FLOAT)
def test_a_model_with_one_layer_left_in_float(
    bench: Bench, tmp_path: Path, change: Change, said: str
) -> None:
    name = "onnxruntime-int8-tuned"
    disguise_onnx(bench, tmp_path, name, edited(stored(bench, name), change))
    assert said in bench.verdict(ORT[name])


def test_a_runtime_that_falls_back_to_float(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is what its name says; the session that runs it is not."""
    import onnxruntime as ort

    monkeypatch.setattr(ort_backend, "unsigned", str)
    monkeypatch.setattr(ort.SessionOptions, "add_session_config_entry", lambda *_: None)
    name = "onnxruntime-int8-tuned"
    disguise_onnx(bench, tmp_path, name, stored(bench, name).read_bytes())
    assert "convolutions that run in integers" in bench.verdict(ORT[name])


# --- PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PTQ)
def test_a_float_network_that_wears_an_8_bit_name(bench: Bench, tmp_path: Path, name: str) -> None:
    module = onnx_to_torch.convert(bench.artifact("folded").path("folded.onnx"))
    torchscript.save(module, tmp_path / "model.pt")
    disguise_torch(bench, name, tmp_path / "model.pt")
    said = bench.verdict(PTQ[name])
    assert "weighted layers left in float: measured 10 layers" in said
    assert "stored weights" in said
    assert "quantized convolutions: expected 9, observed 0" in said


@pytest.mark.parametrize("name", PTQ)
def test_a_network_of_the_other_type(bench: Bench, name: str) -> None:
    disguise_torch(bench, name, stored(bench, other(name)))
    assert "stored weights" in bench.verdict(PTQ[name])


class FloatConvolution(torch.nn.Module):
    """Takes and gives 8 bits, and computes with float weights in between."""

    def __init__(self, honest: Any) -> None:
        super().__init__()
        weight, self.bias = honest.kernel._weight_bias()
        self.weight = torch.nn.Parameter(weight.dequantize(), requires_grad=False)
        self.pad, self.stride, self.relu = honest.pad, honest.stride, honest.relu
        self.padding = honest.padding
        self.out = (honest.kernel.scale, honest.kernel.zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.conv2d(
            self.pad(x.dequantize()), self.weight, self.bias, self.stride, self.padding
        )
        return torch.quantize_per_tensor(y.relu() if self.relu else y, *self.out, torch.quint8)


def build(bench: Bench, name: str) -> Any:
    parameters = Parameters.load(bench.artifact("parameters/tuned").folder)
    return torch_backend._network(parameters, configurations.of(name))


def plant_network(bench: Bench, name: str, path: Path, network: Any) -> None:
    with torchscript.deprecations_ignored():
        torchscript.save(network, path)
    disguise_torch(bench, name, path)


@pytest.mark.parametrize("position", [0, 8])
def test_integer_kernels_with_one_convolution_left_in_float(
    bench: Bench, tmp_path: Path, position: int
) -> None:
    network = build(bench, "torch-int8-tuned")
    key = list(network.layers)[position]
    with torchscript.deprecations_ignored():
        network.layers[key] = FloatConvolution(network.layers[key])
    plant_network(bench, "torch-int8-tuned", tmp_path / "model.pt", network)
    said = bench.verdict("PTQ-01")
    assert "weighted layers left in float: measured 1 layer," in said
    assert "stored weights" in said


def test_reference_arithmetic_on_weights_stored_in_float(bench: Bench, tmp_path: Path) -> None:
    network = build(bench, "torch-uint8-tuned")
    for layer in network.layers.values():
        layer.weight = layer.weight.dequantize()
    plant_network(bench, "torch-uint8-tuned", tmp_path / "model.pt", network)
    assert "stored weights" in bench.verdict("PTQ-02")


def test_reference_arithmetic_on_activations_left_in_float(bench: Bench, tmp_path: Path) -> None:
    """Each layer dequantizes what was never quantized: the graph looks as it should."""
    network = build(bench, "torch-uint8-tuned")
    layer = next(iter(network.layers.values()))
    honest = layer.forward
    layer.forward = lambda x: honest(x).dequantize()
    plant_network(bench, "torch-uint8-tuned", tmp_path / "model.pt", network)
    assert bench.verdict("PTQ-02") != ""


def test_a_torch_that_does_take_unsigned_weights_is_told(bench: Bench) -> None:
    """The reference row would then be out of date."""
    support = {"unsigned_weights": True, "said": {"x86": "accepted"}}
    bench.plant("model/torch-uint8-tuned", {"support": support})
    assert "integer kernels for such weights, as PyTorch says" in bench.verdict("PTQ-02")


# --- the right types, and the wrong numbers ------------------------------------------------------


def change_scale(factor: float) -> Change:
    def change(model: Any) -> None:
        name = nodes(model, "QuantizeLinear")[5].input[1]
        (entry,) = [e for e in model.graph.initializer if e.name == name]
        scale = numpy_helper.to_array(entry) * np.float32(factor)
        entry.CopyFrom(numpy_helper.from_array(np.asarray(scale, np.float32), name))

    return change


def swap_axis(model: Any) -> None:
    """The scales of a square kernel, along its inputs."""
    stored = {e.name: e for e in model.graph.initializer}
    node = next(
        n
        for n in nodes(model, "DequantizeLinear")
        if n.input[0] in stored and list(stored[n.input[0]].dims[:2]) == [64, 64]
    )
    next(a for a in node.attribute if a.name == "axis").i = 1


def shift_zero_point(model: Any) -> None:
    name = nodes(model, "QuantizeLinear")[5].input[2]
    (entry,) = [e for e in model.graph.initializer if e.name == name]
    shifted = numpy_helper.to_array(entry) + np.int8(9)
    entry.CopyFrom(numpy_helper.from_array(np.asarray(shifted, np.int8), name))


def nudge(kind: str, position: int, argument: int, steps: int) -> Change:
    """Move one stored integer of a layer's weight or bias."""

    def change(model: Any) -> None:
        makers = {name: node for node in model.graph.node for name in node.output}
        name = makers[nodes(model, kind)[position].input[argument]].input[0]
        (entry,) = [e for e in model.graph.initializer if e.name == name]
        integers = numpy_helper.to_array(entry).copy()
        integers.flat[0] += steps if integers.flat[0] < 0 else -steps
        entry.CopyFrom(numpy_helper.from_array(integers, name))

    return change


NUMBERS: dict[str, tuple[Change, str]] = {
    "a scale ten times too small": (change_scale(0.1), "wrong scale"),
    "a scale a little too large": (change_scale(1.01), "wrong scale"),
    "a per-channel axis swapped": (swap_axis, "wrong axis"),
    "a zero point off": (shift_zero_point, "zero point"),
    "one integer of a weight off": (nudge("Conv", 4, 1, steps=1), "integers are others"),
    "one integer of a bias off": (nudge("Conv", 4, 2, steps=2), "stored biases"),
}


@pytest.mark.parametrize(("change", "said"), NUMBERS.values(), ids=NUMBERS)
def test_wrong_numbers_are_named_whether_or_not_they_cost_accuracy(
    bench: Bench, tmp_path: Path, change: Change, said: str
) -> None:
    name = "onnxruntime-int8-tuned"
    disguise_onnx(bench, tmp_path, name, edited(stored(bench, name), change))
    bench.remake(f"proof/{name}")
    assert said in bench.verdict("ORT-03")


def test_another_network_than_the_converted_one_is_told(bench: Bench, tmp_path: Path) -> None:
    """The whole chain is honest, but what was quantized is not what the user gave."""
    folder = bench.artifact("parameters/tuned").folder
    honest = Parameters.load(folder)
    weights = honest.exact.weights()
    name = honest.exact.weighted[4].weight
    weights[name] = weights[name] * 1.1
    honest.exact.with_weights(weights).save(tmp_path / "other.onnx")
    images = np.load(bench.artifact("calibration").path("images.npy"))[:100]
    source = bench.artifact("onnx").path("model.onnx")
    checks = [
        asdict(check)
        for check in same_function("the two", source, tmp_path / "other.onnx", images, 1)
    ]
    bench.plant("parameters/tuned", {"checks": checks})
    for requirement in ("ORT-03", "PTQ-03"):
        assert "the two: largest difference" in bench.verdict(requirement)
    bench.plant("folded", {"checks": checks})
    bench.remake(f"proof/{configurations.stock()[0].name}")
    assert "stock, the two: largest difference" in bench.verdict("ORT-03")


def test_a_model_that_lost_its_accuracy_is_flagged(bench: Bench, tmp_path: Path) -> None:
    name = "onnxruntime-uint8-tuned"
    disguise_onnx(bench, tmp_path, name, edited(stored(bench, name), change_scale(0.1)))
    bench.remake(f"scores/{name}", f"compare/{name}")
    compared = bench.artifact(f"compare/{name}").record
    assert compared["agreement_percent"] < 90
    assert compared["flagged"]
    assert "configurations that drop more than 5 pp: measured 1" in bench.verdict("ANL-02")


def test_kernels_that_compute_something_else_are_seen(bench: Bench) -> None:
    """Scores that are not those of the stored model, as of kernels that saturate."""
    name = "torch-int8-tuned"
    scores = np.load(bench.artifact(f"scores/{name}").path("scores.npy"))
    scores[:20] = np.roll(scores[:20], 1, axis=1)
    bench.plant(f"scores/{name}", files={"scores.npy": as_npy(scores)})
    bench.remake(f"proof/{name}")
    said = bench.verdict("PTQ-03")
    assert "images that kernels and exact integers class apart" in said
    assert "probable cause" in said


def test_scores_that_a_few_layers_in_float_have_moved_are_seen(bench: Bench) -> None:
    """Not one image has another class."""
    name = "onnxruntime-uint8-int8-tuned"
    scores = np.load(bench.artifact(f"scores/{name}").path("scores.npy"))
    scores[0] += np.where(scores[0] == scores[0].max(), 0.001, -0.001 / 9).astype(np.float32)
    bench.plant(f"scores/{name}", files={"scores.npy": as_npy(scores)})
    bench.remake(f"proof/{name}")
    assert bench.artifact(f"proof/{name}").record["exact_integers"]["disagreements"] == 0
    assert "largest difference of a score from exact integers" in bench.verdict("ORT-03")


def test_the_suites_own_parameters_under_a_stock_label(bench: Bench) -> None:
    tuned = bench.artifact("model/onnxruntime-int8-tuned")
    files = {path.name: path.read_bytes() for path in tuned.folder.iterdir()}
    fed = bench.artifact("model/onnxruntime-int8-stock").record["fed_sha256"]
    bench.plant("model/onnxruntime-int8-stock", {**tuned.record, "fed_sha256": fed}, files)
    bench.remake("proof/onnxruntime-int8-stock")
    said = bench.verdict("ORT-03")
    assert "onnxruntime-int8-stock" in said
    assert "weights" in said


def test_a_stock_row_that_another_framework_computed(bench: Bench) -> None:
    other = bench.artifact("scores/onnxruntime-int8-stock")
    files = {path.name: path.read_bytes() for path in other.folder.iterdir()}
    bench.plant("scores/torch-int8-stock", other.record, files)
    bench.remake("compare/torch-int8-stock")
    assert "torch-int8-stock, sha256 of the model that gave the scores" in bench.verdict("PTQ-03")
