"""From calibration images to parameters: every step is taken, and what was fed is told."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from resnet8_eval import backends
from resnet8_eval.calibrate.equalize import equalize
from resnet8_eval.calibrate.parameters import EXACT, Parameters
from resnet8_eval.calibrate.ranges import activation_ranges, observe
from resnet8_eval.calibrate.tuned import collect, compare_feeds, decide
from resnet8_eval.checks import failed
from resnet8_eval.configurations import TUNED
from resnet8_eval.evaluate import same_function
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.preprocess import RAW, batches, preprocess
from tests import small_network

IMAGES = small_network.images()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    statistics = collect(small_network.parsed(), IMAGES, TUNED)
    decide(statistics, TUNED, TUNED.weight_limit).save(tmp_path)
    return tmp_path


def test_ranges_are_those_of_the_equalized_network(made: Path) -> None:
    wanted = equalize(small_network.parsed(), IMAGES)
    found = Parameters.load(made)
    assert found.exact.model.SerializeToString() == wanted.model.SerializeToString()
    assert found.activations == activation_ranges(wanted, observe(wanted, IMAGES))
    assert found.activations["images"] == (0.0, 255.0)  # the grid's integers are the pixels


def test_weights_are_those_of_the_equalized_network_rounded(made: Path) -> None:
    found = Parameters.load(made)
    before, after = found.exact.weights(), found.rounded.weights()
    for name in ("first/weight", "second/weight", "dense/weight"):
        step = float(found.scales[name].max())
        assert 0 < np.abs(after[name] - before[name]).max() < 4 * step


def test_what_is_quantized_is_held_against_the_network_that_was_converted(made: Path) -> None:
    onnx.save(small_network.network(), made / "converted.onnx")
    checks = same_function("both", made / "converted.onnx", made / EXACT, IMAGES, 1)
    assert len(checks) == 2
    assert failed(checks) == []


@pytest.mark.parametrize("fault", ["a weight", "another pool"])
def test_a_network_that_became_another_is_told(made: Path, fault: str) -> None:
    model = small_network.network()
    if fault == "a weight":
        weights = small_network.parsed().weights()
        weights["second/weight"][0, 0] *= 1.5
        model = small_network.parsed().with_weights(weights).model
    else:
        pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
        pool.op_type = "GlobalMaxPool"
    onnx.save(model, made / "converted.onnx")
    broken = failed(same_function("both", made / "converted.onnx", made / EXACT, IMAGES, 1))
    assert "largest difference" in broken[0].name


def test_the_bytes_that_were_fed_are_told() -> None:
    fed_sha256 = collect(small_network.parsed(), IMAGES, TUNED).observed.fed_sha256
    fed = preprocess(IMAGES).tobytes()
    assert fed_sha256 == hashlib.sha256(fed).hexdigest()
    assert compare_feeds(IMAGES, fed_sha256) == {
        "differing_bytes": 0,
        "compared_bytes": len(fed),
        "expected_bytes": len(fed),
        "evaluation_sha256": fed_sha256,
        "calibration_sha256": fed_sha256,
        "preprocessing": RAW.describe(),
        "largest_difference": 0.0,
    }


def test_an_image_that_only_one_of_both_feeds_has_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "batches", lambda images: batches(images[:-1]))
    assert compare_feeds(IMAGES, "")["differing_bytes"] == 4 * IMAGES[0].size


DECIDE = """
import hashlib, sys
from pathlib import Path
import numpy as np
from resnet8_eval import configurations, network
from resnet8_eval.calibrate.tuned import collect, decide
folded, images, out = map(Path, sys.argv[1:])
statistics = collect(network.read(folded), np.load(images)[::50], configurations.TUNED)
for recipe in configurations.recipes():
    decide(statistics, recipe, recipe.weight_limit).save(out)
    for path in sorted(out.iterdir()):
        print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_another_processor_s_kernels_decide_the_same_bytes(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """OpenBLAS can be told to sum as it does on processors without AVX-512, or without AVX."""
    arguments = [
        pipeline.artifact("folded").path("folded.onnx"),
        pipeline.artifact("calibration").path("images.npy"),
        tmp_path,
    ]
    decided = {
        subprocess.run(  # noqa: S603 (our own words)
            [sys.executable, "-c", DECIDE, *map(str, arguments)],
            env={**os.environ, "OPENBLAS_CORETYPE": kind},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for kind in ("Nehalem", "Haswell", "SkylakeX")
    }
    assert [len(found.splitlines()) for found in decided] == [8]
