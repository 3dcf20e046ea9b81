"""Deltas of single classes, and what testing ten of them costs in significance."""

from __future__ import annotations

import numpy as np
import pytest

from resnet8_eval.analysis import compare
from resnet8_eval.statistics import holm, mcnemar_p


def test_holm_multiplies_the_least_p_by_the_number_of_tests_and_keeps_the_order() -> None:
    # By hand: 4 · 0.01, 3 · 0.02, 2 · 0.03 (not below the one before), 1 · 0.9
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])


def test_every_class_has_its_paired_counts() -> None:
    labels = np.repeat(np.arange(10), 20)
    exact = np.eye(10, dtype=np.float32)[labels]
    worse = exact.copy()
    worse[:8] = np.eye(10, dtype=np.float32)[1]  # eight of class 0 are lost
    exact[20:27] = np.eye(10, dtype=np.float32)[2]  # seven of class 1 are gained
    tests = compare(worse, exact, labels)["per_class_tests"]
    first, second, *others = tests
    assert (first["lost"], first["gained"], first["delta_pp"]) == (8, 0, -40)
    assert first["mcnemar_p"] == mcnemar_p(8, 0) == pytest.approx(2 / 2**8)
    assert first["holm_p"] == pytest.approx(10 * 2 / 2**8)
    assert (second["lost"], second["gained"], second["delta_pp"]) == (0, 7, 35)
    assert second["holm_p"] == pytest.approx(9 * 2 / 2**7)
    assert all(test["lost"] == test["gained"] == 0 and test["holm_p"] == 1 for test in others)
