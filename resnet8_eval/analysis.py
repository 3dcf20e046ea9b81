"""The comparison: every configuration beside the baseline, and the flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import statistics
from resnet8_eval.cifar10 import CLASS_NAMES
from resnet8_eval.evaluate import probabilities
from resnet8_eval.preprocess import Labels, Scores
from resnet8_eval.requirements import EQUIVALENCE_MARGIN_PP, EQUIVALENT, FLAGGED_DROP_PP

LEAST_PROBABILITY: Final = 1e-12
RELIABILITY_BINS: Final = 15
BASELINE: Final[dict[str, Any]] = {"delta_ci95_pp": None, "mcnemar_p": None, "word": "baseline"}
"""What is said of the baseline beside itself: a difference that is zero by definition has neither
an interval nor a test."""


def compare(
    scores: Scores,
    baseline_scores: Scores,
    labels: Labels,
    class_names: Sequence[str] = CLASS_NAMES,
) -> dict[str, Any]:
    """Hold one configuration against the baseline, image by image; classes are in label order.

    The result has the fields of :class:`resnet8_eval.row_record.ConfigurationResult`; see
    :func:`divergence`, :func:`reliability`, :func:`verdict_word` and :func:`flag`.
    """
    answers, baseline_answers = scores.argmax(axis=1), baseline_scores.argmax(axis=1)
    right, baseline_right = answers == labels, baseline_answers == labels
    paired = _paired(baseline_right, right)
    tests = _per_class(right, baseline_right, labels, class_names)
    interval = statistics.paired_interval_pp(paired["lost"], paired["gained"], len(labels))
    flagged, reason = flag(paired["delta_pp"])
    # A network of the user's may end in logits. Classes are told from these: float32
    # probabilities can tie where they do not.
    shares, baseline_shares = probabilities(scores), probabilities(baseline_scores)
    return {
        "accuracy_ci95_percent": list(
            statistics.wilson_interval_percent(int(right.sum()), len(labels))
        ),
        **paired,
        "delta_ci95_pp": list(interval),
        "agreement_percent": statistics.percent(answers == baseline_answers),
        "per_class_delta_pp": {test["name"]: test["delta_pp"] for test in tests},
        "per_class_tests": tests,
        "divergence": divergence(shares, baseline_shares),
        "reliability": reliability(shares, labels),
        "baseline_reliability": reliability(baseline_shares, labels),
        "word": verdict_word(interval),
        "flagged": flagged,
        "flag_reason": reason,
    }


def _per_class(
    right: NDArray[np.bool_],
    baseline_right: NDArray[np.bool_],
    labels: Labels,
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Paired counts and tests of each class that has images."""
    tests = [
        {"name": name, **_paired(baseline_right[labels == label], right[labels == label])}
        for label, name in enumerate(class_names)
        if (labels == label).any()
    ]
    corrected = statistics.holm([test["mcnemar_p"] for test in tests])
    return [{**test, "holm_p": p} for test, p in zip(tests, corrected, strict=True)]


def _paired(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    """How two models differ in what they get right of the same images."""
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    return {
        "delta_pp": 100 * (gained - lost) / len(before),
        "lost": lost,
        "gained": gained,
        "mcnemar_p": statistics.mcnemar_p(lost, gained),
    }


def alike(scores: Scores, baseline_scores: Scores) -> dict[str, float]:
    """How alike scores, probabilities or logits, are to the baseline's of the same images.

    ``agreement_percent`` is the share of images of the same class; ``kl_nats``, see
    :func:`divergences`.
    """
    same = scores.argmax(axis=1) == baseline_scores.argmax(axis=1)
    apart = divergences(probabilities(scores), probabilities(baseline_scores))
    return {"agreement_percent": statistics.percent(same), "kl_nats": float(apart.mean())}


def divergence(scores: Scores, baseline_scores: Scores) -> dict[str, float]:
    """How far probabilities lie from the baseline's of the same images.

    The result is as :class:`resnet8_eval.row_record.Divergence`; see :func:`divergences`.
    """
    after, before = scores.astype(np.float64), baseline_scores.astype(np.float64)
    apart = np.abs(after - before)
    return {
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        "kl_nats": float(divergences(scores, baseline_scores).mean()),
    }


def divergences(scores: Scores, baseline_scores: Scores) -> NDArray[np.float64]:
    """Kullback–Leibler divergence from the baseline's probabilities, in nats, image by image (N,).

    Those below 1e-12 count as 1e-12.
    """
    q, p = (
        np.maximum(part.astype(np.float64), LEAST_PROBABILITY) for part in (scores, baseline_scores)
    )
    return np.asarray((p * np.log(p / q)).sum(axis=1))


def reliability(scores: Scores, labels: Labels) -> dict[str, Any]:
    """Whether a model is right as often as its probabilities say (Guo et al. 2017).

    The result is as :class:`resnet8_eval.row_record.Reliability`. The error is the mean difference
    between confidence and accuracy of the bins, weighted by their images. Bin n holds confidences
    above n/15, up to (n + 1)/15.
    """
    confidence = scores.max(axis=1).astype(np.float64)
    right = scores.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * RELIABILITY_BINS).astype(int) - 1, 0, RELIABILITY_BINS - 1)
    images, sure, hits = (
        np.bincount(place, weights, RELIABILITY_BINS) for weights in (None, confidence, right)
    )
    return {
        "error_percent": 100 * float(np.abs(sure - hits).sum() / len(labels)),
        "bins": [
            {
                "images": int(n),
                "confidence_percent": 100 * float(c) / int(n) if n else None,
                "accuracy_percent": 100 * float(h) / int(n) if n else None,
            }
            for n, c, h in zip(images, sure, hits, strict=True)
        ],
    }


def flag(delta_pp: float) -> tuple[bool, str | None]:
    """Whether a delta, in percentage points, is a drop to be flagged, and why (ANL-02)."""
    if delta_pp < -FLAGGED_DROP_PP:
        return True, f"drops {-delta_pp:.2f} pp, more than {FLAGGED_DROP_PP:g} pp"
    return False, None


def verdict_word(interval_pp: tuple[float, float]) -> str:
    """What the paired interval of the delta, 95 % limits in pp, allows one to say.

    ``"equivalent"`` if all of it lies within ±0.5 pp, which two one-sided tests at 2.5 % each then
    find; ``"equivalent, lower"`` or ``"equivalent, higher"`` if it also leaves zero out. Else
    ``"degraded"`` if all of it lies below zero, ``"improved"`` if all of it lies above, else
    ``"inconclusive"``.
    """
    low, high = interval_pp
    if max(-low, high) <= EQUIVALENCE_MARGIN_PP:
        return EQUIVALENT + (", lower" if high < 0 else ", higher" if low > 0 else "")
    if high < 0:
        return "degraded"
    return "improved" if low > 0 else "inconclusive"
