"""Intervals and tests against other implementations, published examples and hand computation."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import scipy.stats

from resnet8_eval.statistics import holm, mcnemar_p, paired_interval_pp, wilson_interval_percent

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # proportion_confint(correct, total, method="wilson") of statsmodels 0.15
        (8719, 10000, 86.52066702488592, 87.83077117630316),
        (1766, 2000, 86.81735331677099, 89.63580086148502),
        (0, 10, 0.0, 27.753279986288927),
        (10, 10, 72.24672001371107, 100.0),
        (1, 2, 9.453120573423067, 90.54687942657694),
        (9999, 10000, 99.94337311025987, 99.99823473263989),
    ],
)
def test_wilson_is_that_of_statsmodels(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval_percent(correct, total) == pytest.approx((low, high), abs=1e-9)


def test_wilson_by_hand() -> None:
    p, n = 0.8719, 10000
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
    assert wilson_interval_percent(8719, n) == pytest.approx((100 * low, 100 * high), abs=1e-9)
    assert wilson_interval_percent(8719, n) == pytest.approx((86.52, 87.83), abs=0.01)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (0, 0, Fraction(1)),
        (0, 1, Fraction(1)),
        (0, 5, Fraction(2, 2**5)),
        (1, 7, Fraction(2 * (1 + 8), 2**8)),
        (3, 3, Fraction(1)),
        (2, 6, Fraction(2 * (1 + 8 + 28), 2**8)),
    ],
)
def test_mcnemar_by_hand(lost: int, gained: int, p: Fraction) -> None:
    assert mcnemar_p(lost, gained) == pytest.approx(float(p), abs=1e-12)
    assert mcnemar_p(gained, lost) == pytest.approx(float(p), abs=1e-12)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [  # mcnemar(..., exact=True) of statsmodels 0.15
        (52, 48, 0.7643534344026676),
        (19, 0, 3.814697265625e-06),
        (300, 100, 2.591886906972111e-24),
        (1, 1, 1.0),
        (7, 20, 0.0191572904586792),
    ],
)
def test_mcnemar_is_that_of_scipy_and_statsmodels(lost: int, gained: int, p: float) -> None:
    assert mcnemar_p(lost, gained) == pytest.approx(p)
    assert p == pytest.approx(
        min(1, 2 * scipy.stats.binom.cdf(min(lost, gained), lost + gained, 0.5))
    )


@pytest.mark.parametrize(
    ("lost", "gained", "total", "low", "high"),
    [
        # ci.prop.ps(.05, 12, 4, 26, 6) in the R package statpsych, by the method's author
        (4, 26, 48, 25.48067, 62.51933),
        # Fagerland et al. 2014, table V: airway hyper-responsiveness, 1 and 7 of 21 changed
        (7, 1, 21, -50.8, -1.3),
    ],
)
def test_paired_interval_of_published_examples(
    lost: int, gained: int, total: int, low: float, high: float
) -> None:
    digits = 1e-5 if low > 0 else 0.06
    assert paired_interval_pp(lost, gained, total) == pytest.approx((low, high), abs=digits)


@pytest.mark.parametrize(
    ("lost", "gained", "total"), [(52, 48, 10000), (0, 0, 10000), (0, 0, 1), (500, 0, 10000)]
)
def test_paired_interval_from_outcomes_with_two_images_more(
    lost: int, gained: int, total: int
) -> None:
    """Adding one image to each disagreement and taking Wald's interval is Bonett and Price's."""
    differences = [-1] * (lost + 1) + [1] * (gained + 1)
    n = total + 2
    mean = sum(differences) / n
    variance = sum(d * d for d in differences) / n - mean**2
    half = Z * math.sqrt(variance / n)
    expected = [100 * max(-1, mean - half), 100 * min(1, mean + half)]
    assert paired_interval_pp(lost, gained, total) == pytest.approx(expected, abs=1e-9)


def test_paired_interval_turns_with_its_arguments_and_stays_in_bounds() -> None:
    low, high = paired_interval_pp(3, 40, 500)
    assert paired_interval_pp(40, 3, 500) == pytest.approx((-high, -low))
    assert paired_interval_pp(0, 1, 1)[1] == 100
    assert paired_interval_pp(1, 0, 1)[0] == -100


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # 4 · 0.005, 3 · 0.01, 2 · 0.03, and not 1 · 0.04, which is below the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.9], [0.06, 0.06, 0.9]),  # equal ones stay equal
        ([0.5, 0.6, 0.7], [1, 1, 1]),  # none is above 1
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted, abs=1e-12)
