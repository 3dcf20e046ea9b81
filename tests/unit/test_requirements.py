"""The register is complete and unambiguous, and its conditions and margins are right."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet8_eval import requirements
from resnet8_eval.requirements import (
    BY_ID,
    MILESTONES,
    MIN_ACCURACY_PERCENT,
    REGISTER,
    Direction,
    Requirement,
    asked,
    of_milestone,
)


def requirement(direction: Direction, threshold: float) -> Requirement:
    return Requirement("X-01", "v1_0", 1, "title", "thing", direction, threshold, "pp")


def test_there_are_28_with_unique_ids_and_titles() -> None:
    assert len(REGISTER) == len(BY_ID) == 28
    assert len({entry.title for entry in REGISTER}) == 28
    assert all(re.fullmatch(r"[A-Z]+-\d\d", name) for name in BY_ID)
    assert all(BY_ID[entry.id] is entry for entry in REGISTER)


def test_each_family_is_numbered_without_gaps() -> None:
    families: dict[str, list[int]] = {}
    for entry in REGISTER:
        family, number = entry.id.split("-")
        families.setdefault(family, []).append(int(number))
    assert list(families) == ["CONV", "EVAL", "PT", "CAL", "ORT", "PTQ", "ANL", "ADV"]
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in families.values())


def test_milestones_have_6_5_and_12() -> None:
    assert Counter(entry.milestone for entry in REGISTER) == {
        "v1_0": 6,
        "v1_1": 5,
        "v1_2": 12,
        "v1_3": 2,
        "v1_4": 3,
    }
    assert [entry for name in MILESTONES for entry in of_milestone(name)] == list(REGISTER)


def test_phases_are_those_of_the_requirements_document() -> None:
    phases = {
        1: ["CONV-01", "CONV-02", "CONV-03"],
        2: ["EVAL-01", "EVAL-02", "EVAL-03", "EVAL-04", "EVAL-05"],
        3: ["PT-01", "PT-02"],
        4: ["PT-03", "PT-04", "PT-05"],
        5: ["CAL-01", "CAL-02"],
        6: ["ORT-01", "ORT-02", "ORT-03", "ORT-04"],
        7: ["PTQ-01", "PTQ-02", "PTQ-03", "PTQ-04"],
        8: ["ANL-01", "ANL-02"],
        9: ["ADV-01", "ADV-02", "ADV-03"],
    }
    assert {entry.id: entry.phase for entry in REGISTER} == {
        name: phase for phase, names in phases.items() for name in names
    }


@pytest.mark.parametrize("entry", REGISTER, ids=lambda entry: entry.id)
def test_what_is_not_finite_meets_no_requirement(entry: Requirement) -> None:
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
        ("<", 84.99, True, 0.01),
        ("<", 85.0, False, 0.0),
        ("<", 85.01, False, -0.01),
        ("<=", 84.99, True, 0.01),
        ("<=", 85.0, True, 0.0),
        ("<=", 85.01, False, -0.01),
    ],
)
def test_threshold(direction: Direction, measured: float, met: bool, margin: float) -> None:
    entry = requirement(direction, 85)
    assert entry.is_met_by(measured) is met
    assert entry.margin(measured) == pytest.approx(margin)


DIRECTIONS = st.sampled_from(get_args(Direction))
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(DIRECTIONS, FINITE, FINITE | st.just(None))
def test_the_margin_is_positive_on_the_good_side_and_there_alone(
    direction: Direction, threshold: float, other: float | None
) -> None:
    entry = requirement(direction, threshold)
    measured = threshold if other is None else other
    margin = entry.margin(measured)
    if margin == 0:  # on the threshold itself
        assert entry.is_met_by(measured) is (direction in {">=", "==", "<="})
    else:
        assert entry.is_met_by(measured) is (margin > 0)


@given(DIRECTIONS, FINITE, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_meets_no_condition(
    direction: Direction, threshold: float, measured: float
) -> None:
    assert not requirement(direction, threshold).is_met_by(measured)


@pytest.mark.parametrize(
    ("name", "barely", "not_quite"),
    [
        ("EVAL-03", 85.01, 85.0),
        ("PT-05", 85.01, 85.0),
        ("CAL-01", 1000, 999),
        ("CAL-02", 0, 1),
        ("EVAL-01", 100, 99.99),
        ("EVAL-02", 10, 9),
        ("ORT-04", 5, 4),
        ("ANL-01", 12, 11),
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
    ],
)
def test_no_tolerance_is_widened_unnoticed(name: str, value: float) -> None:
    assert getattr(requirements, name) == value


@pytest.mark.parametrize("entry", REGISTER, ids=lambda entry: entry.id)
def test_the_condition_in_words_has_sign_number_and_unit(entry: Requirement) -> None:
    signs = {">": ">", ">=": "≥", "==": "=", "<": "<", "<=": "≤"}
    sign, number, *unit = entry.required.split()
    assert (sign, float(number)) == (signs[entry.direction], entry.threshold)
    assert " ".join(unit) == entry.unit
    assert entry.required == entry.required.strip()


def test_a_run_that_states_the_standard_accuracy_has_the_register_as_it_is() -> None:
    assert asked(MIN_ACCURACY_PERCENT) == asked(None) == BY_ID
    assert asked(84.5)["PT-05"].title == "PyTorch accuracy above 84.5 % (--min-accuracy; 85 % else)"
