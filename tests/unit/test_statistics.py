"""Intervals and tests against other implementations, published examples and hand computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from resnet8_eval.statistics import (
    holm,
    mcnemar_p,
    mean_interval,
    paired_interval_pp,
    percent,
    wilson_interval_percent,
)

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
        # Fagerland et al. 2014, table V: airway hyper-responsiveness, 1 and 7 of 21 changed
        (7, 1, 21, -51.7, -2.6),
        # Fagerland et al. 2017, chapter 8: complete response, 6 and 16 of 161 changed
        (16, 6, 161, -12.40, -0.54),
        # Without a disagreement the score test rejects from z² / (n + z²) on
        (0, 0, 10_000, -100 * Z**2 / (10_000 + Z**2), 100 * Z**2 / (10_000 + Z**2)),
    ],
)
def test_paired_interval_of_published_examples(
    lost: int, gained: int, total: int, low: float, high: float
) -> None:
    assert paired_interval_pp(lost, gained, total) == pytest.approx((low, high), abs=0.05)
    if (lost, gained) == (0, 0):
        assert paired_interval_pp(lost, gained, total) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("lost", "gained", "total"), [(35, 32, 10_000), (1, 0, 500), (0, 9, 40)])
def test_paired_interval_ends_where_the_score_test_rejects(
    lost: int, gained: int, total: int
) -> None:
    """The share of `lost` is found by its likelihood here, and by its formula there."""
    for limit in paired_interval_pp(lost, gained, total):
        difference = limit / 100

        def unlikely(share: float, difference: float = difference) -> float:
            up = share + difference
            cells = [(lost, share), (gained, up), (total - lost - gained, 1 - share - up)]
            return -sum(n * math.log(p) for n, p in cells if n)

        least, most = max(0.0, -difference) + 1e-15, (1 - difference) / 2 - 1e-15
        share = scipy.optimize.minimize_scalar(
            unlikely, bounds=(least, most), method="bounded", options={"xatol": 1e-12}
        ).x
        variance = (2 * share + difference - difference**2) / total
        distance = (gained - lost) / total - difference
        assert abs(distance) / math.sqrt(variance) == pytest.approx(Z, abs=1e-3)


@pytest.mark.parametrize(
    ("lost", "gained"), [(2.8, 0.0), (3.5, 0.0), (1.0, 1.0), (3.0, 3.0), (0.0, 5.0), (8.0, 2.0)]
)
def test_paired_interval_covers_what_it_says_where_few_images_disagree(
    lost: float, gained: float
) -> None:
    """All outcomes of 2000 images, each with its probability; Bonett and Price's covers less."""
    total, true = 2000, 100 * (gained - lost) / 2000
    counts = range(30)
    down, up = (scipy.stats.binom.pmf(counts, total, n / total) for n in (lost, gained))

    def coverage(interval: Callable[[int, int, int], tuple[float, float]]) -> float:
        return sum(
            float(down[x] * up[y])
            for x in counts
            for y in counts
            if down[x] * up[y] > 1e-9 and between(true, interval(x, y, total))
        )

    assert coverage(paired_interval_pp) > 0.94
    if (lost, gained) == (2.8, 0.0):
        assert coverage(bonett_price) < 0.94


def between(true: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= true <= limits[1]


def bonett_price(lost: int, gained: int, total: int) -> tuple[float, float]:
    down, up = (lost + 1) / (total + 2), (gained + 1) / (total + 2)
    half = Z * math.sqrt((down + up - (up - down) ** 2) / (total + 2))
    return 100 * (up - down - half), 100 * (up - down + half)


def test_paired_interval_turns_with_its_arguments_and_stays_in_bounds() -> None:
    low, high = paired_interval_pp(3, 40, 500)
    assert paired_interval_pp(40, 3, 500) == pytest.approx((-high, -low))
    assert paired_interval_pp(0, 1, 1)[1] == 100
    assert paired_interval_pp(1, 0, 1)[0] == -100


def test_mean_interval_is_students_where_that_holds() -> None:
    values = np.random.default_rng(0).normal(1, 1, 1000)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((low, high), abs=0.005)


def test_one_image_that_weighs_more_than_all_others_leaves_the_mean_above_zero() -> None:
    """Student's interval goes below zero there, which no mean of such values can."""
    values = np.full(2000, 1e-4)
    values[7] = 2.7
    assert scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95).low < 0
    low, high = mean_interval(values)
    assert low == pytest.approx(1e-4)
    assert high > 2 * values.mean()
    assert mean_interval(np.zeros(4)) == (0, 0)


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


def test_a_share_of_images_is_that_of_their_counts() -> None:
    """100 times the mean of 9668 in 10,000 is 96.67999999999999."""
    assert percent(np.arange(10_000) < 9668) == 96.68
