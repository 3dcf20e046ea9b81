"""PTQ-01 … PTQ-04: static quantization with PyTorch."""

from __future__ import annotations

import pytest

from resnet8_eval.pipeline import Pipeline
from resnet8_eval.pytest_plugin import Judge
from tests.acceptance.common import judge_deltas, judge_whole_test_set, proof_checks
from tests.acceptance.quantized import judge_quantized

INT8, UINT8 = "torch-int8", "torch-uint8"


@pytest.mark.requirement("PTQ-01", needs=["model/torch-int8"])
def test_ptq_01_int8(requirement: Judge, run: Pipeline) -> None:
    judge_quantized(requirement, run, INT8)


@pytest.mark.requirement("PTQ-02", needs=["model/torch-uint8"])
def test_ptq_02_uint8(requirement: Judge, run: Pipeline) -> None:
    judge_quantized(requirement, run, UINT8)


@pytest.mark.requirement("PTQ-03", needs=["proof/torch-int8", "proof/torch-uint8"])
def test_ptq_03_evaluated(requirement: Judge, run: Pipeline) -> None:
    judge_whole_test_set(requirement, run, INT8, UINT8, checks=proof_checks(run, INT8, UINT8))


@pytest.mark.requirement("PTQ-04", needs=["compare/torch-int8", "compare/torch-uint8"])
def test_ptq_04_delta(requirement: Judge, run: Pipeline) -> None:
    judge_deltas(requirement, run, INT8, UINT8)
