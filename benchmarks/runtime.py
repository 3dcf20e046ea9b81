"""One configuration: the suite's evaluation, and the runtime alone at its best.

    python -m benchmarks.runtime MODEL DATASET THREADS EXECUTION

Prints JSON. The runtime alone is given the same images as batches that are float32 already, of the
size that a short trial finds best. A process measures one thread count, because TensorFlow takes it
once.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from resnet8_eval import backends
from resnet8_eval.backends import Execution
from resnet8_eval.cifar10 import read_split

BATCHES: Final = (25, 50, 100, 200)
REPETITIONS: Final = 3
TRIAL_IMAGES: Final = 1000


def seconds(work: Callable[[], object]) -> float:
    """What one run takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(model: Path, dataset: Path, threads: int, execution: Execution) -> object:
    """Images a second of the suite and of the runtime alone.

    The suite and the runtime with its best batch size take turns; last comes the runtime with all
    images in one batch.
    """
    images = read_split(dataset, "test").images
    feed = images.astype(np.float32)

    def suite() -> Callable[[], object]:
        score = backends.scorer(model, threads, execution=execution)
        score(images[:TRIAL_IMAGES])  # the first do not count
        return lambda: score(images)

    def alone(size: int, count: int) -> Callable[[], object]:
        # Opened anew each time: PyTorch has one number of threads for a whole process.
        runtime = backends.open_runtime(model, threads, execution)
        runtime(feed[:size])
        return lambda: [runtime(feed[start : start + size]) for start in range(0, count, size)]

    def trial(size: int) -> float:
        work = alone(size, TRIAL_IMAGES)
        return statistics.median(seconds(work) for _ in range(REPETITIONS))

    best = min(BATCHES, key=trial)
    taken = [(seconds(suite()), seconds(alone(best, len(images)))) for _ in range(REPETITIONS)]
    of_suite, of_runtime = (
        len(images) / statistics.median(column) for column in zip(*taken, strict=True)
    )
    return {
        "suite": of_suite,
        "alone": of_runtime,
        "batch": best,
        "at_once": len(images) / seconds(alone(len(images), len(images))),
    }


if __name__ == "__main__":
    path, data, count, kind = sys.argv[1:]
    print(json.dumps(measure(Path(path), Path(data), int(count), kind)))  # type: ignore[arg-type]
