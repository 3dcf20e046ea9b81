"""Whether a stored quantized model holds what was decided, and its kernels compute what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import environment
from resnet8_eval.cifar10 import Split
from resnet8_eval.quantize import stored
from resnet8_eval.quantize.parameters import Parameters
from resnet8_eval.quantize.recipes import Recipe
from resnet8_eval.store import Record


def prove(
    recipe: Recipe,
    model: Path,
    parameters_folder: Path,
    test: Split,
    scores: NDArray[np.float32],
    reference: NDArray[np.float32],
) -> Record:
    """Read a stored model back, and hold its integer kernels against reference arithmetic.

    Parameters
    ----------
    recipe
        What the model was quantized by.
    model
        The stored model.
    parameters_folder
        What calibration wrote.
    test
        The images that it was evaluated on, and their labels.
    scores
        What it gave for them, float32 (N, 10).
    reference
        The same in float arithmetic between 8-bit tensors. It may come from the framework's other
        model, if the checks hold for both: then they stand for the same numbers.

    Returns
    -------
    dict
        ``tensors`` (see :func:`resnet8_eval.quantize.stored.tensors`), ``checks`` of them, and
        ``reference``: ``disagreements`` (images with another class), ``total``, ``correct``,
        ``largest_score_difference`` and ``probable_cause`` of too many; None where the model
        itself computes in reference arithmetic.
    """
    parameters = Parameters.load(parameters_folder)
    found = stored.tensors(model, parameters, recipe)
    checks = [*stored.compare(found, parameters, recipe), stored.compare_weights(parameters)]
    return {
        "tensors": [
            {k: v for k, v in entry.items() if k not in ("wrong_axis", "values")}
            for entry in found
            if entry["kind"] != "bias"
        ],
        "checks": [check.as_dict() for check in checks],
        "reference": None
        if recipe.execution == "reference"
        else disagreement(scores, reference, test),
    }


def disagreement(
    kernel: NDArray[np.float32], exact: NDArray[np.float32], test: Split
) -> dict[str, Any]:
    """Count the images on which kernels and reference arithmetic give different classes.

    Parameters
    ----------
    kernel, exact
        Scores of both, float32 (N, 10).
    test
        Images and labels.
    """
    answers = exact.argmax(axis=1)
    return {
        "disagreements": int((kernel.argmax(axis=1) != answers).sum()),
        "total": len(answers),
        "correct": int((answers == test.labels).sum()),
        "largest_score_difference": float(np.abs(kernel - exact).max()),
        "probable_cause": _probable_cause(),
    }


def _probable_cause() -> str:
    """What to look at first where kernels and reference arithmetic part."""
    cpu = environment.cpu()
    vnni = [flag for flag in cpu["flags"] if "vnni" in flag or "amx" in flag]
    held = cpu["onednn_max_cpu_isa"]
    if not vnni or held:
        return (
            "8-bit kernels that saturate: "
            + (f"ONEDNN_MAX_CPU_ISA={held}" if held else "this processor has no VNNI")
            + ", so weights beyond ±63 overflow 16-bit sums; else a wrong scale or per-channel axis"
        )
    return (
        "a wrong scale or per-channel axis in the stored model (see the tensors in its proof), or "
        f"kernels that saturate in spite of {', '.join(vnni)}"
    )
