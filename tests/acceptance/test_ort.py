"""ORT-01 … ORT-04: static quantization with ONNX Runtime."""

from __future__ import annotations

import pytest

from resnet8_eval import configurations
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.verdicts import Judge

from .common import (
    judge_deltas,
    judge_quantized,
    judge_whole_test_set,
    proof_checks,
    stages,
)

ROWS = configurations.quantized("onnxruntime")
INT8 = configurations.quantized("onnxruntime", "int8")
UINT8 = [row for row in ROWS if row not in INT8]
"""Those with unsigned activations. No row is left out, whatever its weights are."""


@pytest.mark.requirement("ORT-01", needs=stages("model", *INT8))
def test_ort_01_int8(requirement: Judge, run: Pipeline) -> None:
    """Types of stored weights and activations; operators; integer kernels in a session."""
    judge_quantized(requirement, run, *INT8)


@pytest.mark.requirement("ORT-02", needs=stages("model", *UINT8))
def test_ort_02_uint8(requirement: Judge, run: Pipeline) -> None:
    """Types of stored weights and activations; operators; integer kernels in a session."""
    judge_quantized(requirement, run, *UINT8)


@pytest.mark.requirement("ORT-03", needs=stages("proof", *ROWS))
def test_ort_03_evaluated(requirement: Judge, run: Pipeline) -> None:
    """Confusion matrices; SHA-256 of both models; stored numbers; kernels against integers."""
    judge_whole_test_set(requirement, run, *ROWS, checks=proof_checks(run, *ROWS))


@pytest.mark.requirement("ORT-04", needs=stages("compare", *ROWS))
def test_ort_04_delta(requirement: Judge, run: Pipeline) -> None:
    """Each delta, computed again from accuracies; known count of the baseline."""
    judge_deltas(requirement, run, *ROWS)
