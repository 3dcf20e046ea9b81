"""CAL-01 and CAL-02: the calibration set."""

from __future__ import annotations

import pytest

from resnet8_eval import configurations
from resnet8_eval.checks import Check, at_most, equal, from_records
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.verdicts import Judge

from .common import begun, each_seed, stages

FLOAT32 = 2.0**-23
"""Relative precision of what is fed."""

FEEDS = [f"feed/{recipe.key}" for recipe in configurations.recipes()]
STOCK = stages("model", *configurations.stock())


@pytest.mark.requirement("CAL-01", needs=["calibration"])
def test_cal_01_calibration_set(requirement: Judge, run: Pipeline) -> None:
    """Distinct images; class balance; none of them a test image."""
    counts, sets, checks = [], set(), []
    for said, at in each_seed(run):
        record = at.artifact("calibration").record
        counts.append(record["count"])
        sets.add(record["indices_sha256"])
        checks += begun(said, from_records(record["checks"]))
    if len(counts) > 1:
        checks.append(equal("calibration sets that differ", len(counts), len(sets)))
    requirement.judge(min(counts), checks)


@pytest.mark.requirement("CAL-02", needs=[*FEEDS, *STOCK])
def test_cal_02_preprocessing(requirement: Judge, run: Pipeline) -> None:
    """Bytes compared; SHA-256 of what calibrations fed; what was fed against its description."""
    differing, checks = 0, list[Check]()
    for said, at in each_seed(run):
        of_seed, checks_of_seed = _feeds(at)
        differing += of_seed
        checks += begun(said, checks_of_seed)
    requirement.judge(differing, checks)


def _feeds(run: Pipeline) -> tuple[int, list[Check]]:
    differing, checks = 0, list[Check]()
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
            equal("preprocessing", run.settings.preprocessing.describe(), record["preprocessing"]),
            at_most(
                "difference from what the preprocessing says, relative to its largest value",
                FLOAT32,
                record["largest_difference"],
            ),
        ]
    for name in STOCK:
        fed = run.artifact(name).record["fed_sha256"]
        evaluated = run.artifact(FEEDS[0]).record["evaluation_sha256"]
        checks.append(equal(f"SHA-256 of what {name} was fed", evaluated, fed))
    return differing, checks
