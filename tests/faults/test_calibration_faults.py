"""Faults in the calibration set and in what it is fed as, and the requirement that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval import backends, calibration, cifar10, configurations, making, network, preprocess
from resnet8_eval.calibrate import probe, tuned
from resnet8_eval.calibrate.ranges import observe
from resnet8_eval.calibration import Indices
from resnet8_eval.cifar10 import Split
from resnet8_eval.preprocess import batches
from tests.planted import Bench, as_npy

Floats = NDArray[np.float32]
STOCK = [f"model/{row.name}" for row in configurations.stock()]


def choosing(
    change: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]],
) -> Callable[..., Indices]:
    """A choice whose indices were changed afterwards."""
    honest = calibration.choose

    def choose(labels: NDArray[np.int64], count: int, seed: int) -> Indices:
        return change(honest(labels, count, seed), labels)

    return choose


def another_class(indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two images of class 3 in the place of two of class 5."""
    free = np.setdiff1d(np.flatnonzero(labels == 3), indices)
    indices[np.flatnonzero(labels[indices] == 5)[:2]] = free[:2]
    return indices


def one_twice(indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    first, second = np.flatnonzero(labels[indices] == 0)[:2]
    indices[second] = indices[first]
    return indices


def first_ones(indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first thousand, as they come."""
    del labels
    return np.arange(len(indices))


CHOICES: dict[str, tuple[Callable[..., NDArray[np.int64]], str]] = {
    "two more of one class": (another_class, "class balance: expected ten classes"),
    "the first thousand": (first_ones, "class balance: expected ten classes"),
    "one image twice": (one_twice, "distinct images: expected 1000, observed 999"),
    "one image short": (lambda indices, _: indices[:-1], "measured 999 images"),
    "none of one class": (
        lambda indices, labels: indices[labels[indices] != 9],
        "calibration images: measured 900 images",
    ),
}


@pytest.mark.parametrize(("change", "said"), CHOICES.values(), ids=CHOICES)
def test_a_choice_that_is_not_stratified_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], said: str
) -> None:
    monkeypatch.setattr(making, "choose", choosing(change))
    bench.remake("calibration")
    assert said in bench.verdict("CAL-01")


@pytest.mark.parametrize("count", [1, 3])
def test_a_test_image_among_them_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """It lies in the training files, under an index that is honestly a training one."""
    honest = cifar10.read_split
    chosen = np.load(bench.artifact("calibration").path("indices.npy"))

    def read(folder: Any, split: Any, *_: Any) -> Split:
        found = honest(folder, split)
        if split == "train":
            found.images[chosen[:count]] = honest(folder, "test").images[100 : 100 + count]
        return found

    monkeypatch.setattr(cifar10, "read_split", read)
    bench.remake("calibration")
    assert f"images that are also test images: expected 0, observed {count}" in bench.verdict(
        "CAL-01"
    )


def test_images_from_the_test_split_are_all_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = cifar10.read_split
    monkeypatch.setattr(cifar10, "read_split", lambda folder, *_: honest(folder, "test"))
    bench.remake("calibration")
    assert "images that are also test images: expected 0, observed 1000" in bench.verdict("CAL-01")


@pytest.mark.parametrize("count", [990, 999])
def test_fewer_than_a_thousand_are_too_few(bench: Bench, count: int) -> None:
    bench.plant("calibration", {"count": count, "checks": []})
    assert f"measured {count} images, required ≥ 1000 images" in bench.verdict("CAL-01")


# --- what calibration feeds ----------------------------------------------------------------------


def one_value(fed: Floats) -> Floats:
    fed[0, 31, 31, 2] += 1
    return fed


FEEDS: dict[str, Callable[[Floats], Floats]] = {
    "divided by 255": lambda fed: fed / np.float32(255),
    "BGR": lambda fed: np.ascontiguousarray(fed[..., ::-1]),
    "height and width swapped": lambda fed: np.ascontiguousarray(fed.transpose(0, 2, 1, 3)),
    "one value of one image": one_value,
}


def feeding(change: Callable[[Floats], Floats]) -> Callable[..., Iterator[Floats]]:
    def feed(images: NDArray[np.uint8], *words: int) -> Iterator[Floats]:
        for batch in batches(images, *words):
            yield change(batch.copy())

    return feed


@pytest.fixture
def few(bench: Bench) -> Bench:
    """A bench with ten calibration images, so that feeding them takes no time."""
    images = np.load(bench.artifact("calibration").path("images.npy"))[::100]
    bench.plant("calibration", files={"images.npy": as_npy(images)})
    fed = _fed(bench)
    bench.plant("parameters/tuned", {"fed_sha256": fed})
    for stage in STOCK:
        bench.plant(stage, {"fed_sha256": fed})
    bench.remake("feed/tuned")
    assert bench.verdict("CAL-02") == ""
    return bench


def _fed(bench: Bench) -> str:
    """What calibration says that it fed."""
    images = np.load(bench.artifact("calibration").path("images.npy"))
    found = network.read(bench.artifact("parameters/tuned").path("rounded.onnx"))
    return observe(found, images).fed_sha256


@pytest.mark.parametrize("change", FEEDS.values(), ids=FEEDS)
def test_other_bytes_fed_while_calibrating_are_seen(
    few: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Floats], Floats]
) -> None:
    monkeypatch.setattr(probe, "batches", feeding(change))
    few.plant("parameters/tuned", {"fed_sha256": _fed(few)})
    few.remake("feed/tuned")
    assert "SHA-256 of what calibration fed, recorded while it ran" in few.verdict("CAL-02")


@pytest.mark.parametrize("change", FEEDS.values(), ids=FEEDS)
def test_other_bytes_fed_while_evaluating_are_counted(
    few: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Floats], Floats]
) -> None:
    monkeypatch.setattr(backends, "batches", feeding(change))
    few.remake("feed/tuned")
    said = few.verdict("CAL-02")
    assert "CAL-02 not met: differing bytes: measured " in said
    assert "measured 0 " not in said


def test_other_definitions_in_both_places_are_counted(
    few: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "batches", feeding(FEEDS["divided by 255"]))
    few.remake("feed/tuned")
    assert "differing bytes: measured " in few.verdict("CAL-02")


def test_images_that_were_left_out_are_counted(few: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "batches", lambda images: batches(images[:-1]))
    few.remake("feed/tuned")
    record = few.artifact("feed/tuned").record
    assert record["differing_bytes"] >= 32 * 32 * 3 * 4
    assert "bytes compared" in few.verdict("CAL-02")


def test_images_in_another_order_are_seen(few: Bench) -> None:
    images = np.load(few.artifact("calibration").path("images.npy"))
    few.plant("calibration", files={"images.npy": as_npy(images[::-1])})
    few.remake("feed/tuned")
    assert "SHA-256 of what calibration fed" in few.verdict("CAL-02")


def test_a_stock_model_that_was_calibrated_on_other_pixels(bench: Bench) -> None:
    """As a quantizer does that is fed raw pixels in a run on preprocessed ones."""
    stage = "model/torch-int8-stock"
    bench.plant(stage, record={"fed_sha256": "0" * 64})
    assert f"SHA-256 of what {stage} was fed: expected" in bench.verdict("CAL-02")


@pytest.mark.parametrize("change", FEEDS.values(), ids=FEEDS)
def test_what_is_fed_is_not_what_the_preprocessing_says(
    few: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Floats], Floats]
) -> None:
    """All feeds come through one function, so they agree; what it computes is checked by itself."""
    honest = preprocess.preprocess
    monkeypatch.setattr(
        preprocess, "preprocess", lambda images: np.ascontiguousarray(change(honest(images)))
    )
    fed = _fed(few)
    few.plant("parameters/tuned", {"fed_sha256": fed})
    for stage in STOCK:
        few.plant(stage, {"fed_sha256": fed})
    few.remake("feed/tuned")
    said = few.verdict("CAL-02")
    assert "difference from what the preprocessing says, relative to its largest value" in said
    assert said.count("[FAILED]") == 1
