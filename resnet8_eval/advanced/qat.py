"""Fine-tuned networks: which images train, and what their stored files are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import backends, calibration, statistics
from resnet8_eval.advanced.bits import Bits
from resnet8_eval.advanced.lowbit import map_types
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.configurations import Configuration
from resnet8_eval.inputs import Labelled
from resnet8_eval.integers import ExactNetwork, rounding
from resnet8_eval.proof import compare
from resnet8_eval.store import Record, file_sha256

VALIDATING: Final = 5000
"""Training images that do not train; of few, a tenth."""


def divided(
    labels: NDArray[np.integer], count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which training images train, and which validate; those that calibrated train as well.

    `labels` (N,) are those of the training split, `count` and `seed` the calibration set's. Both
    results are int64, ascending positions; every image is in one of them.
    """
    _, validating = calibration.split(labels, count, seed, min(VALIDATING, len(labels) // 10))
    return np.setdiff1d(np.arange(len(labels)), validating), validating


def moved_percent(before: Parameters, after: Parameters) -> float:
    """Share of the weights' integers that training changed."""
    changed = sum(int((before.integers[n] != v).sum()) for n, v in after.integers.items())
    return 100 * changed / sum(values.size for values in after.integers.values())


def in_torch(
    parameters: Parameters, bits: Bits, path: Path, test: Labelled, threads: int
) -> tuple[Record, NDArray[np.float32]]:
    """Write a network of few bits for PyTorch, read it back, and hold it against exact integers.

    PyTorch's integer kernels take weights of 8 bits alone; what they say to 4 is recorded. So 8
    bits hold the integers of fewer, and maps are held to the levels that they have.

    Returns
    -------
    record : dict
        As :class:`resnet8_eval.advanced_record.InTorch`, with ``checks``; ``weights_bytes`` are
        those of weights and biases, ``said`` is of 4-bit weights.
    scores : ndarray
        float32 (N, 10).
    """
    from resnet8_eval.backends import torch as backend

    row = Configuration("torch", "int8", "int8", "uint8")
    levels = bits.levels()
    backend.write(parameters, row, path, levels)
    stored = backend.read_back(path, parameters.rounded)
    scores = backends.scores(path, test.images, threads=threads)
    exact = ExactNetwork(parameters.rounded, stored, rounding("torch")).scores(test.images)
    checks = [map_types(stored, bits), *compare(stored, parameters, row, levels)]
    return {
        "correct": int((scores.argmax(axis=1) == test.labels).sum()),
        "total": len(scores),
        "model_sha256": file_sha256(path),
        "weights_bytes": backend.weights_bytes(path),
        "disagreements": int((scores.argmax(axis=1) != exact.argmax(axis=1)).sum()),
        "said": four_bits(),
        "checks": [replace(check, name=f"PyTorch, {check.name}") for check in checks],
    }, scores


def four_bits() -> str:
    """What the installed PyTorch says to an integer convolution with 4-bit weights."""
    import torch

    from resnet8_eval.backends import torchscript

    with torchscript.deprecations_ignored():
        ones = torch.ones(8, 8, 1, 1)
        try:
            weight = torch.quantize_per_channel(
                ones, torch.ones(8), torch.zeros(8), 0, torch.quint4x2
            )
            torch.ops.quantized.conv2d_prepack(weight, torch.zeros(8), [1, 1], [0, 0], [1, 1], 1)
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return "accepted"


def mean_of_seeds(
    scores: Sequence[NDArray[np.float32]],
    before: NDArray[np.float32],
    baseline: NDArray[np.float32],
    labels: NDArray[np.integer],
) -> dict[str, Any]:
    """Hold the mean of several trainings against the same bits without any, image by image.

    All scores are (N, 10): of each training, of the same bits after post-training quantization
    (`before`), and of float32.

    Returns
    -------
    dict
        ``accuracy_percent``, mean of the seeds; ``delta_pp`` from the baseline; ``gain_pp`` over
        post-training quantization and ``gain_ci95_pp``, the interval of the mean over images of
        how often the trainings are right less whether `before` is.
    """
    # Whole numbers until the end: a loss of exactly what a target allows is no rounding above it.
    rights = np.sum([one.argmax(axis=1) == labels for one in scores], axis=0)
    right_before, right = (one.argmax(axis=1) == labels for one in (before, baseline))
    seeds = len(scores)
    gains = rights - seeds * right_before
    low, high = statistics.mean_interval(gains / seeds)

    def percent(counts: NDArray[np.integer]) -> float:
        return 100 * int(counts.sum()) / (seeds * len(labels))

    return {
        "seeds": seeds,
        "accuracy_percent": percent(rights),
        "delta_pp": percent(rights - seeds * right),
        "gain_pp": percent(gains),
        "gain_ci95_pp": [100 * low, 100 * high],
    }
