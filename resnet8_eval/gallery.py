"""The images that a quantized model newly gets wrong, small enough to lie in results.json."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.evaluate import probabilities
from resnet8_eval.preprocess import Labels, Scores

LARGEST: Final = 12
"""Images kept for one configuration: the wrong answers that it is surest of."""


def newly_wrong(
    images: NDArray[np.uint8], labels: Labels, baseline_scores: Scores, scores: Scores
) -> list[dict[str, Any]]:
    """Pick test images that the baseline gets right and another model gets wrong.

    At most :data:`LARGEST`, each as :class:`resnet8_eval.row_record.ChangedImage`.
    """
    answers, baseline_answers = scores.argmax(axis=1), baseline_scores.argmax(axis=1)
    shares, baseline_shares = probabilities(scores), probabilities(baseline_scores)
    wrong = np.flatnonzero((baseline_answers == labels) & (answers != labels))
    surest = wrong[np.argsort(-shares[wrong, answers[wrong]], kind="stable")][:LARGEST]
    return [
        {
            "index": int(index),
            "true": int(labels[index]),
            "baseline_answer": int(baseline_answers[index]),
            "baseline_score": round(float(baseline_shares[index].max()), 4),
            "answer": int(answers[index]),
            "score": round(float(shares[index].max()), 4),
            "png_base64": _png(images[index]),
        }
        for index in surest
    ]


def right_base64(labels: Labels, scores: Scores) -> str:
    """Which images were right: one bit each, the first in the highest bit, as base64."""
    return base64.b64encode(np.packbits(scores.argmax(axis=1) == labels).tobytes()).decode()


def _png(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
