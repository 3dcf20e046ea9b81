"""Faults between the images and the verdict, and the requirement that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval import backends, cifar10, evaluate, preprocess
from resnet8_eval.checks import MINUS
from resnet8_eval.cifar10 import Split
from resnet8_eval.errors import ModelError
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.requirements import ALWAYS
from tests.acceptance import common
from tests.planted import Bench

Images = NDArray[np.uint8]
ONNX, TORCH, KERAS = "onnxruntime-float32", "torch-float32", "keras-float32"


@pytest.mark.parametrize("name", ALWAYS)
def test_without_a_fault_nothing_is_said(bench: Bench, name: str) -> None:
    assert bench.verdict(name) == ""


# --- what the network is fed ---------------------------------------------------------------------

FEEDS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "BGR": lambda fed: fed[..., ::-1],
    "divided by 255": lambda fed: fed / np.float32(255),
    "height and width swapped": lambda fed: fed.transpose(0, 2, 1, 3),
    "one pixel to the right": lambda fed: np.roll(fed, 1, axis=2),
}


@pytest.mark.parametrize("feed", FEEDS.values(), ids=FEEDS)
def test_another_preprocessing_is_no_longer_the_known_count(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    feed: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    honest = preprocess.preprocess
    monkeypatch.setattr(
        preprocess, "preprocess", lambda images: np.ascontiguousarray(feed(honest(images)))
    )
    bench.remake(f"scores/{ONNX}", f"compare/{ONNX}")
    for name in ("EVAL-01", "EVAL-03"):
        assert f"{ONNX}, correct of total: expected 1766/2000" in bench.verdict(name)


@pytest.mark.parametrize("name", ["ORT-04", "PTQ-04"])
def test_no_milestone_is_met_on_a_baseline_that_is_none(
    pipeline: Pipeline, bench: Bench, tmp_path: Path, name: str
) -> None:
    accuracy = bench.artifact(f"scores/{KERAS}").record["accuracy_percent"]
    (tmp_path / "bench").mkdir()
    demanding = Bench(
        Pipeline(replace(pipeline.settings, min_accuracy=accuracy)), tmp_path / "bench"
    )
    said = demanding.verdict(name)
    assert f"every delta is from: expected > {accuracy:g} %, observed {accuracy:.2f} %; a" in said
    assert "does not say what quantization costs" in said
    lenient = replace(pipeline.settings, min_accuracy=accuracy - 0.1)
    (tmp_path / "lenient").mkdir()
    assert Bench(Pipeline(lenient), tmp_path / "lenient").verdict(name) == ""


# --- what its answers are held against -----------------------------------------------------------


def relabelled(change: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Any:
    honest = cifar10.read_split

    def read(folder: Any, split: Any, *_: Any) -> Split:
        found = honest(folder, split)
        return Split(found.images, change(found.labels))

    return read


LABELS: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
    "two classes swapped": lambda labels: np.array([0, 1, 2, 5, 4, 3, 6, 7, 8, 9])[labels],
    "shifted by an image": lambda labels: np.roll(labels, 1),
    "two images swapped": lambda labels: labels[np.r_[1, 0, 2 : len(labels)]],
    "counted from one": lambda labels: (labels + 1) % 10,
    "all the same": np.zeros_like,
}


@pytest.mark.parametrize("change", LABELS.values(), ids=LABELS)
def test_other_labels_are_no_longer_the_known_count(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> None:
    monkeypatch.setattr(cifar10, "read_split", relabelled(change))
    scores = np.load(bench.artifact(f"scores/{ONNX}").path("scores.npy"))
    monkeypatch.setattr(backends, "scores", lambda *_, **__: scores)
    bench.remake(f"scores/{ONNX}", f"compare/{ONNX}")
    for name in ("EVAL-01", "EVAL-03"):
        assert f"{ONNX}, correct of total: expected 1766/2000" in bench.verdict(name)


def test_names_in_another_order_are_seen(bench: Bench) -> None:
    record = bench.artifact(f"scores/{TORCH}").record
    renamed = [
        {**entry, "name": other["name"]}
        for entry, other in zip(record["per_class"], reversed(record["per_class"]), strict=True)
    ]
    bench.plant(f"scores/{TORCH}", {"per_class": renamed})
    assert "class names, in label order" in bench.verdict("PT-04")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"correct": 0}, "correct over all classes"),
        ({"total": 0, "accuracy_percent": None}, "measured 9"),
        ({"accuracy_percent": None}, "measured 9"),
        ({"accuracy_percent": 99.0}, "classes whose share is not correct / total"),
        ({"total": 201}, "images over all classes"),
    ],
    ids=["other count", "no images", "no accuracy", "other accuracy", "other total"],
)
def test_a_class_that_does_not_add_up_is_seen(
    bench: Bench, change: dict[str, Any], said: str
) -> None:
    first, *others = bench.artifact(f"scores/{ONNX}").record["per_class"]
    bench.plant(f"scores/{ONNX}", {"per_class": [{**first, **change}, *others]})
    assert said in bench.verdict("EVAL-02")


# --- scores that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: np.where(np.arange(10) == 3, np.nan, scores),
        lambda scores: scores[:-1],
        lambda scores: scores[:, :9],
    ],
    ids=["NaN", "fewer than images", "nine classes"],
)
def test_no_accuracy_comes_of_scores_that_are_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], Any]
) -> None:
    scores = np.load(bench.artifact(f"scores/{ONNX}").path("scores.npy"))
    monkeypatch.setattr(backends, "run", lambda *_: spoil(scores))
    with pytest.raises(ModelError, match="does not give one finite score for each class"):
        bench.remake(f"scores/{ONNX}")


def test_a_part_of_the_test_set_is_not_the_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand images, honestly scored, and said to be the test set."""
    honest = cifar10.read_split
    with monkeypatch.context() as patch:

        def half(folder: Any, split: Any, *_: Any) -> Split:
            found = honest(folder, split)
            return Split(found.images[:1000], found.labels[:1000])

        patch.setattr(cifar10, "read_split", half)
        bench.remake(f"scores/{ONNX}")
    assert "share of the test set scored: measured 50.00 %" in bench.verdict("EVAL-01")


def test_a_confusion_matrix_that_lost_images_is_seen(bench: Bench) -> None:
    confusion = [list(row) for row in bench.artifact(f"scores/{TORCH}").record["confusion"]]
    confusion[2][2] -= 1
    bench.plant(f"scores/{TORCH}", {"confusion": confusion})
    assert "images in the confusion matrix" in bench.verdict("PT-03")


def test_an_accuracy_at_the_threshold_is_not_above_it(bench: Bench) -> None:
    bench.plant(f"scores/{TORCH}", {"accuracy_percent": 85.0})
    assert "measured 85.00 %, required > 85 %, margin ±0.00 pp" in bench.verdict("PT-05")


# --- the comparison ------------------------------------------------------------------------------


def with_wrong_answers(bench: Bench, configuration: str, images: int) -> None:
    """Spoil the stored scores so that `images` more are wrong, and judge and compare them."""
    baseline = np.load(bench.artifact(f"scores/{KERAS}").path("scores.npy"))
    test = cifar10.read_split(bench.settings.assets.dataset, "test")
    right = np.flatnonzero(baseline.argmax(axis=1) == test.labels)[:images]
    scores = baseline.copy()
    scores[right] = np.roll(scores[right], 1, axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "scores", lambda *_, **__: scores)
        bench.remake(f"scores/{configuration}", f"compare/{configuration}")


@pytest.mark.parametrize(("images", "flagged"), [(100, False), (101, True), (400, True)])
def test_a_drop_of_more_than_five_points_is_flagged_and_fails(
    bench: Bench, images: int, flagged: bool
) -> None:
    with_wrong_answers(bench, "torch-int8-tuned", images)
    compared = bench.artifact("compare/torch-int8-tuned").record
    assert compared["delta_pp"] == -images / 20
    assert compared["flagged"] is flagged
    said = bench.verdict("ANL-02")
    if flagged:
        assert "configurations that drop more than 5 pp: measured 1" in said
        assert (
            "torch-int8-tuned, delta from the baseline: expected no lower than −5.00 pp, "
            f"observed −{images / 20:.2f} pp [FAILED]"
        ) in said
        assert f"drops {images / 20:.2f} pp" in compared["flag_reason"]
    else:
        assert said == ""
        assert compared["flag_reason"] is None


@pytest.mark.parametrize("images", [10, 200])
def test_a_flag_that_does_not_fit_the_drop_is_seen(bench: Bench, images: int) -> None:
    with_wrong_answers(bench, "torch-int8-tuned", images)
    wrong = not bench.artifact("compare/torch-int8-tuned").record["flagged"]
    bench.plant("compare/torch-int8-tuned", {"flagged": wrong})
    assert "torch-int8-tuned, flag: expected" in bench.verdict("ANL-02")


@pytest.mark.parametrize(
    ("requirement", "name"), [("ORT-04", "onnxruntime-uint8-tuned"), ("PTQ-04", "torch-int8-tuned")]
)
def test_a_delta_from_another_baseline_is_seen(bench: Bench, requirement: str, name: str) -> None:
    delta = bench.artifact(f"compare/{name}").record["delta_pp"]
    bench.plant(f"compare/{name}", {"delta_pp": delta + 1.11})
    said = bench.verdict(requirement)
    assert f"margin {MINUS}1" in said
    assert f"{name}, delta from 88.30 %" in said


def test_another_baseline_is_no_longer_the_known_count(bench: Bench) -> None:
    bench.plant(f"scores/{KERAS}", {"correct": 1767, "accuracy_percent": 88.35})
    for name in ("EVAL-01", "ORT-04", "PTQ-04"):
        assert "keras-float32, correct of total: expected 1766/2000" in bench.verdict(name)


def test_a_cell_without_a_delta_is_not_filled(bench: Bench) -> None:
    bench.plant("compare/torch-uint8-tuned", {"gained": 999})
    assert "torch-uint8-tuned, delta in images" in bench.verdict("ANL-01")


def test_ties_are_counted_with_all_three_ways_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of eight bits: what a quantized last layer would give."""
    scores = np.load(bench.artifact(f"scores/{ONNX}").path("scores.npy"))
    coarse = np.round(scores * 8) / 8
    monkeypatch.setattr(backends, "scores", lambda *_, **__: coarse.astype(np.float32))
    bench.remake(f"scores/{ONNX}")
    ties = bench.artifact(f"scores/{ONNX}").record["ties"]
    assert ties["images"] > 0
    assert ties["first"] != ties["last"]
    assert min(ties["first"], ties["last"]) - ties["images"] <= ties["expected"]
    assert ties["expected"] <= max(ties["first"], ties["last"]) + ties["images"]
    assert (
        evaluate.evaluate(coarse, cifar10.read_split(bench.settings.assets.dataset, "test").labels)[
            "ties"
        ]
        == ties
    )


def test_a_known_count_is_that_of_raw_pixels(pipeline: Pipeline) -> None:
    """The pretrained model as one's own, fed otherwise: its number is not held against that."""
    assert common.known_facts(pipeline) is not None
    other = replace(pipeline.settings, preprocessing=preprocess.USUAL["unit"])
    assert common.known_facts(Pipeline(other)) is None
