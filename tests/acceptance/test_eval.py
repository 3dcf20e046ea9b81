"""EVAL-01 … EVAL-05: the ONNX model on the test set; every row beside Keras, and its speed."""

from __future__ import annotations

from math import isfinite

import pytest

from resnet8_eval.checks import Check, at_most, equal, from_records
from resnet8_eval.configurations import CONFIGURATIONS
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.report import words
from resnet8_eval.report.diagnosis import OTHERS_CHECK, SPEED_CHECK
from resnet8_eval.requirements import ANSWERED_IMAGES, MAX_OTHERS_PERCENT, MIN_QUERIES
from resnet8_eval.verdicts import Judge

from .common import (
    BASELINE,
    ONNX,
    begun,
    fact_checks,
    judge_classes,
    judge_whole_test_set,
    scores_record,
    stages,
)


@pytest.mark.requirement("EVAL-01", needs=stages("scores", ONNX, BASELINE))
def test_eval_01_onnxruntime_on_the_test_set(requirement: Judge, run: Pipeline) -> None:
    """Confusion matrix; SHA-256 of the scored model; known counts of Keras and ONNX Runtime."""
    facts = fact_checks(run, ONNX) + fact_checks(run, BASELINE)
    judge_whole_test_set(requirement, run, ONNX, checks=facts)


@pytest.mark.requirement("EVAL-02", needs=stages("scores", ONNX))
def test_eval_02_per_class_accuracy(requirement: Judge, run: Pipeline) -> None:
    """Class names in label order; sums over the classes; each class's share."""
    judge_classes(requirement, run, ONNX)


@pytest.mark.requirement("EVAL-03", needs=stages("compare", ONNX))
def test_eval_03_overall_accuracy(requirement: Judge, run: Pipeline) -> None:
    """Known count of correct images."""
    requirement.judge(scores_record(run, ONNX)["accuracy_percent"], fact_checks(run, ONNX))


@pytest.mark.requirement("EVAL-04", needs=stages("compare", *CONFIGURATIONS))
def test_eval_04_against_keras(requirement: Judge, run: Pipeline) -> None:
    """Agreement of the float rows; images in the reliability curve, before and after."""
    total = scores_record(run, BASELINE)["total"]
    compared, checks = 0, []
    for row in CONFIGURATIONS:
        record = run.artifact(f"compare/{row.name}").record
        curves = (record["reliability"], record["baseline_reliability"])
        compared += all(
            isfinite(figure)
            for figure in (
                *(record["delta_ci95_pp"] or ()),
                record["agreement_percent"],
                *record["divergence"].values(),
                *(curve["error_percent"] for curve in curves),
            )
        )
        for when, curve in zip(("after", "before"), curves, strict=True):
            images = sum(entry["images"] for entry in curve["bins"])
            checks.append(
                equal(f"{row.name}, images in the reliability curve {when}", total, images)
            )
        if row.recipe is None:
            agreement = record["agreement_percent"]
            checks.append(equal(f"{row.name}, agreement with Keras in percent", 100.0, agreement))
    requirement.judge(compared, checks)


@pytest.mark.requirement("EVAL-05", needs=["latency"])
def test_eval_05_latency_and_throughput(requirement: Judge, run: Pipeline) -> None:
    """Model, threads and answers of each session, and what it is compared with; --min-speedup."""
    record, demanded = run.artifact("latency").record, run.settings.min_speedup
    rows, measured, checks = record["rows"], 0, []
    float32 = {row.framework: row.name for row in CONFIGURATIONS if row.recipe is None}
    if demanded is not None:
        checks.append(at_most(OTHERS_CHECK, MAX_OTHERS_PERCENT, record["others_percent"]))
    for row in CONFIGURATIONS:
        found = rows.get(row.name, {})
        scenarios = [found.get(scenario) for scenario in ("SingleStream", "Offline")]
        entries = [entry for scenario in scenarios for entry in scenario or ()]
        measured += all(scenarios) and all(
            entry["valid"] and entry["queries"] >= MIN_QUERIES for entry in entries
        )
        answers, sessions = found.get("answers", {}), found.get("sessions", [])
        asked = min(ANSWERED_IMAGES, scores_record(run, row)["total"])
        checks += [
            equal(f"{row.name}, images answered to LoadGen", asked, answers.get("images")),
            equal(
                f"{row.name}, answers to LoadGen that are not the evaluation's",
                0,
                answers.get("disagreements"),
            ),
            *begun(f"{row.name}, ", from_records([found["parity"]] if found else [])),
            equal(
                f"{row.name}, sha256 of the model that was timed",
                [scores_record(run, row)["model_sha256"]],
                sorted({session["model_sha256"] for session in sessions}),
            ),
            equal(
                f"{row.name}, threads of its sessions",
                sorted({entry["threads"] for entry in entries}),
                [session["threads"] for session in sessions],
            ),
            equal(
                f"{row.name}, row that its speed is compared with",
                float32[row.framework],
                found.get("float32"),
            ),
        ]
        if row.recipe is None:
            ratios = {ratio for e in entries for ratio in (e["speedup"] or {}).values()}
            checks.append(equal(f"{row.name}, its speed over its own", [1.0], sorted(ratios)))
        if demanded is not None and row.recipe and row.execution == "kernel":
            speed = min((e["speedup"]["median"] for e in entries if e["speedup"]), default=0.0)
            checks.append(
                Check(
                    f"{row.name}, {SPEED_CHECK}",
                    f"at least {demanded:g} times",
                    f"{speed:.{words.digits([speed], [demanded])}f} times",
                    speed >= demanded,
                )
            )
    requirement.judge(measured, checks)
