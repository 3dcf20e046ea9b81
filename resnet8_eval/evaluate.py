"""Scores to accuracy, per class, and confusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval.checks import Check, at_most, equal
from resnet8_eval.cifar10 import CLASS_NAMES
from resnet8_eval.preprocess import Images, Labels, Scores

MOST_ROUNDED_AWAY: Final = 0.05
"""From the sum of probabilities. A softmax that is quantized to 8 bits rounds each of ten by up to
half a step of 1/256, which makes 0.02."""
_ROUNDINGS: Final = 4
"""Of float32, at an image's largest logit: by so much may its probabilities differ from kernel to
kernel. Seen at logits of 204: less than half of one."""
_MATTERS: Final = 1e-5
"""A class less probable than this has no part in the others' rounding, however large its logit."""
_MOST: Final = 1e-3
SAME_FUNCTION_ATOL: Final = 1e-4
"""Largest difference in score between a network and its folded or equalized form. The same products
are summed in float32 with other factors: measured 3e-6 on the pretrained model's probabilities."""


def evaluate(
    scores: Scores, labels: Labels, class_names: Sequence[str] = CLASS_NAMES
) -> dict[str, Any]:
    """Judge scores against labels; `class_names` are in label order.

    Returns
    -------
    dict
        Fields of :class:`resnet8_eval.row_record.ConfigurationResult`. In ``ties``, ``first``,
        ``last`` and ``expected`` count images that are right when the first, the last or a random
        one of the tied classes is the answer. ``correct`` is first-wins, which is ``argmax``.

    Raises
    ------
    ValueError
        If there are not as many scores as labels, or none.
    """
    if scores.shape != (len(labels), len(class_names)) or not len(labels):
        raise ValueError(
            f"expected one row of {len(class_names)} scores for each of {len(labels)} labels, "
            f"got scores of shape {scores.shape}"
        )
    answers = scores.argmax(axis=1)
    confusion = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    np.add.at(confusion, (labels, answers), 1)
    correct = int(np.trace(confusion))
    return {
        "correct": correct,
        "total": len(labels),
        "accuracy_percent": 100 * correct / len(labels),
        "per_class": [
            {
                "name": name,
                "correct": int(row[label]),
                "total": int(row.sum()),
                "accuracy_percent": 100 * int(row[label]) / int(row.sum()) if row.sum() else None,
            }
            for label, (name, row) in enumerate(zip(class_names, confusion, strict=True))
        ],
        "confusion": confusion.tolist(),
        "ties": _ties(scores, labels),
    }


def _ties(scores: Scores, labels: Labels) -> dict[str, Any]:
    best = scores == scores.max(axis=1, keepdims=True)
    tied = best.sum(axis=1)
    rows = np.arange(len(labels))
    last = best.shape[1] - 1 - best[:, ::-1].argmax(axis=1)
    return {
        "images": int((tied > 1).sum()),
        "first": int((best.argmax(axis=1) == labels).sum()),
        "last": int((last == labels).sum()),
        "expected": float((best[rows, labels] / tied).sum()),
    }


def same_function(
    name: str, source: Path, target: Path, images: Images, threads: int
) -> list[Check]:
    """Hold a float network against the one that it was made from, on images; see :func:`parity`.

    Folding, normalising and equalizing must not change the function. If they did, what is quantized
    afterwards would not be the user's network, and no later check would notice.

    Parameters
    ----------
    name
        Which two.
    source, target
        ONNX files.
    """
    from resnet8_eval import backends

    before, after = (backends.scores(path, images, threads=threads) for path in (source, target))
    return parity(name, before, after, SAME_FUNCTION_ATOL)


def parity(name: str, expected: Scores, observed: Scores, atol: float) -> list[Check]:
    """Check that two executions of one network give the same scores of the same images.

    Parameters
    ----------
    name
        Which two.
    atol
        As for :func:`difference`.

    Returns
    -------
    list of Check
        Shape, largest difference, and top-1 agreement of 100 %.
    """
    if expected.shape != observed.shape:
        return [equal(f"{name}: shape", expected.shape, observed.shape)]
    differing = int((expected.argmax(axis=1) != observed.argmax(axis=1)).sum())
    return [
        difference(name, expected, observed, atol),
        equal(f"{name}: images with another top-1 of {len(expected)}", 0, differing),
    ]


def difference(name: str, expected: Scores, observed: Scores, atol: float) -> Check:
    """Check that no probability differs by more than `atol`.

    An image whose logits are so large that float32 itself holds them less exactly is allowed four
    roundings of the largest, and 1e-3 at most.
    """
    before, after = probabilities(expected), probabilities(observed)
    differences = np.abs(before - after).max(axis=1)
    largest = np.where(before > _MATTERS, np.abs(expected), 0).max(axis=1)
    allowed = np.clip(_ROUNDINGS * np.finfo(np.float32).eps * largest, atol, _MOST)
    worst = int((differences / allowed).argmax())
    return at_most(
        f"{name}: largest difference in probability",
        float(allowed[worst]),
        float(differences[worst]),
    )


def probabilities(scores: Scores) -> Scores:
    """Scores (N, classes) as probabilities: softmax is applied to logits, and to nothing else.

    They count as probabilities if none is negative and all sums are 1, to
    :data:`MOST_ROUNDED_AWAY`.
    """
    sums = scores.sum(axis=1, dtype=np.float64)
    if not (scores < 0).any() and np.allclose(sums, 1, rtol=0, atol=MOST_ROUNDED_AWAY):
        return scores
    return softmax(scores)


def softmax(logits: Scores) -> Scores:
    """Probabilities of logits, float32 (N, classes)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
