"""The gallery shows what changed, and nothing else."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.gallery import LARGEST, newly_wrong, right_base64


def sure(answers: list[int], confidences: list[float]) -> NDArray[np.float32]:
    """Probabilities: the others share what the answer leaves."""
    found = np.repeat((1 - np.array(confidences)) / 9, 10).reshape(-1, 10)
    found[range(len(answers)), answers] = confidences
    return found.astype(np.float32)


def test_only_images_that_became_wrong_are_shown_and_the_surest_first() -> None:
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 3, 4])
    baseline = sure([0, 1, 2, 9, 9], [1, 0.7, 0.8, 1, 1])
    scores = sure([0, 5, 6, 3, 9], [1, 0.6, 0.9, 1, 1])  # the last was wrong before
    found = newly_wrong(images, labels, baseline, scores)
    keys = ("index", "true", "baseline_answer", "baseline_score", "answer", "score")
    assert [tuple(entry[key] for key in keys) for entry in found] == [
        (2, 2, 2, 0.8, 6, 0.9),
        (1, 1, 1, 0.7, 5, 0.6),
    ]
    with Image.open(io.BytesIO(base64.b64decode(found[0]["png_base64"]))) as picture:
        assert np.array_equal(np.asarray(picture), images[2])


def test_the_gallery_is_bounded() -> None:
    images = np.zeros((40, 32, 32, 3), np.uint8)
    labels = np.zeros(40, np.int64)
    right, wrong = np.eye(10, dtype=np.float32)[labels], np.eye(10, dtype=np.float32)[labels + 1]
    assert len(newly_wrong(images, labels, right, wrong)) == LARGEST


def test_right_answers_are_packed_first_image_highest() -> None:
    scores = np.eye(10, dtype=np.float32)[[1, 0, 1]]
    assert base64.b64decode(right_base64(np.array([1, 1, 1]), scores)) == bytes([0b10100000])
