"""Golden vectors: read back, and every layer recomputed from its file alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
