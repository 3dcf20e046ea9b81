"""Batches are computed at once on the cores that are free, and put together in their order."""

from __future__ import annotations

import itertools
import threading
import time
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


def first_pixels(images: Images) -> NDArray[Any]:
    assert isinstance(images, np.ndarray)
    return images[:, 0, 0, 0]


@pytest.mark.parametrize("share", [1, 2, 3, 4])
def test_as_many_are_computed_at_once_as_may_be(share: int) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    together = threading.Barrier(share, timeout=60)  # breaks unless so many come

    def compute(images: Images) -> NDArray[Any]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait()
        with lock:
            now[0] -= 1
        return first_pixels(images)

    assert (batchwise(compute, IMAGES, lambda: share) == IMAGES[:, 0, 0, 0]).all()
    assert most == [share]


def test_a_share_that_grows_is_taken_up() -> None:
    numbers, begun = itertools.count(1), [0]
    together = threading.Barrier(3, timeout=60)

    def compute(images: Images) -> NDArray[Any]:
        begun[0] = number = next(numbers)
        if 3 < number <= 6:
            together.wait()  # until three are computed at once
        return first_pixels(images)

    batchwise(compute, IMAGES, lambda: 1 if begun[0] < 3 else 3)
    assert next(numbers) == 13


def test_a_share_that_shrinks_is_given_back() -> None:
    numbers = itertools.count()
    threads = [0] * 12
    together = threading.Barrier(3, timeout=60)

    def compute(images: Images) -> NDArray[Any]:
        number = next(numbers)
        threads[number] = threading.get_ident()
        if number < 3:
            together.wait()
        return first_pixels(images)

    batchwise(compute, IMAGES, lambda: 3 if not all(threads[:3]) else 1)
    assert len(set(threads[:3])) == 3
    assert len(set(threads[3:])) == 1


def test_ctrl_c_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    ended = threading.Event()

    def interrupted(*_: Any, **__: Any) -> None:
        ended.set()
        raise KeyboardInterrupt

    def compute(images: Images) -> NDArray[Any]:
        begun.append(1)
        ended.wait(60)
        time.sleep(0.1)  # the other threads are told meanwhile
        return first_pixels(images)

    monkeypatch.setattr(module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batchwise(compute, IMAGES, lambda: 2)
    assert len(begun) < 12


def test_one_that_fails_ends_all() -> None:
    begun: list[int] = []

    def compute(images: Images) -> NDArray[Any]:
        begun.append(1)
        if len(begun) == 1:
            raise ValueError("planted")
        time.sleep(0.1)
        return first_pixels(images)

    with pytest.raises(ValueError, match="planted"):
        batchwise(compute, IMAGES, lambda: 2)
    assert len(begun) < 12
