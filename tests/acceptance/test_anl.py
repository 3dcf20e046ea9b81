"""ANL-01 and ANL-02: the comparison, and the flags."""

from __future__ import annotations

import itertools

import pytest

from resnet8_eval import configurations
from resnet8_eval.checks import Check, equal
from resnet8_eval.configurations import CONFIGURATIONS
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.report import words
from resnet8_eval.requirements import FLAGGED_DROP_PP
from resnet8_eval.verdicts import Judge

from .common import BASELINE, each_seed, scores_record, source_checks, stages

COMPARISONS = stages("compare", *CONFIGURATIONS)
TUNINGS = stages("tuning", *(tuned for _, tuned in configurations.tunings()))


@pytest.mark.requirement("ANL-01", needs=[*COMPARISONS, *TUNINGS, "agreement"])
def test_anl_01_comparison_table(requirement: Judge, run: Pipeline) -> None:
    """SHA-256 of every scored model; each delta, and what tuning changed, in images."""
    filled, checks = 0, source_checks(run, *CONFIGURATIONS)
    for row in CONFIGURATIONS:
        name, scores = row.name, scores_record(run, row)
        compared = run.artifact(f"compare/{name}").record
        filled += {"delta_pp", "agreement_percent"} <= set(compared)
        checks.append(
            equal(
                f"{name}, delta in images",
                round(compared["delta_pp"] * scores["total"] / 100),
                compared["gained"] - compared["lost"],
            )
        )
    for stock, tuned in configurations.tunings():
        record = run.artifact(f"tuning/{tuned.name}").record
        changed = scores_record(run, tuned)["correct"] - scores_record(run, stock)["correct"]
        gained = record["gained"] - record["lost"]
        checks.append(
            equal(f"{tuned.name}, images that tuning gains less those it loses", changed, gained)
        )
    requirement.judge(filled, checks)


@pytest.mark.requirement("ANL-02", needs=COMPARISONS)
def test_anl_02_flags(requirement: Judge, run: Pipeline) -> None:
    """Each delta, computed again from counts; each flag against its delta."""
    baseline = scores_record(run, BASELINE)
    drops, checks = set(), []
    for (said, at), row in itertools.product(each_seed(run), CONFIGURATIONS):
        if said and row.recipe is None:
            continue
        name, scores = f"{said}{row.name}", scores_record(at, row)
        compared = at.artifact(f"compare/{row.name}").record
        delta = 100 * (scores["correct"] - baseline["correct"]) / scores["total"]
        dropped = delta < -FLAGGED_DROP_PP
        drops |= {row.name} if dropped else set()
        checks += [
            Check(
                f"{name}, delta from the baseline",
                f"no lower than {words.signed(-FLAGGED_DROP_PP)} pp",
                f"{words.signed(delta)} pp",
                not dropped,
            ),
            Check(
                f"{name}, flag",
                "flagged" if dropped else "not flagged",
                "flagged" if compared["flagged"] else "not flagged",
                compared["flagged"] is dropped,
            ),
        ]
    requirement.judge(len(drops), checks)
