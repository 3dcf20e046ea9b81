"""Accuracy, per class, confusion and ties, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval.checks import at_most
from resnet8_eval.cifar10 import CLASS_NAMES
from resnet8_eval.evaluate import difference, evaluate, parity, probabilities, softmax

NAMES = ("a", "b", "c")


def one_hot(answers: list[int], classes: int = 3) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[answers]


def test_counts_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = evaluate(one_hot([0, 0, 1, 1, 2, 2]), labels, NAMES)
    assert (found["correct"], found["total"]) == (4, 6)
    assert found["accuracy_percent"] == pytest.approx(400 / 6)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert [tuple(entry.values()) for entry in found["per_class"]] == [
        ("a", 2, 3, pytest.approx(200 / 3)),
        ("b", 1, 2, 50.0),
        ("c", 1, 1, 100.0),
    ]


def test_a_class_without_images_has_no_accuracy() -> None:
    found = evaluate(one_hot([0, 2]), np.array([0, 0]), NAMES)
    assert [entry["accuracy_percent"] for entry in found["per_class"]] == [50.0, None, None]


def test_ten_classes_by_default() -> None:
    found = evaluate(one_hot(list(range(10)), 10), np.arange(10))
    assert [entry["name"] for entry in found["per_class"]] == list(CLASS_NAMES)
    assert found["accuracy_percent"] == 100


def test_swapped_labels_show_in_the_confusion() -> None:
    labels = np.array([0, 0, 1, 2])
    swapped = np.array([1, 1, 0, 2])
    found = evaluate(one_hot(labels.tolist()), swapped, NAMES)
    assert found["correct"] == 1
    assert found["confusion"] == [[0, 1, 0], [2, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("scores", "label", "first", "last", "expected"),
    [
        ([0.5, 0.5, 0.0], 0, 1, 0, 1 / 2),
        ([0.5, 0.5, 0.0], 1, 0, 1, 1 / 2),
        ([0.5, 0.5, 0.0], 2, 0, 0, 0),
        ([0.3, 0.3, 0.3], 1, 0, 0, 1 / 3),
        ([0.2, 0.8, 0.0], 1, 1, 1, 1),
    ],
)
def test_ties(scores: list[float], label: int, first: int, last: int, expected: float) -> None:
    found = evaluate(np.array([scores], np.float32), np.array([label]), NAMES)
    ties = found["ties"]
    assert ties["images"] == (len({*scores}) < 3 and scores.count(max(scores)) > 1)
    assert (ties["first"], ties["last"]) == (first, last)
    assert ties["expected"] == pytest.approx(expected)
    assert found["correct"] == first


@pytest.mark.parametrize(
    "scores",
    [one_hot([0, 1]), one_hot([0, 1, 2, 0]), one_hot([0, 1, 2], 4), one_hot([0, 1, 2])[:, 0]],
    ids=["fewer", "more", "other classes", "flat"],
)
def test_scores_that_do_not_fit_the_labels_are_refused(scores: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="one row of 3 scores for each of 3 labels"):
        evaluate(scores, np.array([0, 1, 2]), NAMES)


def test_no_images_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="0 labels"):
        evaluate(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), NAMES)


def test_everything_is_of_built_in_types() -> None:
    def kinds(value: object) -> set[type]:
        if isinstance(value, dict):
            return set().union(*map(kinds, value.values()))
        if isinstance(value, list):
            return set().union(*map(kinds, value))
        return {type(value)}

    found = evaluate(one_hot([0, 1]), np.array([0, 2]), NAMES)
    assert kinds(found) <= {int, float, str, type(None)}


def test_probabilities_of_a_quantized_softmax_are_not_taken_for_logits() -> None:
    """Rounded to steps of 1/256 they do not add up to 1; one more softmax makes all alike."""
    exact = softmax(np.random.default_rng(0).normal(0, 4, (500, 10)).astype(np.float32))
    rounded = np.round(exact * 256) / np.float32(256)
    assert np.abs(rounded.sum(axis=1) - 1).max() > 0.005
    assert np.array_equal(probabilities(rounded), rounded)


def test_logits_become_probabilities_wherever_they_lie() -> None:
    draw = np.random.default_rng(0)
    of_sum_one = np.array([[2.0, -1.0, *[0.0] * 8]])
    alike = (np.full((50, 10), value) for value in (0.11, 1.0))
    for logits in (draw.normal(0, 4, (50, 10)), draw.uniform(0, 1, (50, 10)), of_sum_one, *alike):
        made = probabilities(logits.astype(np.float32))
        assert np.allclose(made, softmax(logits.astype(np.float32)))


def test_softmax_of_large_logits() -> None:
    assert softmax(np.array([[2000, 2000, 0]], np.float32)).tolist() == [[0.5, 0.5, 0.0]]


def two(*rows: tuple[float, float]) -> NDArray[np.float32]:
    """Logits of two classes."""
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    ("before", "after", "limit"),
    [
        ((0, 0), (0, 0), 1e-5),
        ((204, 204), (204, 204.0001), 4 * 2**-23 * 204),
        ((-204, -204), (-204, -204), 4 * 2**-23 * 204),
        ((0, -1000), (0, -1000), 1e-5),  # a class without a part in it
        ((1e6, 1e6), (1e6, 1e6), 1e-3),  # and never more
    ],
)
def test_large_logits_are_allowed_what_float32_rounds(
    before: tuple[float, float], after: tuple[float, float], limit: float
) -> None:
    check = difference("it", two(before), two(after), 1e-5)
    assert check.expected == at_most("it", limit, 0).expected
    assert check.ok


def test_the_difference_that_is_told_is_that_which_lies_furthest_above_what_is_allowed() -> None:
    before, after = two((204, 204), (0, 0)), two((204, 204.0003), (0, 1e-4))
    check = difference("it", before, after, 1e-5)
    assert not check.ok
    assert (check.expected, check.observed) == ("at most 1e−05", "2.5e−05")
    assert difference("it", before[:1], after[:1], 1e-5).ok


def test_parity_counts_the_images_that_get_another_class() -> None:
    before = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], np.float32)
    after = np.array([[0.5, 0.2, 0.3], [0.3, 0.5, 0.2]], np.float32)
    _, same = parity("it", before[:1], after[:1], 1)
    _, other = parity("it", before, after, 1)
    assert (same.ok, other.ok, other.observed) == (True, False, "1")
