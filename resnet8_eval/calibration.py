"""Which training images calibrate, and which validate. The choice sees training labels alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.checks import Check, equal
from resnet8_eval.errors import StageError
from resnet8_eval.preprocess import Labels

OPTIONS: Final = ("--calibration-count", "--calibration-seed")
"""What decides a calibration set, as a user gives it."""


Indices = NDArray[np.int64]
"""Ascending positions in the training split, (N,)."""


def indices_sha256(indices: Indices) -> str:
    """SHA-256 of indices as little-endian int64."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def choose(labels: Labels, count: int, seed: int, options: Sequence[str] = OPTIONS) -> Indices:
    """Draw a stratified calibration set from the labels of the training split.

    Parameters
    ----------
    count
        How many images; where ten does not divide it, the first classes get one more.
    seed
        Of ``numpy.random.default_rng``; the same seed gives the same images everywhere.

    Raises
    ------
    StageError
        If a class has fewer training images than asked for, `count` is below ten, or `seed` below
        zero.
    """
    if seed < 0:
        raise StageError(
            "A calibration set is drawn with a seed that is not negative.",
            expected="a whole number from 0",
            given=f"{options[1]} {seed}",
            next_step=f"choose another {options[1]}",
        )
    classes = 10
    wanted = [count // classes + (label < count % classes) for label in range(classes)]
    available = np.bincount(labels, minlength=classes)
    if count < classes or any(available[label] < n for label, n in enumerate(wanted)):
        raise StageError(
            f"A stratified choice of {count} images cannot be drawn.",
            expected=f"{classes} to {int(available.min()) * classes} images, ten classes alike",
            given=f"{options[0]} {count} with {available.tolist()} training images a class",
            next_step=f"choose another {options[0]}",
        )
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), size=n, replace=False)
        for label, n in enumerate(wanted)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def split(
    labels: Labels,
    count: int,
    seed: int,
    validation_count: int,
    options: Sequence[str] = OPTIONS,
) -> tuple[Indices, Indices]:
    """Say which training images calibrate, and which validate a choice made with them.

    Parameters
    ----------
    labels, count, seed
        As for :func:`choose`.
    validation_count
        How many images validate, stratified and disjoint from the calibration images.
    options
        What the user gives `count` and `seed` with, and `validation_count` if that can be chosen,
        for errors.

    Returns
    -------
    calibrating, validating
        The former is exactly ``choose(labels, count, seed)``.
    """
    calibrating = choose(labels, count, seed, options)
    free = np.ones(len(labels), bool)
    free[calibrating] = False
    rest = np.flatnonzero(free)
    # Another stream than the calibration set's, which starts from the seed itself.
    try:
        chosen = choose(labels[rest], validation_count, seed + 1_000_003)
    except StageError as error:
        given = zip(options[::2], (count, validation_count), strict=False)
        left = np.bincount(labels[rest], minlength=10).tolist()
        raise StageError(
            "Too few training images that do not calibrate can be drawn.",
            expected=f"{max(validation_count, 10)} of them, ten classes alike",
            given=f"{' and '.join(f'{name} {n}' for name, n in given)}: {left} of each class are"
            " left",
            next_step=f"choose another {' or '.join(options[::2])}",
        ) from error
    return calibrating, rest[chosen]


def verify(
    images: NDArray[np.uint8], labels: Labels, count: int, test_images: NDArray[np.uint8]
) -> list[Check]:
    """Check a finished calibration set: size, class balance, disjointness from the test split.

    `count` images were asked for. Test images are compared by pixel content, not by index.
    """
    per_class = np.bincount(labels, minlength=10)
    return [
        equal("calibration images", count, len(images)),
        equal("distinct images", len(images), len({image.tobytes() for image in images})),
        Check(
            "class balance",
            "ten classes that differ by at most one image",
            f"{per_class.min()} to {per_class.max()} a class",
            bool(len(per_class) == 10 and np.ptp(per_class) <= 1),
        ),
        equal("images that are also test images", 0, shared(images, test_images)),
    ]


def shared(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """How many of some images are, pixel for pixel, among others."""
    known = {image.tobytes() for image in others}
    return sum(image.tobytes() in known for image in some)
