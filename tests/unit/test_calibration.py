"""Which training images calibrate: ten classes alike, drawn by a seed and by nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval.calibration import choose, indices_sha256, split, verify
from resnet8_eval.checks import failed
from resnet8_eval.errors import StageError

LABELS = np.random.PCG64(5).random_raw(3000).astype(np.int64) % 10

Images = NDArray[np.uint8]


def images(count: int, start: int = 0) -> Images:
    """Images that differ from each other in one pixel."""
    found = np.zeros((count, 32, 32, 3), np.uint8)
    number = np.arange(start, start + count)
    found[:, 0, 0, 0], found[:, 0, 0, 1] = number // 256, number % 256
    return found


@pytest.mark.parametrize("count", [10, 100, 1000, 1003, 19])
def test_the_choice_is_stratified_distinct_and_in_training_order(count: int) -> None:
    chosen = choose(LABELS, count, seed=3)
    per_class = np.bincount(LABELS[chosen], minlength=10)
    assert len(chosen) == count
    assert np.ptp(per_class) <= 1
    assert (np.diff(chosen) > 0).all()
    assert (np.diff(per_class) <= 0).all()  # the first classes get one more


def test_the_seed_decides_and_nothing_else() -> None:
    first = choose(LABELS, 200, seed=1)
    np.random.default_rng(0).random(5)
    assert indices_sha256(choose(LABELS, 200, seed=1)) == indices_sha256(first)
    assert indices_sha256(choose(LABELS.astype(np.uint8), 200, seed=1)) == indices_sha256(first)
    assert indices_sha256(choose(LABELS, 200, seed=2)) != indices_sha256(first)


def test_the_images_of_a_seed_are_pinned() -> None:
    chosen = choose(np.arange(1000) % 10, 100, seed=0)
    assert indices_sha256(chosen) == hashlib.sha256(chosen.tobytes()).hexdigest()
    assert indices_sha256(chosen)[:16] == "88366ccb8ab635af"


@pytest.mark.parametrize("count", [9, 0, -1, 3010])
def test_a_set_that_cannot_be_drawn_says_what_could(count: int) -> None:
    with pytest.raises(StageError) as caught:
        choose(np.arange(3000) % 10, count, seed=0)
    assert "10 to 3000 images" in caught.value.expected
    assert f"--calibration-count {count}" in caught.value.given


def test_a_class_without_enough_images_is_told() -> None:
    with pytest.raises(StageError, match="cannot be drawn") as caught:
        choose(np.repeat(np.arange(10), [5] * 9 + [4]), 50, seed=0)
    assert caught.value.expected == "10 to 40 images, ten classes alike"


def test_a_seed_below_zero_is_told() -> None:
    with pytest.raises(StageError, match="not negative") as caught:
        choose(LABELS, 10, seed=-1)
    assert caught.value.given == "--calibration-seed -1"


@pytest.mark.parametrize("count", [20, 23])
def test_an_honest_set_passes_every_check(count: int) -> None:
    checks = verify(images(count), np.arange(count) % 10, count, images(30, start=count))
    assert len(checks) == 4
    assert failed(checks) == []


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"labels": np.arange(19) % 10, "images": images(19)}, "calibration images"),
        ({"images": images(20)[[0, *range(19)]]}, "distinct images"),
        ({"labels": np.array([0, *range(9), *range(10)])}, "class balance"),
        ({"labels": np.arange(20) % 9}, "class balance"),
        ({"labels": np.arange(20) % 11}, "class balance"),
        ({"test_images": images(5, start=15)}, "images that are also test images"),
    ],
    ids=[
        "one short",
        "one twice",
        "one too many",
        "a class absent",
        "an 11th class",
        "of the test",
    ],
)
def test_each_fault_trips_its_check(fault: dict[str, np.ndarray], name: str) -> None:
    honest = {"images": images(20), "labels": np.arange(20) % 10, "test_images": images(9, 50)}
    checks = verify(**{**honest, **fault}, count=20)  # type: ignore[arg-type]
    assert name in [check.name for check in failed(checks)]


def test_a_test_image_is_known_by_its_pixels_wherever_it_lies() -> None:
    test = images(90, start=50)
    planted = images(20)
    planted[7] = test[88]
    (check,) = failed(verify(planted, np.arange(20) % 10, 20, test))
    assert (check.name, check.observed) == ("images that are also test images", "1")
    planted[7, 31, 31, 2] ^= 1
    assert failed(verify(planted, np.arange(20) % 10, 20, test)) == []


def test_images_that_validate_are_stratified_and_none_of_them_calibrates() -> None:
    calibrating, validating = split(LABELS, 200, 1, 300)
    assert indices_sha256(calibrating) == indices_sha256(choose(LABELS, 200, seed=1))
    assert len(set(validating.tolist())) == 300
    assert not set(validating.tolist()) & set(calibrating.tolist())
    assert np.bincount(LABELS[validating]).tolist() == [30] * 10
    assert not np.array_equal(validating, split(LABELS, 200, 2, 300)[1])
    assert indices_sha256(split(np.arange(1000) % 10, 100, 0, 100)[1])[:16] == "deafaf702cc50215"


def test_a_class_balance_is_told_by_its_smallest_and_largest() -> None:
    (check,) = failed(verify(images(20), np.array([0, *range(9), *range(10)]), 20, images(9, 50)))
    assert check.observed == "1 to 3 a class"


@pytest.mark.parametrize(("count", "validating"), [(2995, 100), (3000, 10), (200, 5), (200, 2990)])
def test_too_few_images_to_validate_on_are_told_by_what_the_user_chose(
    count: int, validating: int
) -> None:
    with pytest.raises(StageError, match="Too few training images") as caught:
        split(np.arange(3000) % 10, count, 0, validating)
    assert caught.value.given.startswith(f"--calibration-count {count}: [")
    assert caught.value.expected.startswith(f"{max(validating, 10)} of them")
    assert str(validating) not in caught.value.given.partition(": ")[0].split()
