"""PTQ-01 … PTQ-04: static quantization with PyTorch."""

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

ROWS = configurations.quantized("torch")
INT8 = configurations.quantized("torch", "int8")
UINT8 = [row for row in ROWS if row not in INT8]


@pytest.mark.requirement("PTQ-01", needs=stages("model", *INT8))
def test_ptq_01_int8(requirement: Judge, run: Pipeline) -> None:
    """Types of stored weights and activations; operators."""
    judge_quantized(requirement, run, *INT8)


@pytest.mark.requirement("PTQ-02", needs=stages("model", *UINT8))
def test_ptq_02_uint8(requirement: Judge, run: Pipeline) -> None:
    """Types of stored weights and activations; operators; that PyTorch has no such kernels."""
    judge_quantized(requirement, run, *UINT8)


@pytest.mark.requirement("PTQ-03", needs=stages("proof", *ROWS))
def test_ptq_03_evaluated(requirement: Judge, run: Pipeline) -> None:
    """Confusion matrices; SHA-256 of both models; stored numbers; kernels against integers."""
    judge_whole_test_set(requirement, run, *ROWS, checks=proof_checks(run, *ROWS))


@pytest.mark.requirement("PTQ-04", needs=stages("compare", *ROWS))
def test_ptq_04_delta(requirement: Judge, run: Pipeline) -> None:
    """Each delta, computed again from accuracies; known count of the baseline."""
    judge_deltas(requirement, run, *ROWS)
