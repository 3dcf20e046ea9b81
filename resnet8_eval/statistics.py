"""Intervals of accuracies and of their differences, and tests of models on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def wilson_interval_percent(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of an accuracy.

    Parameters
    ----------
    correct, total
        Counts of images.

    Returns
    -------
    tuple of float
        Lower and upper limit in percent, by Wilson's score method (Wilson 1927), computed by
        ``scipy.stats.binomtest(...).proportion_ci(method="wilson")``.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided McNemar test of two models on the same images.

    Parameters
    ----------
    lost, gained
        Images that only the first, or only the second, model gets right.

    Returns
    -------
    float
        The p-value, by ``scipy.stats.binomtest(lost, lost + gained, 0.5)``; 1 where the models
        never disagree.
    """
    from scipy.stats import binomtest

    changed = lost + gained
    return float(binomtest(lost, changed, 0.5).pvalue) if changed else 1.0


def paired_interval_pp(lost: int, gained: int, total: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same images.

    Parameters
    ----------
    lost, gained
        Images that only the first, or only the second, model gets right.
    total
        All images.

    Returns
    -------
    tuple of float
        Lower and upper limit of (second − first) in percentage points: Wald's interval with the
        Bonett–Price adjustment (Bonett and Price 2012, *Adjusted Wald Confidence Interval for a
        Difference of Binomial Proportions Based on Paired Data*), which adds one image to each
        kind of disagreement and so stays honest when there are few. The normal quantile is
        ``scipy.stats.norm.ppf``.
    """
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + CONFIDENCE / 2))
    down, up = (lost + 1) / (total + 2), (gained + 1) / (total + 2)
    half = z * math.sqrt((down + up - (up - down) ** 2) / (total + 2))
    return 100 * max(-1.0, up - down - half), 100 * min(1.0, up - down + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests for the number of tests.

    Parameters
    ----------
    p_values
        One for each test, 0 to 1.

    Returns
    -------
    list of float
        Adjusted p-values in the same order (Holm 1979, *A Simple Sequentially Rejective Multiple
        Test Procedure*): the smallest times the number of tests, the next times one less, and so
        on; none is above 1, and none below that of a smaller p-value.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ascending):
        least = min(1.0, max(least, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = least
    return adjusted
