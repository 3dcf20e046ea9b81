"""Golden vectors: read back, and every layer recomputed from its file alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from resnet8_eval import cli, configurations, quantized_onnx
from resnet8_eval import golden as vectors
from resnet8_eval.advanced import lowbit, mixed
from resnet8_eval.advanced.bits import Bits
from resnet8_eval.backends import onnxruntime
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.tuned import collect
from resnet8_eval.cifar10 import Split
from resnet8_eval.pipeline import Pipeline, model_path
from tests import small_network

POSITIONS = [0, 7, 1999]
ROWS = ["onnxruntime-int8-tuned", "onnxruntime-uint8-tuned", "onnxruntime-int8-stock"]
Index = dict[str, Any]


def run(pipeline: Pipeline, row: str, folder: Path, images: str = "0,7,1999") -> Any:
    return golden(model_path(pipeline, configurations.of(row)), folder, images)


def golden(model: Path, folder: Path, images: str = "0") -> Any:
    words = ["golden", model, "--images", images, "-o", folder, "--assets", "stand-in"]
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="module", params=ROWS)
def written(
    request: pytest.FixtureRequest, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Index]:
    folder = tmp_path_factory.mktemp("golden")
    done = run(pipeline, request.param, folder)
    assert done.exit_code == 0, done.output
    return folder, json.loads((folder / "index.json").read_text(encoding="utf-8"))


def less_zero(held: dict[str, np.ndarray], role: str) -> np.ndarray:
    return held[role].astype(np.int64) - int(held[f"{role}_zero_point"])


def onto(entry: Index, held: dict[str, np.ndarray], real: np.ndarray) -> np.ndarray:
    assert "clip(round(" in entry["formula"]
    whole = np.rint(real).astype(np.int64) + int(held["output_zero_point"])
    return np.clip(whole, *entry["clip"]).astype(held["output"].dtype)


def convolution(entry: Index, held: dict[str, np.ndarray]) -> np.ndarray:
    x, weight = less_zero(held, "input"), held["weight"].astype(np.int64)
    top, left, bottom, right = entry["pads"]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(1, 2))
    down, across = entry["strides"]
    sums = np.einsum("nhwcij,ocij->nhwo", windows[:, ::down, ::across], weight) + held["bias"]
    real = sums.astype(np.float32) * held["multiplier"]
    return onto(entry, held, real)


def addition(entry: Index, held: dict[str, np.ndarray]) -> np.ndarray:
    real = [
        less_zero(held, role) * float(held[f"{role}_scale"]) / float(held["output_scale"])
        for role in ("input", "other")
    ]
    return onto(entry, held, real[0] + real[1])


def pooling(entry: Index, held: dict[str, np.ndarray]) -> np.ndarray:
    sums = less_zero(held, "input").sum(axis=(1, 2))
    return onto(entry, held, sums.astype(np.float32) * held["multiplier"])


def dense(entry: Index, held: dict[str, np.ndarray]) -> np.ndarray:
    sums = less_zero(held, "input") @ held["weight"].astype(np.int64).T + held["bias"]
    real = sums.astype(np.float32) * held["multiplier"]
    return onto(entry, held, real) if "clip" in entry else real


LAYERS: dict[str, Callable[[Index, dict[str, np.ndarray]], np.ndarray]] = {
    "convolution": convolution,
    "addition": addition,
    "pooling": pooling,
    "dense": dense,
}


def test_each_layer_is_what_its_file_says(written: tuple[Path, Index]) -> None:
    _recomputed(*written)


def test_maps_of_four_bits_are_held_to_their_sixteen_integers(tmp_path: Path) -> None:
    images = small_network.images(24)
    variants = mixed.variants(collect(small_network.parsed(), images, configurations.TUNED))
    bits = Bits.all(variants.exact, 4, 4)
    lowbit.write(variants.at(bits), bits, tmp_path / "model.onnx")
    exact = quantized_onnx.read(tmp_path / "model.onnx")
    index = vectors.write(exact, images[:2], [0, 1], tmp_path)
    assert {entry["clip"][1] for entry in index["layers"] if "clip" in entry} == {15}
    _recomputed(tmp_path, index)


def _recomputed(folder: Path, index: Index) -> None:
    for entry in index["layers"]:
        with np.load(folder / entry["file"]) as arrays:
            held = dict(arrays)
        found = LAYERS[entry["kind"]](entry, held)
        assert found.shape == held["output"].shape
        if entry["kind"] == "addition":  # float64 here, float32 in the kernels
            assert np.abs(found.astype(int) - held["output"]).max() <= 1
            assert (found != held["output"]).mean() < 1e-3
        else:
            assert np.array_equal(found, held["output"])
        assert {
            key: {"dtype": str(value.dtype), "shape": list(value.shape)}
            for key, value in held.items()
        } == entry["arrays"]


def test_other_weights_are_seen(written: tuple[Path, Index]) -> None:
    folder, index = written
    for entry in index["layers"]:
        if entry["kind"] == "convolution":
            with np.load(folder / entry["file"]) as arrays:
                held = dict(arrays)
            held["weight"] = held["weight"].astype(np.int16)
            held["weight"][:, 0, 0, 0] += 1
            assert not np.array_equal(convolution(entry, held), held["output"])


def test_each_layer_reads_what_the_one_before_gave(
    written: tuple[Path, Index], standin_test: Split
) -> None:
    folder, index = written
    given: dict[str, np.ndarray] = {}
    for entry in index["layers"]:
        with np.load(folder / entry["file"]) as held:
            for role, name in zip(("input", "other"), entry["reads"], strict=False):
                if name != "images":
                    assert np.array_equal(held[role], given[name])
            given[entry["name"]] = held["output"]
    assert index["images"] == POSITIONS
    first = index["layers"][0]
    with np.load(folder / first["file"]) as held:
        real = (held["input"].astype(int) - int(held["input_zero_point"])) * held["input_scale"]
        assert np.abs(real - standin_test.images[POSITIONS]).max() <= 0.51


def test_names_are_those_of_keras(written: tuple[Path, Index], pipeline: Pipeline) -> None:
    keras = {layer["name"] for layer in pipeline.artifact("onnx").record["layers"]}
    assert {entry["name"] for entry in written[1]["layers"]} <= keras


@pytest.mark.parametrize("images", ["", "1,x", "2000", "-1"])
def test_positions_that_are_none_are_refused(
    pipeline: Pipeline, tmp_path: Path, images: str
) -> None:
    done = run(pipeline, ROWS[0], tmp_path / "out", images)
    assert done.exit_code == 2
    assert "positions from 0 to 1999" in " ".join(done.output.replace("│", " ").split())


def test_a_float_model_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    done = run(pipeline, "onnxruntime-float32", tmp_path / "out")
    assert done.exit_code == 1
    assert "no QuantizeLinear step" in done.output
    assert not (tmp_path / "out").exists()


def behind(model: onnx.ModelProto, number: int) -> tuple[onnx.NodeProto, Any]:
    """The dequantize step at an input of the second convolution, and what sets its constants."""
    entries = {entry.name: entry for entry in model.graph.initializer}
    (_, layer, *_) = (node for node in model.graph.node if node.op_type == "Conv")
    (step,) = (node for node in model.graph.node if node.output[0] == layer.input[number])

    def change(place: int, to: Callable[[np.ndarray], np.ndarray]) -> None:
        entry = entries[step.input[place]]
        entry.CopyFrom(numpy_helper.from_array(to(numpy_helper.to_array(entry)), entry.name))

    return step, change


def at_the_first_map(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The quantize step there, and the dequantize steps behind it."""
    (into, *_) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return [into, *(node for node in model.graph.node if node.input[0] == into.output[0])]


def sixteen_bits(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint16), "wide"))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for step in at_the_first_map(model):
        step.input[2], step.domain = "wide", "com.microsoft"


def other_steps_behind(model: onnx.ModelProto) -> None:
    into, *others = at_the_first_map(model)
    (scale,) = (e for e in model.graph.initializer if e.name == into.input[1])
    doubled = 2 * numpy_helper.to_array(scale)
    model.graph.initializer.append(numpy_helper.from_array(doubled, "doubled"))
    for step in others:
        step.input[1] = "doubled"


def bias_in_halves(model: onnx.ModelProto) -> None:
    _, change = behind(model, 2)
    change(0, lambda bias: bias * 2)
    change(1, lambda scale: scale / 2)


def bias_in_float(model: onnx.ModelProto) -> None:
    step, _ = behind(model, 2)
    constants = {e.name: numpy_helper.to_array(e) for e in model.graph.initializer}
    real = (constants[step.input[0]] * constants[step.input[1]]).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(real, step.output[0]))
    model.graph.node.remove(step)


def along_inputs(model: onnx.ModelProto) -> None:
    step, _ = behind(model, 1)
    (axis,) = (entry for entry in step.attribute if entry.name == "axis")
    axis.i = 1


@pytest.mark.parametrize(
    ("plant", "given"),
    [
        (sixteen_bits, "uint16 at"),
        (other_steps_behind, "2 scales at"),
        (bias_in_halves, "a bias in other steps than the sums of conv2d_1"),
        (bias_in_float, "no step at the bias of conv2d_1"),
        (along_inputs, "scales along the inputs of"),
    ],
)
def test_steps_that_exact_integers_do_not_take_are_refused(
    pipeline: Pipeline,
    tmp_path: Path,
    plant: Callable[[onnx.ModelProto], None],
    given: str,
) -> None:
    model = onnx.load(model_path(pipeline, configurations.of("onnxruntime-uint8-tuned")))
    plant(model)
    onnx.save(model, tmp_path / "planted.onnx")
    done = golden(tmp_path / "planted.onnx", tmp_path / "vectors")
    assert done.exit_code == 1
    assert given in " ".join(done.output.split())
    assert not (tmp_path / "vectors").exists()


def test_each_channel_may_have_its_zero_point(pipeline: Pipeline, tmp_path: Path) -> None:
    path = model_path(pipeline, configurations.of("onnxruntime-int8-stock"))
    exact = quantized_onnx.read(path)
    model = onnx.load(path)
    step, change = behind(model, 1)
    shifts = np.arange(16, dtype=np.int8) % 2
    change(0, lambda values: np.maximum(values, -127) - shifts[:, None, None, None])
    change(1, lambda scale: np.broadcast_to(scale, 16).copy())
    change(2, lambda zero: np.broadcast_to(zero, 16) - shifts)
    step.attribute.append(onnx.helper.make_attribute("axis", 0))
    onnx.save(model, tmp_path / "planted.onnx")
    found = quantized_onnx.read(tmp_path / "planted.onnx")
    assert np.array_equal(found.weights["conv2d_1"].integers, exact.weights["conv2d_1"].integers)


def test_vectors_of_another_model_are_taken_out_and_nothing_else(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "vectors"
    done = run(pipeline, ROWS[0], folder, "0")
    assert f" layers, 1 image; written to {folder}\n" in done.output
    index = (folder / "index.json").read_text(encoding="utf-8")
    # Of a network of more than 100 layers.
    (folder / "index.json").write_text(index.replace("00-conv2d.npz", "100-other.npz"))
    (folder / "00-conv2d.npz").rename(folder / "100-other.npz")
    (folder / "01-the-users-own.npz").touch()
    run(pipeline, ROWS[0], folder, "0")
    names = {path.name for path in folder.iterdir()}
    assert "100-other.npz" not in names
    assert {"01-the-users-own.npz", "00-conv2d.npz", "index.json"} <= names


@pytest.mark.parametrize(
    "index",
    ["{}", "[1]", "no JSON", '{"layers": [{"name": "a layer"}]}', '{"layers": []}'],
)
def test_an_index_that_is_none_is_not_replaced(
    pipeline: Pipeline, tmp_path: Path, index: str
) -> None:
    (tmp_path / "index.json").write_text(index)
    done = run(pipeline, ROWS[0], tmp_path, "0")
    assert done.exit_code == 1
    assert "error: index.json would be replaced." in done.output
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("index.json", index)]


def test_a_layer_left_in_float_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    whole = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    dense = whole.rounded.dense.weight
    scales = {name: scale for name, scale in whole.scales.items() if name != dense}
    row = configurations.of("onnxruntime-int8-tuned")
    onnxruntime.write(replace(whole, scales=scales), row, tmp_path / "mixed.onnx")
    done = golden(tmp_path / "mixed.onnx", tmp_path / "vectors")
    assert done.exit_code == 1
    assert "error: dense is computed in float and has no integers." in done.output
    assert not (tmp_path / "vectors").exists()


def unnamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def test_names_that_only_a_slash_tells_apart_stay_two(pipeline: Pipeline, tmp_path: Path) -> None:
    model = onnx.load(model_path(pipeline, configurations.of("onnxruntime-int8-tuned")))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    convolutions[0].name, convolutions[1].name = "a/b", "a.b"
    onnx.save(model, tmp_path / "model.onnx")
    exact = quantized_onnx.read(tmp_path / "model.onnx")
    first, second = vectors.write(exact, small_network.images(1), [0], tmp_path)["layers"][:2]
    assert (first["name"], second["name"], second["reads"]) == ("a/b", "a.b", ["a/b"])
    assert (tmp_path / first["file"]).is_file()


@pytest.mark.parametrize("change", [small_network.listed, unnamed])
@pytest.mark.parametrize("row", ["onnxruntime-int8-tuned", "onnxruntime-int8-stock"])
def test_a_model_that_is_otherwise_written_is_read_alike(
    pipeline: Pipeline, tmp_path: Path, row: str, change: Callable[[onnx.ModelProto], None]
) -> None:
    """Its initializers are inputs as well, or its nodes have no names."""
    stored = model_path(pipeline, configurations.of(row))
    model = onnx.load(stored)
    change(model)
    onnx.save(model, tmp_path / "other.onnx")
    images = small_network.images(4)
    one, other = (quantized_onnx.read(path) for path in (stored, tmp_path / "other.onnx"))
    assert np.array_equal(one.scores(images), other.scores(images))
