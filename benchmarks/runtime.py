"""One configuration: the suite's evaluation, and the runtime alone at its best.

    python -m benchmarks.runtime MODEL DATASET THREADS EXECUTION

Prints JSON. The runtime alone is given batches that are float32 already, of several sizes, with one
thread and with all. A process measures one thread count, because TensorFlow takes it once.
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

from resnet8_eval import runtimes
from resnet8_eval.cifar10 import read_split
from resnet8_eval.onnx_session import Execution

BATCHES: Final = (25, 50, 100, 200)
REPETITIONS: Final = 3
ALONE_IMAGES: Final = 1000


def seconds(work: Callable[[], object]) -> float:
    """Median of some runs."""
    taken = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(model: Path, dataset: Path, threads: int, execution: Execution) -> object:
    """Images a second: the suite over all images, and the runtime alone for each batch size."""
    images = read_split(dataset, "test").images
    runtime = runtimes._open(model, threads, execution)
    feed = images[:ALONE_IMAGES].astype(np.float32)

    def alone(size: int) -> Callable[[], object]:
        return lambda: [runtime(feed[start : start + size]) for start in range(0, len(feed), size)]

    for size in BATCHES:  # the first of each size does not count
        runtime(feed[:size])
    best = {size: len(feed) / seconds(alone(size)) for size in BATCHES}
    return {
        "suite": len(images) / seconds(lambda: runtimes.run(runtime, images)),
        "alone": best,
    }


if __name__ == "__main__":
    path, data, count, kind = sys.argv[1:]
    print(json.dumps(measure(Path(path), Path(data), int(count), kind)))  # type: ignore[arg-type]
