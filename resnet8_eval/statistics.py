"""Intervals of accuracies and of their differences, and tests of models on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95


def percent(hits: NDArray[np.bool_]) -> float:
    """The share that is true, in percent; of counts, so that 9668 of 10000 are 96.68."""
    return 100 * int(hits.sum()) / len(hits)


def wilson_interval_percent(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of an accuracy in percent, from counts of images, by Wilson's score method.

    Wilson 1927, computed by ``scipy.stats.binomtest(...).proportion_ci(method="wilson")``.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def mcnemar_p(lost: int, gained: int) -> float:
    """The p-value of an exact two-sided McNemar test of two models on the same images.

    `lost` and `gained` are images that only the first, or only the second, model gets right. It is
    ``scipy.stats.binomtest(lost, lost + gained, 0.5)``, 1 where the models never disagree.
    """
    from scipy.stats import binomtest

    changed = lost + gained
    return float(binomtest(lost, changed, 0.5).pvalue) if changed else 1.0


def paired_interval_pp(lost: int, gained: int, total: int) -> tuple[float, float]:
    """95 % interval of the difference (second − first) of two accuracies on the same images, in pp.

    Tango's score interval (Tango 1998, *Equivalence Test and Confidence Interval for the Difference
    in Proportions for the Paired-Sample Design*): all differences that the score test does not
    reject at 5 %. It holds without a single disagreement as well: it then ends at z²/(n + z²).
    SciPy has no interval for paired proportions, nor has statsmodels. `lost` and `gained` are as
    for :func:`mcnemar_p`, of `total` images.
    """
    return -100 * _furthest(lost, gained, total), 100 * _furthest(gained, lost, total)


def _furthest(up: int, down: int, total: int) -> float:
    """The upper limit of the difference ``up − down``, as a share of `total`; in [-1, 1]."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + CONFIDENCE / 2))

    def rejected(difference: float) -> float:
        """Above zero where the score test rejects; `share` is that of `down`, given the test's."""
        b = (2 * total - up + down) * difference - up - down
        c = -down * difference * (1 - difference)
        share = (math.sqrt(b * b - 8 * total * c) - b) / (4 * total)
        variance = total * (2 * share + difference * (1 - difference))
        return total * difference - (up - down) - z * math.sqrt(max(variance, 0.0))

    # Without a disagreement, variance and distance are both zero at the estimate itself.
    estimate = (up - down) / total + 1e-12
    return float(brentq(rejected, estimate, 1.0, xtol=1e-12)) if estimate < 1 else 1.0


def mean_interval(values: NDArray[np.floating]) -> tuple[float, float]:
    """95 % interval of a mean of values (N,), whatever the distribution.

    By the percentile bootstrap (Efron and Tibshirani 1993, chapter 13), ``scipy.stats.bootstrap``
    with 2000 resamples: one image may weigh more than all others. Limits of values that are never
    negative are not, either, as Student's would be.
    """
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", batch=100, rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (n - 1) and least of one figure over two or more seeds."""
    import statistics

    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values),
        "worst": min(values),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests for their number, in the same order.

    Holm 1979, *A Simple Sequentially Rejective Multiple Test Procedure*: the smallest times the
    number of tests, the next times one less, and so on; none is above 1, and none below that of a
    smaller p-value.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ascending):
        least = min(1.0, max(least, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = least
    return adjusted
