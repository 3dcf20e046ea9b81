"""Whether a stored quantized model holds what was decided, and its kernels compute what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import environment, runtimes
from resnet8_eval.artifacts import Record
from resnet8_eval.cifar10 import Split
from resnet8_eval.quantize import stored
from resnet8_eval.quantize.parameters import Parameters
from resnet8_eval.quantize.recipes import Recipe


def prove(
    recipe: Recipe,
    model: Path,
    parameters_folder: Path,
    test: Split,
    scores: NDArray[np.float32],
    threads: int,
) -> Record:
    """Read a stored model's scales back, and hold its integer kernels against reference arithmetic.

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
    threads
        Threads for the framework.

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
    return {
        "tensors": [{k: v for k, v in entry.items() if k != "wrong_axis"} for entry in found],
        "checks": [
            check.as_dict()
            for check in (
                *stored.compare(found, parameters, recipe),
                stored.compare_weights(parameters),
            )
        ],
        "reference": None
        if recipe.execution == "reference"
        else disagreement(scores, reference(recipe, model, parameters, test.images, threads), test),
    }


def reference(
    recipe: Recipe, model: Path, parameters: Parameters, images: NDArray[np.uint8], threads: int
) -> NDArray[np.float32]:
    """Scores of the same quantized network in float arithmetic between 8-bit tensors.

    Parameters
    ----------
    recipe, model, parameters
        The network. ONNX Runtime runs the stored model without rewriting it; for PyTorch, whose
        stored model is one of kernels, the network is built again from its parameters.
    images
        uint8 (N, 32, 32, 3).
    threads
        Threads for the framework.

    Returns
    -------
    ndarray
        float32 (N, 10).
    """
    if recipe.framework == "onnxruntime":
        return runtimes.scores(model, images, threads=threads, execution="reference")
    import torch

    from resnet8_eval import torchscript
    from resnet8_eval.quantize.torch_quantize import network

    torch.set_num_threads(threads)
    module = network(parameters, recipe, kernels=False)

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(batch)).numpy())

    with torchscript.deprecations_ignored():
        return runtimes.run(run, images)


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
