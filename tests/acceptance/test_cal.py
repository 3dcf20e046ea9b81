"""CAL-01 and CAL-02: the calibration set."""

from __future__ import annotations

import pytest

from resnet8_eval import configurations
from resnet8_eval.checks import equal, from_records
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.verdicts import Judge

FEEDS = [f"feed/{recipe.key}" for recipe in configurations.recipes()]


@pytest.mark.requirement("CAL-01", needs=["calibration"])
def test_cal_01_calibration_set(requirement: Judge, run: Pipeline) -> None:
    """Distinct images; class balance; none of them a test image."""
    record = run.artifact("calibration").record
    requirement.judge(record["count"], from_records(record["checks"]))


@pytest.mark.requirement("CAL-02", needs=FEEDS)
def test_cal_02_preprocessing(requirement: Judge, run: Pipeline) -> None:
    """Number of bytes compared; SHA-256 of what calibration fed."""
    differing, checks = 0, []
    for name in FEEDS:
        record = run.artifact(name).record
        differing += record["differing_bytes"]
        checks += [
            equal("bytes compared", record["expected_bytes"], record["compared_bytes"]),
            equal(
                "SHA-256 of what calibration fed, recorded while it ran",
                record["evaluation_sha256"],
                record["calibration_sha256"],
            ),
        ]
    requirement.judge(differing, checks)
