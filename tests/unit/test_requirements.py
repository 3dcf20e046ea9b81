"""The register: complete, unambiguous, and deaf to numbers that are none."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from resnet8_eval import requirements
from resnet8_eval.requirements import BY_ID, MILESTONES, REGISTER, Requirement, of_milestone


def requirement(direction: str, threshold: float) -> Requirement:
    return Requirement("X-01", "v1_0", "title", "thing", direction, threshold, "pp")  # type: ignore[arg-type]


def test_there_are_23_with_unique_ids_and_titles() -> None:
    assert len(REGISTER) == len(BY_ID) == 23
    assert len({entry.title for entry in REGISTER}) == 23
    assert all(re.fullmatch(r"[A-Z]+-\d\d", name) for name in BY_ID)
    assert all(BY_ID[entry.id] is entry for entry in REGISTER)


def test_each_family_is_numbered_without_gaps() -> None:
    families: dict[str, list[int]] = {}
    for entry in REGISTER:
        family, number = entry.id.split("-")
        families.setdefault(family, []).append(int(number))
    assert list(families) == ["CONV", "EVAL", "PT", "CAL", "ORT", "PTQ", "ANL"]
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in families.values())


def test_milestones_have_6_5_and_12() -> None:
    assert Counter(entry.milestone for entry in REGISTER) == {"v1_0": 6, "v1_1": 5, "v1_2": 12}
    assert [entry for name in MILESTONES for entry in of_milestone(name)] == list(REGISTER)


@pytest.mark.parametrize("entry", REGISTER, ids=lambda entry: entry.id)
def test_a_number_that_is_none_never_meets(entry: Requirement) -> None:
    assert not any(map(entry.is_met_by, (math.nan, math.inf, -math.inf)))


@pytest.mark.parametrize(
    ("direction", "measured", "met", "margin"),
    [
        (">", 84.99, False, -0.01),
        (">", 85.0, False, 0.0),
        (">", 85.01, True, 0.01),
        (">=", 84.99, False, -0.01),
        (">=", 85.0, True, 0.0),
        (">=", 85.01, True, 0.01),
        ("==", 84.99, False, -0.01),
        ("==", 85.0, True, 0.0),
        ("==", 85.01, False, -0.01),
    ],
)
def test_threshold(direction: str, measured: float, met: bool, margin: float) -> None:
    entry = requirement(direction, 85)
    assert entry.is_met_by(measured) is met
    assert entry.margin(measured) == pytest.approx(margin)


@pytest.mark.parametrize(
    ("name", "barely", "not_quite"),
    [
        ("EVAL-03", 85.01, 85.0),
        ("PT-05", 85.01, 85.0),
        ("CAL-01", 1000, 999),
        ("CAL-02", 0, 1),
        ("EVAL-01", 100, 99.99),
        ("EVAL-02", 10, 9),
        ("ORT-04", 2, 1),
        ("ANL-01", 7, 6),
        ("ANL-02", 0, 1),
        ("CONV-02", 0, 1),
        ("ORT-01", 0, 1),
    ],
)
def test_the_issue_s_thresholds(name: str, barely: float, not_quite: float) -> None:
    assert BY_ID[name].is_met_by(barely)
    assert not BY_ID[name].is_met_by(not_quite)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLAGGED_DROP_PP", 5),
        ("EQUIVALENCE_MARGIN_PP", 0.5),
        ("PARITY_ATOL", 1e-5),
        ("MAX_KERNEL_DISAGREEMENT_PERCENT", 0.5),
    ],
)
def test_no_tolerance_is_widened_unnoticed(name: str, value: float) -> None:
    assert getattr(requirements, name) == value


@pytest.mark.parametrize("entry", REGISTER, ids=lambda entry: entry.id)
def test_the_condition_in_words_has_sign_number_and_unit(entry: Requirement) -> None:
    signs = {">": ">", ">=": "≥", "==": "="}
    sign, number, *unit = entry.required.split()
    assert (sign, float(number)) == (signs[entry.direction], entry.threshold)
    assert " ".join(unit) == entry.unit
    assert entry.required == entry.required.strip()
