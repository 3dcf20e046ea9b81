"""The comparison: deltas, flags and words, at their borders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval import analysis, configurations, gallery, making
from resnet8_eval.analysis import compare, flag, verdict_word
from resnet8_eval.cifar10 import CLASS_NAMES
from resnet8_eval.evaluate import softmax
from resnet8_eval.inputs import Labelled
from resnet8_eval.preprocess import Feed
from resnet8_eval.requirements import EQUIVALENCE_MARGIN_PP
from resnet8_eval.statistics import mcnemar_p, paired_interval_pp, wilson_interval_percent
from tests import small_network

LABELS = np.arange(10_000) % 10


def scores(answers: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.eye(10, dtype=np.float32)[answers]


def wrong(images: slice) -> NDArray[np.float32]:
    """Scores that are right but for some images."""
    answers = LABELS.copy()
    answers[images] = (answers[images] + 1) % 10
    return scores(answers)


def test_counts_by_hand() -> None:
    found = compare(wrong(slice(0, 30)), wrong(slice(20, 60)), LABELS)
    assert (found["lost"], found["gained"]) == (20, 30)
    assert found["delta_pp"] == pytest.approx(0.1)
    assert found["agreement_percent"] == pytest.approx(99.5)
    assert found["delta_ci95_pp"] == list(paired_interval_pp(20, 30, 10_000))
    assert found["accuracy_ci95_percent"] == list(wilson_interval_percent(9970, 10_000))
    assert found["mcnemar_p"] == mcnemar_p(20, 30)
    assert sum(found["per_class_delta_pp"].values()) == pytest.approx(10 * found["delta_pp"])


def test_agreement_counts_answers_not_successes() -> None:
    both_wrong_differently = (LABELS + 2) % 10
    found = compare(scores(both_wrong_differently), wrong(slice(None)), LABELS)
    assert (found["lost"], found["gained"], found["agreement_percent"]) == (0, 0, 0)


def test_per_class_delta_names_the_class_that_lost() -> None:
    answers = LABELS.copy()
    answers[(LABELS == 3) & (np.arange(10_000) < 1000)] = 5
    found = compare(scores(answers), scores(LABELS), LABELS)
    assert found["per_class_delta_pp"]["cat"] == pytest.approx(-10)
    assert {d for name, d in found["per_class_delta_pp"].items() if name != "cat"} == {0}


def test_a_class_without_images_has_no_delta() -> None:
    few = LABELS[:5]
    assert len(compare(scores(few), scores(few), few)["per_class_delta_pp"]) == 5


@pytest.mark.parametrize(
    ("lost", "total", "flagged"),
    [
        (500, 10_000, False),
        (501, 10_000, True),
        (100, 2000, False),
        (101, 2000, True),
        (0, 10_000, False),
        (1, 20, False),
        (2, 20, True),
        (7, 140, False),
    ],
)
def test_a_drop_of_exactly_five_points_is_not_flagged(lost: int, total: int, flagged: bool) -> None:
    labels = LABELS[:total]
    found = compare(wrong(slice(0, lost))[:total], scores(labels), labels)
    assert found["flagged"] is flagged
    assert (found["flag_reason"] is not None) is flagged


@pytest.mark.parametrize(
    ("delta", "reason"),
    [(-5.0, None), (-5.01, "drops 5.01 pp, more than 5 pp"), (5.01, None), (0.0, None)],
)
def test_flag(delta: float, reason: str | None) -> None:
    assert flag(delta) == (reason is not None, reason)


M = EQUIVALENCE_MARGIN_PP


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((-M, M), "equivalent"),
        ((-M, -0.1), "equivalent, lower"),
        ((-M, 0.0), "equivalent"),
        ((0.1, M), "equivalent, higher"),
        ((-M - 0.01, M), "inconclusive"),
        ((-M, M + 0.01), "inconclusive"),
        ((-2.0, 0.0), "inconclusive"),
        ((-2.0, -0.01), "degraded"),
        ((0.0, 2.0), "inconclusive"),
        ((0.01, 2.0), "improved"),
        ((-2.0, 2.0), "inconclusive"),
    ],
)
def test_words_at_their_borders(interval: tuple[float, float], word: str) -> None:
    assert verdict_word(interval) == word


def test_the_word_of_a_comparison_is_that_of_its_interval() -> None:
    same = compare(scores(LABELS), scores(LABELS), LABELS)
    assert (same["word"], same["mcnemar_p"], same["agreement_percent"]) == ("equivalent", 1.0, 100)
    worse = compare(wrong(slice(0, 200)), scores(LABELS), LABELS)
    assert worse["word"] == "degraded"


def test_a_small_and_certain_loss_is_said_to_be_one() -> None:
    """36 lost and 2 gained: within the margin, and with p below 1e-8 no accident."""
    few = wrong(slice(0, 36))
    reference = scores(LABELS)
    reference[9998:] = np.roll(reference[9998:], 1, axis=1)
    found = compare(few, reference, LABELS)
    assert (found["lost"], found["gained"], found["word"]) == (36, 2, "equivalent, lower")
    assert found["mcnemar_p"] < 1e-8


def _probabilities(*rows: list[float]) -> NDArray[np.float32]:
    return np.array([row + [0.0] * (10 - len(row)) for row in rows], np.float32)


def test_divergence_by_hand() -> None:
    before = _probabilities([0.5, 0.5], [1.0])
    after = _probabilities([0.25, 0.75], [1.0])
    found = analysis.divergence(after, before)
    assert found["largest"] == 0.25
    assert found["mean"] == pytest.approx(0.5 / 20)
    assert found["kl_nats"] == pytest.approx(0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)))
    assert analysis.divergence(before, before) == {"largest": 0, "mean": 0, "kl_nats": 0}


def test_a_probability_that_became_zero_costs_a_finite_divergence() -> None:
    found = analysis.divergence(_probabilities([1.0]), _probabilities([0.5, 0.5]))
    assert found["kl_nats"] == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-12))


def test_calibration_error_by_hand() -> None:
    """Four images at 0.9, three of them right, and one at 0.5, right: (4·0.15 + 0.5) / 5."""
    scores = _probabilities(*[[0.9, 0.1]] * 4, [0.5, 0.5])
    found = analysis.reliability(scores, np.array([0, 0, 1, 0, 0]))
    assert found["error_percent"] == pytest.approx(100 * (4 * 0.15 + 0.5) / 5, rel=1e-5)
    full = {place: entry for place, entry in enumerate(found["bins"]) if entry["images"]}
    assert len(found["bins"]) == 15
    assert {place: entry["images"] for place, entry in full.items()} == {7: 1, 13: 4}
    assert full[13]["accuracy_percent"] == 75
    assert full[13]["confidence_percent"] == pytest.approx(90)


def test_a_sure_and_a_wholly_unsure_image_have_a_bin() -> None:
    found = analysis.reliability(_probabilities([1.0], []), np.array([0, 0]))
    assert [found["bins"][place]["images"] for place in (0, 14)] == [1, 1]
    assert found["error_percent"] == 50


def test_logits_are_compared_as_the_probabilities_that_they_stand_for() -> None:
    """Of a network that ends in its dense layer; its classes are those of the logits."""
    dice = np.random.default_rng(0)
    before, after = (dice.normal(0, 20, (40, 10)).astype(np.float32) for _ in range(2))
    labels = dice.integers(0, 10, 40)
    found = analysis.compare(after, before, labels)
    after, before = softmax(after), softmax(before)
    assert found == analysis.compare(after, before, labels)
    assert found["divergence"] == analysis.divergence(after, before)
    assert found["divergence"] != analysis.divergence(before, after)
    assert found["reliability"] == analysis.reliability(after, labels)
    assert found["baseline_reliability"] == analysis.reliability(before, labels)
    assert 0 <= found["reliability"]["error_percent"] <= 100
    assert found["divergence"]["largest"] <= 1


def test_each_stage_holds_the_later_against_the_earlier() -> None:
    """Of 100 images float32 is right on 90, the stock row on 60 and the tuned one on 80."""
    right = {"scores/keras-float32": 90, "scores/stock": 60, "scores/torch-int8-tuned": 80}
    labels = LABELS[:100]
    inputs: Any = SimpleNamespace(
        artifacts=right,
        scores=lambda name: wrong(slice(0, 100 - right[name]))[:100],
        split=lambda _: Labelled(Feed(small_network.images(100)), labels),
        class_names=CLASS_NAMES,
    )
    row = configurations.of("torch-int8-tuned")
    found = making.compare(inputs, row=row)
    assert (found["lost"], found["gained"], found["delta_pp"]) == (10, 0, -10)
    assert [image["index"] for image in found["changed"]] == list(range(10, 20))
    assert found["right_base64"] == gallery.right_base64(
        labels, inputs.scores(f"scores/{row.name}")
    )
    itself = making.compare(inputs, row=configurations.baseline())
    assert (itself["word"], itself["mcnemar_p"], itself["delta_ci95_pp"]) == (
        "baseline",
        None,
        None,
    )
    tuned = making.tuning(inputs, stock="stock", tuned=row.name)
    assert (tuned["lost"], tuned["gained"], tuned["delta_pp"]) == (0, 20, 20)
    between = making.agreement(inputs)
    assert between["rows"] == ["keras-float32", "stock", row.name]
    assert between["percent"] == [[100, 70, 90], [70, 100, 80], [90, 80, 100]]
