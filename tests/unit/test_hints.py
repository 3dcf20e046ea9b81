"""Hints: which preprocessing, or order of classes, a network seems to have been trained on."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval.hints import tried
from resnet8_eval.preprocess import USUAL, Feed, Preprocessing, chosen, preprocess
from resnet8_eval.report import words

LABELS = np.repeat(np.arange(10), 40)
NAMES = tuple("abcdefghij")
IMAGES = np.zeros((400, 32, 32, 3), np.uint8)
# Red says the class; blue always says 9, so that a network that looks at the wrong one errs.
IMAGES[..., 0] = (LABELS * 25)[:, None, None]
IMAGES[..., 2] = 225


def network(undo: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Any], Any]:
    """A network that was trained on pixels of which `undo` gives red."""

    def scores(images: Feed) -> Any:
        red = undo(preprocess(images)[:, 0, 0].astype(float)) / 25
        return -np.abs(red[:, None] - np.arange(10)).astype(np.float32)

    return scores


def tell(score: Any, used: str = "raw") -> dict[str, Any]:
    return tried(score, Feed(IMAGES, USUAL[used]), LABELS, NAMES)


def test_a_network_that_is_fed_as_it_was_trained_is_left_alone() -> None:
    found = tell(network(lambda x: x[:, 0]))
    assert found["hint"] is None
    assert found["images"] == 400
    assert next(iter(found["percent"].items())) == ("raw", 100)


@pytest.mark.parametrize(
    ("undo", "remedy"),
    [
        (lambda x: x[:, 0] * 255, "100 % of unit pixels. If it was trained so, give "),
        (lambda x: x[:, 0] * 255, "--preprocessing unit."),
        (lambda x: (x[:, 0] * 0.2470 + 0.4914) * 255, "give --preprocessing standard."),
        (lambda x: x[:, 2] + 123.68, "give --preprocessing caffe."),
        (lambda x: x[:, 2], "100 % of raw in BGR pixels. If it was trained so, write "),
        (lambda x: x[:, 2], "give --preprocessing pixels.toml."),
        (lambda x: (x[:, 2] * 0.2470 + 0.4914) * 255, "mean = [0.4465, 0.4822, 0.4914]"),
        (lambda x: (x[:, 2] * 0.2470 + 0.4914) * 255, "std = [0.2616, 0.2435, 0.247]"),
        (lambda x: (x[:, 0] + 1) * 127.5, "scale = 0.00784313"),
        (lambda x: (x[:, 0] + 1) * 127.5, "% of [-1, 1] pixels."),
    ],
)
def test_another_preprocessing_is_told(undo: Any, remedy: str) -> None:
    hint = tell(network(undo))["hint"]
    assert hint.startswith("On 400 training images this network is right on ")
    assert remedy in hint


def test_one_image_short_of_all_is_not_all() -> None:
    right = network(lambda x: x[:, 0] * 255)
    wrong = np.where(np.arange(400) == 7, -1, 1)[:, None]
    hint = tell(lambda images: right(images) * wrong)["hint"]
    assert "is right on 99.75 % of unit pixels" in hint


def test_the_file_that_is_told_can_be_written_as_it_is_told(tmp_path: Path) -> None:
    """From the one line that reports make of a hint."""
    hint = tell(network(lambda x: x[:, 2]))["hint"]
    command = words.plain(hint).partition("write a file (")[2].partition(") and give ")[0]
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)  # noqa: S603, S607
    found = chosen(str(tmp_path / "pixels.toml"))
    assert tomllib.loads((tmp_path / "pixels.toml").read_text()) == found.describe()
    assert found.describe() == Preprocessing("raw in BGR", channels="BGR").describe()


def test_the_right_one_once_given_is_left_alone() -> None:
    assert tell(network(lambda x: x[:, 0] * 255), "unit")["hint"] is None
    own = Preprocessing("own.toml", 1 / 255)
    found = tried(network(lambda x: x[:, 0] * 255), Feed(IMAGES, own), LABELS, NAMES)
    assert found["hint"] is None
    assert "unit" not in found["percent"]  # the same under another name


@pytest.mark.parametrize("scale", [1, 255])
def test_classes_in_another_order_are_told(scale: int) -> None:
    """Also where the preprocessing is another as well."""
    right = network(lambda x: x[:, 0] * scale)
    order = np.roll(np.arange(10), 3)
    hint = tell(lambda batch: right(batch)[:, order])["hint"]
    assert "were its classes in this order: h, i, j, a, b, c, d, e, f, g," in hint
    assert f"100 % of {'raw' if scale == 1 else 'unit'} pixels" in hint


def test_a_network_that_guesses_gets_no_hint() -> None:
    random = np.random.default_rng(0)
    assert tell(lambda batch: random.random((len(batch), 10), np.float32))["hint"] is None
    assert tell(lambda batch: np.ones((len(batch), 10), np.float32))["hint"] is None
