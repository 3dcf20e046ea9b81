"""PT-01 … PT-05: ONNX to PyTorch, and the PyTorch model on the test set."""

from __future__ import annotations

import pytest

from resnet8_eval.checks import equal, from_records
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.verdicts import Judge

from .common import (
    TORCH,
    fact_checks,
    judge_classes,
    judge_whole_test_set,
    scores_record,
    stages,
)


@pytest.mark.requirement("PT-01", needs=["torch", "structure/torch"])
def test_pt_01_convert_to_torch(requirement: Judge, run: Pipeline) -> None:
    """The `.pt2` file; its output for two batch sizes; its weights."""
    exported = run.artifact("torch").path("model.pt2")
    checks = from_records(run.artifact("structure/torch").record["export_checks"])
    requirement.judge_checks([equal("exported program written", True, exported.is_file()), *checks])


@pytest.mark.requirement("PT-02", needs=["structure/torch", "parity/torch"])
def test_pt_02_structure(requirement: Judge, run: Pipeline) -> None:
    """Layers in order, types and shapes; bit-equal weights; float32 scores against ONNX."""
    records = [run.artifact(name).record for name in ("structure/torch", "parity/torch")]
    requirement.judge_checks(from_records(c for record in records for c in record["checks"]))


@pytest.mark.requirement("PT-03", needs=stages("scores", TORCH))
def test_pt_03_torch_on_the_test_set(requirement: Judge, run: Pipeline) -> None:
    """Confusion matrix; SHA-256 of the scored model; known count of correct images."""
    judge_whole_test_set(requirement, run, TORCH, checks=fact_checks(run, TORCH))


@pytest.mark.requirement("PT-04", needs=stages("scores", TORCH))
def test_pt_04_per_class_accuracy(requirement: Judge, run: Pipeline) -> None:
    """Class names in label order; sums over the classes; each class's share."""
    judge_classes(requirement, run, TORCH)


@pytest.mark.requirement("PT-05", needs=stages("compare", TORCH))
def test_pt_05_overall_accuracy(requirement: Judge, run: Pipeline) -> None:
    """Known count of correct images."""
    requirement.judge(scores_record(run, TORCH)["accuracy_percent"], fact_checks(run, TORCH))
