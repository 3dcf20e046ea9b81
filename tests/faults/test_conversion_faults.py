"""Faults planted in converted models and in their log, and the requirement that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from resnet8_eval.convert import onnx_to_torch
from tests.planted import Bench, as_npy, edited, nodes, perturb

Change = Callable[[Any], object]
ONNX, TORCH = "onnxruntime-float32", "torch-float32"


def plant_onnx(bench: Bench, change: Change, *, evaluate: bool = True) -> None:
    """Plant a fault in the converted model, and let what comes after it follow."""
    path = bench.artifact("onnx").path("model.onnx")
    bench.plant("onnx", files={"model.onnx": edited(path, change)})
    bench.remake(*[f"scores/{ONNX}"] * evaluate, "structure/onnx", "parity/onnx")


# --- Keras to ONNX -------------------------------------------------------------------------------


def swap_weights(model: Any) -> None:
    """Two layers of the same shape change places: nothing is missing, and nothing is new."""
    one, other = (node for node in nodes(model, "Conv")[1:3])
    for position in (1, 2):
        one.input[position], other.input[position] = other.input[position], one.input[position]


def drop_relu(model: Any) -> None:
    relu = nodes(model, "Relu")[2]
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == relu.output[0]:
                node.input[position] = relu.input[0]
    model.graph.node.remove(relu)


def drop_shortcut(model: Any) -> None:
    """An addition of a tensor to itself instead of to its shortcut."""
    stored = {entry.name for entry in model.graph.initializer}
    addition = next(n for n in nodes(model, "Add") if not stored & set(n.input))
    addition.input[0] = addition.input[1]


def extra_convolution(model: Any) -> None:
    """A convolution that changes nothing: each channel times one."""
    source = nodes(model, "Relu")[0].output[0]
    readers = [n for n in model.graph.node if source in n.input]
    kernel = np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "planted"))
    place = list(model.graph.node).index(readers[0])
    made = onnx.helper.make_node("Conv", [source, "planted"], ["planted output"], strides=[1, 1])
    model.graph.node.insert(place, made)
    for reader in readers:
        for position, name in enumerate(reader.input):
            if name == source:
                reader.input[position] = "planted output"


CONVERSION: dict[str, tuple[Change, str]] = {
    "one perturbed kernel": (perturb("Conv", 4, 1), "layers whose weights are not in ONNX"),
    "one perturbed bias": (perturb("Conv", 0, 2), "layers whose weights are not in ONNX"),
    "one perturbed statistic": (perturb("Mul", 3, 1), "layers whose weights are not in ONNX"),
    "a perturbed dense layer": (perturb("MatMul", 0, 1), "layers whose weights are not in ONNX"),
    "two layers swapped": (swap_weights, "largest difference in probability"),
    "a ReLU missing": (drop_relu, "largest difference in probability"),
    "a shortcut missing": (drop_shortcut, "largest difference in probability"),
    "a convolution too many": (extra_convolution, "convolutions: expected 9, observed 10"),
}


@pytest.mark.parametrize(("change", "said"), CONVERSION.values(), ids=CONVERSION)
def test_another_network_is_not_the_one_that_was_converted(
    bench: Bench, change: Change, said: str
) -> None:
    # What the structure does not show, the scores do.
    plant_onnx(bench, change, evaluate="probability" in said)
    assert said in bench.verdict("CONV-02")


def test_a_weight_moved_by_one_bit_is_another_weight(bench: Bench) -> None:
    """Far too little for any score to tell."""
    plant_onnx(bench, perturb("Conv", 4, 1, ulp=True))
    said = bench.verdict("CONV-02")
    assert "layers whose weights are not in ONNX" in said
    assert "another top-1" not in said


def fix_batch(model: Any) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def rename_producer(model: Any) -> None:
    model.producer_name = "somebody"


def lower_opset(model: Any) -> None:
    model.opset_import[0].version = 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fix_batch, "batch size: expected dynamic, observed 1"),
        (rename_producer, "producer: expected tf2onnx, observed somebody"),
        (lower_opset, "opset: expected 17, observed 16"),
    ],
    ids=["fixed batch", "another producer", "another opset"],
)
def test_a_model_that_is_not_what_the_record_says(bench: Bench, change: Change, said: str) -> None:
    path = bench.artifact("onnx").path("model.onnx")
    bench.plant("onnx", files={"model.onnx": edited(path, change)})
    assert said in bench.verdict("CONV-01")


def test_an_invalid_model_does_not_pass(bench: Bench) -> None:
    def change(model: Any) -> None:
        nodes(model, "Relu")[0].op_type = "Rectify"

    path = bench.artifact("onnx").path("model.onnx")
    bench.plant("onnx", files={"model.onnx": edited(path, change)})
    with pytest.raises(onnx.checker.ValidationError):
        bench.verdict("CONV-01")


# --- the log -------------------------------------------------------------------------------------

WARNING = {
    "step": "convert to ONNX",
    "source": "tf2onnx",
    "category": "WARNING",
    "message": "planted and swallowed",
}


def test_a_warning_that_the_log_swallowed_is_missed(bench: Bench) -> None:
    warnings = bench.artifact("onnx").record["warnings"]
    bench.plant("onnx", {"warnings": [*warnings, WARNING]})
    assert "planted and swallowed" in bench.verdict("CONV-03")


STEPS: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "a step missing": (lambda steps: steps.pop(2), "steps recorded"),
    "a step twice": (lambda steps: steps.append(steps[0]), "steps recorded"),
    "steps in another order": (lambda steps: steps.reverse(), "steps recorded"),
    "a negative duration": (lambda steps: steps[1].update(seconds=-1), "steps without a duration"),
    "a duration that is no number": (
        lambda steps: steps[1].update(seconds=float("nan")),
        "steps without a duration",
    ),
    "a step without a duration": (
        lambda steps: steps[1].pop("seconds"),
        "steps without a duration",
    ),
    "a duration that is nothing": (
        lambda steps: steps[1].update(seconds=None),
        "steps without a duration",
    ),
}


@pytest.mark.parametrize(("change", "said"), STEPS.values(), ids=STEPS)
def test_a_step_that_was_not_timed_is_missed(
    bench: Bench, change: Callable[[list[dict[str, Any]]], object], said: str
) -> None:
    steps = [dict(step) for step in bench.artifact("onnx").record["steps"]]
    change(steps)
    bench.plant("onnx", {"steps": steps})
    assert said in bench.verdict("CONV-03")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("convert to ONNX ...", "steps missing in the log"),
        ("versions: ", "versions missing in the log"),
    ],
)
def test_a_log_without_a_line_is_seen(bench: Bench, line: str, said: str) -> None:
    text = bench.artifact("onnx").path("conversion.log").read_text(encoding="utf-8")
    kept = "".join(f"{one}\n" for one in text.splitlines() if not one.startswith(line))
    assert kept != text
    bench.plant("onnx", files={"conversion.log": kept.encode()})
    assert said in bench.verdict("CONV-03")


# --- ONNX to PyTorch -----------------------------------------------------------------------------


def nudge(module: Any) -> None:
    part = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)][3]
    weight = part.weight.data.view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


def drop_bias(module: Any) -> None:
    dense: Any = next(part for part in module.modules() if isinstance(part, torch.nn.Linear))
    dense.bias = None


def other_activation(module: Any) -> None:
    name = next(n for n, part in module.named_modules() if isinstance(part, torch.nn.ReLU))
    module._modules[name] = torch.nn.ReLU6()


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (nudge, "initializers that did not arrive bit-equal"),
        (drop_bias, "initializers that did not arrive bit-equal"),
        (other_activation, "layer types"),
    ],
    ids=["one bit", "a bias missing", "another activation"],
)
def test_another_module_is_not_the_one_that_was_converted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, plant: Change, said: str
) -> None:
    honest = onnx_to_torch.convert

    def convert(path: Path) -> Any:
        module = honest(path)
        plant(module)
        return module

    monkeypatch.setattr(onnx_to_torch, "convert", convert)
    bench.remake("structure/torch")
    assert said in bench.verdict("PT-02")


@pytest.mark.parametrize(
    ("change", "parity"),
    [(perturb("Conv", 4, 1), True), (perturb("Conv", 4, 1, ulp=True), False)],
    ids=["one layer", "one bit"],
)
def test_a_perturbed_program_is_not_the_one_that_was_exported(
    bench: Bench, tmp_path: Path, change: Change, parity: bool
) -> None:
    folded = bench.artifact("folded").path("folded.onnx")
    (tmp_path / "other.onnx").write_bytes(edited(folded, change))
    onnx_to_torch.export(onnx_to_torch.convert(tmp_path / "other.onnx"), tmp_path / "model.pt2")
    bench.plant("torch", files={"model.pt2": (tmp_path / "model.pt2").read_bytes()})
    bench.remake(f"scores/{TORCH}", "structure/torch", "parity/torch")
    assert "missing in the exported program" in bench.verdict("PT-01")
    assert ("PyTorch against ONNX Runtime" in bench.verdict("PT-02")) is parity


def test_scores_that_differ_between_frameworks_are_seen(bench: Bench) -> None:
    scores = np.load(bench.artifact(f"scores/{TORCH}").path("scores.npy"))
    scores[7] = np.roll(scores[7], 1)
    bench.plant(f"scores/{TORCH}", files={"scores.npy": as_npy(scores)})
    bench.remake("parity/torch")
    said = bench.verdict("PT-02")
    assert "largest difference in probability" in said
    assert "images with another top-1 of 2000: expected 0, observed 1" in said
