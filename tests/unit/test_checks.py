"""Checks: what holds, what does not, and that a record gives back what it was given."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from resnet8_eval.checks import Check, at_most, equal, failed, from_records, said


@pytest.mark.parametrize(
    ("expected", "observed", "ok"),
    [
        (1, 1, True),
        (1, 2, False),
        ([], [], True),
        ("a", "b", False),
        ((1, 2), (1, 2), True),
        (1, "1", False),
    ],
)
def test_equal(expected: object, observed: object, ok: bool) -> None:
    assert equal("it", expected, observed).ok is ok


@pytest.mark.parametrize(
    ("observed", "ok"),
    [(0.0, True), (1e-5, True), (1.0001e-5, False), (math.nan, False), (math.inf, False)],
)
def test_at_most(observed: float, ok: bool) -> None:
    assert at_most("it", 1e-5, observed).ok is ok


@pytest.mark.parametrize(
    ("limit", "observed", "said"),
    [
        (1.5, 1.5033, "1.503"),
        (1.5, 1.5, "1.5"),
        (1e-4, 0.00012345, "0.000123"),
        (0.1, 0.1 + 2**-55, "0.10000000000000003"),
        (0.01234, 0.012336, "0.0123"),
        (0.0123, 0.01234, "0.01234"),
        (-0.5, -0.5, "−0.5"),
    ],
)
def test_what_is_observed_reads_on_its_own_side_of_the_limit(
    limit: float, observed: float, said: str
) -> None:
    assert at_most("it", limit, observed).observed == said


def test_numpy_outcomes_become_built_in_ones() -> None:
    checks = [equal("it", np.int64(1), np.int64(1)), at_most("it", 1, np.float64(2))]
    assert [type(check.ok) for check in checks] == [bool, bool]
    assert from_records(json.loads(json.dumps([asdict(c) for c in checks]))) == checks


def test_failed_keeps_the_order() -> None:
    good, bad, worse = equal("a", 1, 1), equal("b", 1, 2), equal("c", 1, 3)
    assert failed([bad, good, worse]) == [bad, worse]


def test_words_name_both_sides() -> None:
    assert str(equal("rows", 3, 4)) == "rows: expected 3, observed 4 [FAILED]"
    assert str(Check("rows", "some", "3", ok=True)) == "rows: expected some, observed 3 [ok]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ([], "none"),
        (True, "yes"),
        (False, "no"),
        (-3, "−3"),
        (np.int64(-3), "−3"),
        (0.5, "0.5"),
        (["int8"] * 10, "10 × int8"),
        (["cat", "dog"], "cat, dog"),
        ([(1, 10), (3, 10)], "(1, 10), (3, 10)"),
        ({"b": [1, 1], "a": None}, "a: none, b: 2 × 1"),
        ("as-is", "as-is"),
    ],
)
def test_evidence_is_in_words_and_not_in_python(value: object, text: str) -> None:
    assert said(value) == text
    assert equal("it", value, value).observed == text


def test_what_reads_alike_is_not_equal() -> None:
    assert not equal("it", [], None).ok
