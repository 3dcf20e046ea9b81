"""Kernels against exact integers, and stored scales against those decided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resnet8_eval import configurations, proof
from resnet8_eval.backends import onnxruntime as backend
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.pipeline import Pipeline

ONNX = configurations.of("onnxruntime-int8-tuned")
QUANTIZED = [row.name for row in configurations.calibrated()]
KERNELS = [row.name for row in configurations.calibrated() if row.execution == "kernel"]


@pytest.mark.parametrize("name", QUANTIZED)
def test_what_is_stored_is_what_was_decided(pipeline: Pipeline, name: str) -> None:
    record = pipeline.artifact(f"proof/{name}").record
    assert all(check["ok"] for check in record["checks"]), record["checks"]
    kinds = [entry["kind"] for entry in record["tensors"]]
    assert kinds.count("weight") == 10
    assert kinds.count("activation") >= 14


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compute_what_exact_integers_are(pipeline: Pipeline, name: str) -> None:
    found = pipeline.artifact(f"proof/{name}").record["exact_integers"]
    assert found["total"] == 2000
    assert found["disagreements"] == 0
    assert found["largest_difference"] < (0.05 if "torch" in name else 1e-6)


def _check(pipeline: Pipeline, model: onnx.ModelProto, path: Path) -> str:
    onnx.save(model, path)
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    found = backend.read_back(path, parameters.rounded)
    return " ".join(str(c) for c in proof.compare(found, parameters, ONNX) if not c.ok)


def _model(pipeline: Pipeline) -> onnx.ModelProto:
    return onnx.load(pipeline.artifact(f"model/{ONNX.name}").path("model.onnx"))


@pytest.mark.parametrize("node_index", [0, -1])
def test_one_wrong_scale_is_found_and_named(
    pipeline: Pipeline, tmp_path: Path, node_index: int
) -> None:
    model = _model(pipeline)
    names = [n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    entry = next(e for e in model.graph.initializer if e.name == names[node_index])
    wrong = numpy_helper.to_array(entry) * np.float32(1.5)
    entry.CopyFrom(numpy_helper.from_array(wrong, entry.name))
    assert "wrong scale" in _check(pipeline, model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("argument", "steps", "said"),
    [(1, 1, "1 of 432 integers are others"), (2, 3, "stored biases")],
    ids=["an integer of a weight", "an integer of a bias"],
)
def test_one_other_number_is_found_and_named(
    pipeline: Pipeline, tmp_path: Path, argument: int, steps: int, said: str
) -> None:
    model = _model(pipeline)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    makers = {name: node for node in model.graph.node for name in node.output}
    name = makers[first.input[argument]].input[0]
    entry = next(entry for entry in model.graph.initializer if entry.name == name)
    integers = numpy_helper.to_array(entry).copy()
    integers.flat[0] += steps if integers.flat[0] < 0 else -steps
    entry.CopyFrom(numpy_helper.from_array(integers, name))
    assert said in _check(pipeline, model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("kind", "said"),
    [("weight", "weights"), ("bias", "biases"), ("activation", "activations")],
)
def test_a_scale_that_is_no_number_is_found(pipeline: Pipeline, kind: str, said: str) -> None:
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    model = pipeline.artifact(f"model/{ONNX.name}").path("model.onnx")
    found = backend.read_back(model, parameters.rounded)
    place = next(n for n, entry in enumerate(found) if entry.kind == kind)
    found[place] = replace(found[place], scales=[np.nan] * len(found[place].scales))
    (check,) = [each for each in proof.compare(found, parameters, ONNX) if not each.ok]
    assert check.name.endswith(said)


def test_a_map_that_is_left_in_float_is_found_and_named(pipeline: Pipeline) -> None:
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    model = pipeline.artifact(f"model/{ONNX.name}").path("model.onnx")
    found = backend.read_back(model, parameters.rounded)
    name = parameters.rounded.maps[2].output
    kept = [entry for entry in found if entry.name != name]
    (check,) = [each for each in proof.compare(kept, parameters, ONNX) if not each.ok]
    assert f"first wrong: {name}: it is not stored as a quantized tensor" in check.observed


def test_a_swapped_axis_is_found_and_named(pipeline: Pipeline, tmp_path: Path) -> None:
    model = _model(pipeline)
    square = {e.name for e in model.graph.initializer if e.dims[:2] == [16, 16]}
    node = next(
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in square
    )
    next(a for a in node.attribute if a.name == "axis").i = 1
    assert "wrong axis" in _check(pipeline, model, tmp_path / "model.onnx")


@pytest.mark.parametrize("times", [1.1, np.nan])
def test_weights_that_stand_for_others_are_found(pipeline: Pipeline, times: float) -> None:
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    assert proof.compare_weights(parameters).ok
    name = next(iter(parameters.scales))
    scales = parameters.scales[name].copy()
    scales[3] *= times
    wrong = replace(parameters, scales={**parameters.scales, name: scales})
    check = proof.compare_weights(wrong)
    assert not check.ok
    assert f"wrong scale or axis: {name}: channel 3" in check.observed


def test_stored_numbers_are_not_blamed_where_they_are_as_decided(pipeline: Pipeline) -> None:
    row = configurations.of("onnxruntime-uint8-tuned")
    parameters = Parameters.load(pipeline.artifact("parameters/tuned-8bit").folder)
    model = pipeline.artifact(f"model/{row.name}").path("model.onnx")
    stored = backend.read_back(model, parameters.rounded)
    said = [proof.probable_cause(stored, "onnxruntime", as_decided=held) for held in (True, False)]
    assert "operators run in float" in said[0]
    assert "a wrong scale" in said[1]


SATURATION = """
import json, sys
from pathlib import Path
from resnet8_eval.cifar10 import Split, read_split
from resnet8_eval import backends, configurations, proof
from resnet8_eval.calibrate.tuned import Statistics, decide
from resnet8_eval.integers import ExactNetwork, rounding
collected, dataset, out = map(Path, sys.argv[1:])
recipe = configurations.TUNED
limits = {"chosen": recipe.weight_limit, "eight bits": 127}
statistics = Statistics.load(collected, "")
found = {}
for name, limit in limits.items():
    folder = out / name
    folder.mkdir()
    parameters = decide(statistics, recipe, limit)
    test = read_split(dataset, "test")
    test = Split(test.images[:500], test.labels[:500])
    torch = backends.backend("torch")
    torch.write(parameters, configurations.of("torch-int8-tuned"), folder / "model.pt")
    stored = torch.read_back(folder / "model.pt", parameters.rounded)
    scores = backends.scores(folder / "model.pt", test.images, threads=1)
    exact = ExactNetwork(parameters.rounded, stored, rounding("torch")).scores(test.images)
    cause = proof.probable_cause(stored, "torch", as_decided=True)
    found[name] = {
        **proof.disagreement(scores, exact, test, cause),
        "weight_limit": limit,
    }
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86 only")
def test_without_vnni_weights_get_seven_bits_and_eight_would_be_caught(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    arguments = [
        pipeline.artifact(f"statistics/{configurations.TUNED.statistics}").folder,
        pipeline.settings.assets.dataset,
        tmp_path,
    ]
    done = subprocess.run(  # noqa: S603 (our own interpreter and script)
        [sys.executable, "-c", SATURATION, *map(str, arguments)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["chosen"]["weight_limit"] == 63
    assert found["chosen"]["disagreements"] == 0
    assert found["chosen"]["largest_difference"] < 1e-6  # these kernels take steps of their own
    eight = found["eight bits"]
    assert eight["disagreements"] > 2
    assert "saturate" in eight["probable_cause"]
    assert "ONEDNN_MAX_CPU_ISA" in eight["probable_cause"]
