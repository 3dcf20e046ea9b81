"""Batches that are computed at once, each in one thread, on the cores that are free.

No batch depends on another, so how many are computed at once changes no result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.environment import usable_cores
from resnet8_eval.preprocess import BATCH_SIZE, Images

Share = Callable[[], int]
"""How many batches may be computed at once; asked before each, because it changes."""
_WAIT: Final = 0.05
"""Seconds after which a thread that has no core asks again."""


def batchwise(
    compute: Callable[[Images], NDArray[Any]], images: Images, share: Share
) -> NDArray[Any]:
    """Compute something of images batch by batch, and put it together in their order.

    Parameters
    ----------
    compute
        Called with stored images, in several threads at once: n images to an array (n, ...).
    share
        At least 1.
    """
    starts = iter(range(0, len(images), BATCH_SIZE))
    found: dict[int, NDArray[Any]] = {}
    done = threading.Event()

    def work(number: int) -> None:
        while not done.is_set():
            if number >= share():
                done.wait(_WAIT)
            elif (start := next(starts, None)) is None:
                done.set()
            else:
                found[start] = compute(images[start : start + BATCH_SIZE])

    most = max(1, min(usable_cores(), -(-len(images) // BATCH_SIZE)))
    with ThreadPoolExecutor(most) as pool:
        try:
            working = [pool.submit(work, number) for number in range(most)]
            wait(working, return_when=FIRST_EXCEPTION)
        finally:
            done.set()  # after a failure, or Ctrl-C, no thread need go on
    for each in working:
        each.result()  # raises what it did
    return np.concatenate([found[start] for start in sorted(found)])
