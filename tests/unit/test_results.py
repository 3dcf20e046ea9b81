"""The results file: in its form or refused, of either version, and gathered as the run was."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx
import pytest
from onnx import numpy_helper

from resnet8_eval import results, results_v1
from resnet8_eval.configurations import CONFIGURATIONS
from resnet8_eval.errors import ResultsError
from resnet8_eval.gather import gather
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.record import Results
from resnet8_eval.report import html, publish
from resnet8_eval.report.markdown import difference as diff
from resnet8_eval.requirements import BY_ID
from tests.unit import report_samples
from tests.unit.report_samples import record

VERSION_1: Final = Path(__file__).with_name("results.v1.json")
"""What release 1.2.0 wrote of a run on the stand-in, without the pictures."""


def gathered(pipeline: Pipeline, started: float = 0.0) -> Results:
    return gather(pipeline, {}, complete=False, command="pytest", started=started)


def test_published_schema_is_that_of_the_record() -> None:
    assert results.SCHEMA.read_text(encoding="utf-8") == results.schema(), (
        "results.schema.json differs; if that is meant: python -m resnet8_eval.results"
    )


def test_what_another_run_made_came_from_the_cache(pipeline: Pipeline) -> None:
    """Be it made before this run began or since, which no clock is asked."""
    other = Pipeline(replace(pipeline.settings, run="another"))
    for started in (-math.inf, math.inf):
        stages = gathered(other, started).stages
        assert {"onnx", "calibration", "scores/torch-int8-tuned"} <= set(stages)
        assert {(stage.cache, stage.started, stage.ended) for stage in stages.values()} == {
            ("hit", None, None)
        }


def test_every_stage_tells_its_lane_its_needs_and_when_it_was_made(pipeline: Pipeline) -> None:
    made = pipeline.artifact("parameters/tuned")
    of_its_run = Pipeline(replace(pipeline.settings, run=made.run))
    found = gathered(of_its_run, made.created - 100).stages["parameters/tuned"]
    assert found.cache == "miss"
    assert (found.lane, found.needs) == ("onnxruntime", ("statistics/equalized-1",))
    assert found.ended == pytest.approx(100, abs=0.002)
    assert found.started == pytest.approx(100 - made.seconds, abs=0.002)


@pytest.mark.usefixtures("made_here")
def test_what_a_report_needs_of_the_records_is_in_the_results(pipeline: Pipeline) -> None:
    pipeline.artifact("sensitivity/tuned")
    built = gathered(pipeline)
    assert built.sensitivity is not None
    assert built.sensitivity.images > 0
    found = {entry.name: entry for entry in built.configurations}
    assert list(found) == [row.name for row in built.expected]
    uint8, int8 = found["torch-uint8-tuned"], found["torch-int8-tuned"]
    assert uint8.census is not None
    assert set(uint8.census.weights.values()) == {"uint8"}
    assert found["onnxruntime-int8-tuned"].default_kernels is not None
    assert int8.default_kernels is None
    assert int8.recipe is not None
    assert int8.recipe.method["rounding"] == "gptq"
    assert (int8.recipe.name, int8.recipe.reduce_range) == ("tuned", True)


def test_the_bytes_of_weights_are_those_that_are_stored(pipeline: Pipeline) -> None:
    """A byte for a weight, four for a bias; of each channel a scale and a zero point.

    PyTorch has scales of eight bytes in TorchScript and of four in a program, and zero points of
    eight in both. An ONNX file holds nothing but such constants.
    """
    weights, channels = 77_360, 346
    expected = {
        "keras-float32": 4 * 78_666,
        "torch-float32": 4 * (weights + channels),
        "torch-int8-stock": weights + channels * (4 + 4 + 8),
        "torch-int8-tuned": weights + channels * (4 + 8 + 8),
        "torch-uint8-stock": weights + channels * (4 + 4 + 8),
        "torch-uint8-tuned": weights + channels * (4 + 8 + 8),
    }
    for row in CONFIGURATIONS:
        if row.framework == "onnxruntime":
            held = onnx.load(model_path(pipeline, row)).graph.initializer
            expected[row.name] = sum(numpy_helper.to_array(one).nbytes for one in held)
    found = {entry.name: entry.weights_bytes for entry in gathered(pipeline).configurations}
    assert found == expected
    assert weights + 4 * channels < expected["onnxruntime-int8-stock"] < 1.1 * weights


def test_a_row_without_a_number_is_expected_all_the_same(pipeline: Pipeline) -> None:
    empty = Pipeline(pipeline.settings)
    empty.peek = lambda name: None  # type: ignore[method-assign]
    built = gathered(empty)
    assert (built.configurations, built.stages, built.baseline) == ((), {}, None)
    assert len(built.expected) == len(CONFIGURATIONS)


def test_what_was_made_of_a_row_that_could_not_be_compared_is_not_told(pipeline: Pipeline) -> None:
    """As where Keras fails, or the run is ended before: there is no baseline."""
    partial = Pipeline(pipeline.settings)
    peek = partial.peek
    partial.peek = lambda name: (  # type: ignore[method-assign]
        None if name.startswith("compare/") or "keras" in name else peek(name)
    )
    built = gathered(partial)
    assert "tuning/torch-int8-tuned" in built.stages
    assert (built.configurations, built.tuning) == ((), ())
    html.page(built)


@pytest.mark.parametrize("gone", ["calibration", "model/onnxruntime-int8-stock", "onnx"])
def test_what_is_of_a_stage_that_is_gone_is_not_told(pipeline: Pipeline, gone: str) -> None:
    """As where a run with --fresh is ended before it has made that again."""
    partial = Pipeline(pipeline.settings)
    peek = partial.peek
    partial.peek = lambda name: None if name == gone else peek(name)  # type: ignore[method-assign]
    built = gathered(partial)
    told = {name for name in built.stages if gone in partial.closure([name])}
    assert told == set()
    assert {row.name for row in built.configurations} == {
        row.name for row in CONFIGURATIONS if gone not in partial.closure([f"compare/{row.name}"])
    }
    html.page(built)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_json_has_no_word_for_is_not_written(tmp_path: Path, number: float) -> None:
    raw = report_samples.all_met()
    raw["requirements"][0]["measured"] = number
    with pytest.raises(ResultsError, match="JSON cannot express"):
        publish(record(raw), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("configurations", 3, "correct"), -1),
        (("configurations", 3, "total"), 0),
        (("configurations", 3, "accuracy_percent"), 100.5),
        (("configurations", 3, "mcnemar_p"), 1.5),
        (("configurations", 3, "accuracy_ci95_percent"), [1.0]),
        (("configurations", 3, "per_class"), []),
        (("configurations", 3, "confusion", 0), [1, 2]),
        (("configurations", 3, "model_sha256"), "abc"),
        (("configurations", 3, "execution"), "dreamt"),
        (("configurations", 3, "of_another_version"), 1),
        (("requirements", 0, "id"), "conv-1"),
        (("requirements", 0, "measured"), "much"),
        (("requirements", 0, "direction"), "!="),
        (("milestones", "v1_0", "met"), -1),
        (("environment", "cpu"), {"model": {"deep": {"deeper": 1}}}),
        (("stages", "torch", "cache"), "perhaps"),
        (("schema_version",), 3),
        (("requirements", 0, "milestone"), "v9_9"),
        (("configurations", 4, "name"), "onnxruntime-int8-tuned"),
        (("agreement",), {"rows": ["torch-int8-tuned"], "percent": []}),
        (
            ("tuning",),
            [
                {
                    **{"stock": "keras-float32", "tuned": "gone", "agreement_percent": 99.0},
                    **{"delta_pp": 0.0, "delta_ci95_pp": [-0.1, 0.1], "mcnemar_p": 1.0},
                    **{"lost": 1, "gained": 1},
                }
            ],
        ),
        (("stages", "onnx", "needs"), ["scores/torch-int8-tuned", "folded"]),
    ],
)
def test_what_breaks_the_form_is_refused_by_its_place(
    tmp_path: Path, place: tuple[Any, ...], value: object
) -> None:
    raw = report_samples.all_met()
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ResultsError, match="does not keep the form") as caught:
        results.read(path)
    assert caught.value.given


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"a": NaN}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "timing": 3, "cache": 4, "requirements": [5], "configurations": []}',
        "\ud800",
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ResultsError, match="cannot be read"):
        results.read(path)


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [leaf for entry in inner for leaf in _leaves(entry)]
    return [value]


@pytest.mark.parametrize("status", ["not met", "not evaluated"])
def test_no_milestone_is_met_over_a_requirement_that_is_not(status: str) -> None:
    raw = report_samples.all_met()
    raw["requirements"][0]["status"] = status
    with pytest.raises(ResultsError, match=f"v1_0 is met although CONV-01 is {status}"):
        report_samples.record(raw)


def test_an_accuracy_is_that_of_its_counts() -> None:
    raw = report_samples.all_met()
    raw["configurations"][3]["accuracy_percent"] += 0.01
    with pytest.raises(ResultsError, match="of onnxruntime-int8-tuned is not that of its counts"):
        report_samples.record(raw)


def test_version_1_keeps_all_that_it_held() -> None:
    old = json.loads(VERSION_1.read_text(encoding="utf-8"))
    new = json.loads(results.encode(results.read(VERSION_1)))
    same = set(old) & set(new) - {"schema_version", "requirements", "configurations", "sensitivity"}
    assert {key: new[key] for key in same} == {key: old[key] for key in same}
    assert {name: stage["seconds"] for name, stage in new["stages"].items()} == {
        f"{name}-tuned" if name.endswith("int8") else name: seconds
        for name, seconds in old["timing"].items()
    }
    assert new["stages"]["scores/torch-int8-tuned"]["needs"] == ["model/torch-int8-tuned"]
    for before, after in zip(old["requirements"], new["requirements"], strict=True):
        assert after == {**before, "phase": after["phase"]}
    assert {entry["id"]: entry["phase"] for entry in new["requirements"]}["PT-02"] == 3
    for before, after in zip(old["configurations"], new["configurations"], strict=True):
        for key, value in before.items():
            if key not in ("name", "recipe", "layers") and value not in (None, []):
                assert after[key] == value, key
        for noise, layer in zip(after.get("layers", ()), before.get("layers") or (), strict=True):
            assert noise == {key: layer[key] for key in noise}
            assert len(noise) == 3  # what it costs in accuracy goes, for it lay within its noise
        if before["recipe"]:
            kept = [str(leaf) for leaf in _leaves(after)]
            lost = {k for k, v in before["recipe"].items() if str(v) not in kept}
            assert lost == {"file_name"}  # which is in files.model
        else:
            assert after["recipe"] is None
    assert new["sensitivity"] is None


def test_version_1_is_shown_and_held_against_version_2() -> None:
    old, new = results.read(VERSION_1), record(report_samples.standin())
    assert "STAND-IN" in html.page(old)
    text = diff(old, new)
    assert "| onnxruntime-int8-tuned |" in text
    assert "not there" not in text.partition("## Accuracies")[2].partition("##")[0]


def test_an_older_version_1_lacks_what_it_did_not_record() -> None:
    old = json.loads(VERSION_1.read_text(encoding="utf-8"))
    for key in ("needs", "selected", "sensitivity"):
        del old[key]
    found = results.checked(results_v1.upgraded({**old, "sensitivity": None}))
    assert found.selected == ()
    assert {stage.needs for stage in found.stages.values()} == {()}


def test_a_margin_of_a_requirement_that_was_not_measured_is_not_made_up() -> None:
    found = results.requirement(BY_ID["EVAL-03"], None, standin=False)
    assert (found.status, found.measured, found.margin) == ("not evaluated", None, None)


def test_a_part_of_the_record_cannot_be_changed() -> None:
    found = record(report_samples.all_met())
    with pytest.raises(AttributeError):
        found.assets.kind = "real"  # type: ignore[misc]
    assert msgspec.to_builtins(found)["assets"]["kind"] == "real"


def test_what_was_not_run_on_the_standin_did_not_fail_there() -> None:
    outcomes = {"EVAL-04": results.Outcome("met")}
    told = "stand-in; 1 of 2 tests passed on it"
    found = results.milestone("v1_3", outcomes, standin=True, stopped=None)
    assert found.reason == f"{told}, 1 not run"
    outcomes["EVAL-05"] = results.Outcome("not met")
    assert results.milestone("v1_3", outcomes, standin=True, stopped=None).reason == told
