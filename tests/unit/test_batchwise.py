"""Batches are computed at once on the cores that are free, and put together in their order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval import batchwise as module
from resnet8_eval.batchwise import batchwise
from resnet8_eval.preprocess import BATCH_SIZE, Images

IMAGES = np.zeros((12 * BATCH_SIZE - 30, 32, 32, 3), np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(len(IMAGES)) % 251


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 4)


class Watched:
    """Counts how many batches are computed at the same time."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.then = then
        self.begun = self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, images: Images) -> NDArray[Any]:
        with self.lock:
            self.begun, self.now = self.begun + 1, self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        self.then()
        with self.lock:
            self.now -= 1
        assert isinstance(images, np.ndarray)
        return images[:, 0, 0, 0]


@pytest.mark.parametrize("share", [1, 2, 4])
def test_as_many_are_computed_at_once_as_may_be(share: int) -> None:
    work = Watched()
    found = batchwise(work, IMAGES, lambda: share)
    assert (found == IMAGES[:, 0, 0, 0]).all()
    assert (work.begun, work.most) == (12, share)


def test_a_share_that_grows_is_taken_up_and_one_that_shrinks_is_given_back() -> None:
    shares = [1]
    work = Watched(lambda: shares.__setitem__(0, 3 if work.begun < 8 else 1))
    batchwise(work, IMAGES, lambda: shares[0])
    assert work.most == 3
    last = Watched()
    batchwise(last, IMAGES, lambda: 3 if last.begun < 1 else 1)
    assert last.begun == 12
    assert last.most <= 3


def test_ctrl_c_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "wait", interrupted)
    work = Watched()
    with pytest.raises(KeyboardInterrupt):
        batchwise(work, IMAGES, lambda: 2)
    assert work.begun <= 4


def test_one_that_fails_ends_all() -> None:
    def refuse() -> None:
        if work.begun >= 3:
            raise ValueError("planted")

    work = Watched(refuse)
    with pytest.raises(ValueError, match="planted"):
        batchwise(work, IMAGES, lambda: 2)
    assert work.begun <= 4
