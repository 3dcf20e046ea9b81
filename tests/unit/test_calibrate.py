"""From calibration images to parameters: every step is taken, and what was fed is told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from resnet8_eval import runtimes
from resnet8_eval.errors import ModelError
from resnet8_eval.preprocess import batches, preprocess
from resnet8_eval.quantize.calibrate import calibrate, compare_feeds
from resnet8_eval.quantize.equalization import equalize
from resnet8_eval.quantize.graph import Weights
from resnet8_eval.quantize.parameters import EQUALIZED, MODEL, Parameters
from resnet8_eval.quantize.ranges import activation_ranges, observe
from tests import small_network

IMAGES = small_network.images()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    onnx.save(small_network.network(), tmp_path / "folded.onnx")
    calibrate(tmp_path / "folded.onnx", IMAGES, tmp_path, 1)
    return tmp_path


def test_ranges_are_those_of_the_equalized_network(made: Path) -> None:
    wanted = equalize(small_network.network(), IMAGES, 1)
    equalized = onnx.load(made / EQUALIZED)
    assert equalized.SerializeToString() == wanted.SerializeToString()
    found = Parameters.load(made).activations
    assert found == activation_ranges(wanted, observe(wanted, IMAGES, 1))
    assert found["images"] == (0.0, 255.0)  # the grid's integers are the pixels


def test_weights_are_those_of_the_equalized_network_rounded(made: Path) -> None:
    found, before = Parameters.load(made), Weights(onnx.load(made / EQUALIZED))
    after = Weights(onnx.load(made / MODEL))
    for name in ("first/weight", "second/weight", "dense/weight"):
        step = float(found.scales[name].max())
        assert 0 < np.abs(after[name] - before[name]).max() < 4 * step


def test_the_bytes_that_were_fed_are_told(tmp_path: Path) -> None:
    onnx.save(small_network.network(), tmp_path / "folded.onnx")
    record = calibrate(tmp_path / "folded.onnx", IMAGES, tmp_path, 1)
    fed = preprocess(IMAGES).tobytes()
    assert record["fed_sha256"] == hashlib.sha256(fed).hexdigest()
    assert compare_feeds(IMAGES, record["fed_sha256"]) == {
        "differing_bytes": 0,
        "compared_bytes": len(fed),
        "expected_bytes": len(fed),
        "evaluation_sha256": record["fed_sha256"],
        "calibration_sha256": record["fed_sha256"],
    }


def test_an_image_that_only_one_of_both_feeds_has_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "batches", lambda images: batches(images[:-1]))
    assert compare_feeds(IMAGES, "")["differing_bytes"] == 4 * IMAGES[0].size


@pytest.mark.parametrize("window", [[9, 9], [16, 31], [1, 1]])
def test_an_average_over_a_part_of_the_map_is_refused(tmp_path: Path, window: list[int]) -> None:
    """Written as a global average it would be another network, and every check would pass."""
    model = small_network.network()
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "AveragePool"
    pool.attribute.append(onnx.helper.make_attribute("kernel_shape", window))
    onnx.save(model, tmp_path / "folded.onnx")
    with pytest.raises(ModelError, match="only a part of its last map"):
        calibrate(tmp_path / "folded.onnx", IMAGES, tmp_path, 1)


def test_an_average_over_the_whole_map_is_a_global_one(tmp_path: Path, made: Path) -> None:
    model = small_network.network()
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "AveragePool"
    pool.attribute.append(onnx.helper.make_attribute("kernel_shape", [17, 32]))
    onnx.save(model, tmp_path / "folded.onnx")
    (tmp_path / "again").mkdir()
    calibrate(tmp_path / "folded.onnx", IMAGES, tmp_path / "again", 1)
    assert (tmp_path / "again" / MODEL).read_bytes() == (made / MODEL).read_bytes()
