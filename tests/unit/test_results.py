"""The results file: JSON or nothing, and honest about what is older than the run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from resnet8_eval import results
from resnet8_eval.pipeline import Pipeline


@pytest.mark.parametrize(("started", "word"), [(0.0, "miss"), (math.inf, "hit")])
def test_what_is_older_than_the_run_came_from_the_cache(
    pipeline: Pipeline, started: float, word: str
) -> None:
    built = results.build(pipeline, {}, complete=False, command="pytest", started=started)
    assert {"onnx", "calibration", "scores/torch-int8-tuned"} <= set(built["cache"])
    assert set(built["cache"].values()) == {word}


def test_every_stage_of_the_run_says_what_it_needed(pipeline: Pipeline) -> None:
    built = results.build(pipeline, {}, complete=False, command="pytest", started=0.0)
    assert set(built["needs"]) == set(built["timing"])
    assert built["needs"]["parameters/tuned"] == ["onnx", "folded", "calibration"]
    del built["needs"]
    results.validate(built)  # older runs did not record it


def test_what_json_has_no_word_for_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write({"measured": math.nan}, tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_what_a_report_needs_of_the_records_is_in_the_results(pipeline: Pipeline) -> None:
    pipeline.artifact("sensitivity/tuned")
    built = results.build(pipeline, {}, complete=False, command="pytest", started=0.0)
    assert built["sensitivity"]["images"] > 0
    found = {entry["name"]: entry for entry in built["configurations"]}
    assert found["keras-float32"]["weights_bytes"] == 4 * 78_666
    assert "weights_bytes" not in found["onnxruntime-float32"]
    assert set(found["torch-uint8-tuned"]["census"]["weights"].values()) == {"uint8"}
    assert found["onnxruntime-int8-tuned"]["default_kernels"] is not None
    assert found["torch-int8-tuned"]["default_kernels"] is None
