"""EVAL-01 … EVAL-03: the ONNX model on the test set."""

from __future__ import annotations

import pytest

from resnet8_eval.pipeline import Pipeline
from resnet8_eval.verdicts import Judge
from tests.acceptance.common import (
    BASELINE,
    ONNX,
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
