"""Whether x86 kernels can overflow 16-bit sums on a model's stored weights.

Without VNNI they add two products of an unsigned activation and a signed weight in 16 bits. Beyond
±64 that can overflow, and the sum is then cut off at its limit without a word. Signed activations
become unsigned ones before. Products of unsigned weights are added in 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet8_eval import environment
from resnet8_eval.backends import StoredTensor, backend, framework_of
from resnet8_eval.environment import REDUCED_LIMIT, SATURATION_FREE_LIMIT
from resnet8_eval.errors import ModelError

if TYPE_CHECKING:
    from resnet8_eval.preprocess import Images, Labels, Scores


def largest_weight(found: Sequence[StoredTensor], *, signed: bool = False) -> int:
    """Largest magnitude of the 8-bit weights, less their zero points; of int8 ones if `signed`."""
    weights = (entry for entry in found if entry.kind == "weight")
    magnitudes = (
        int(np.abs(np.asarray(entry.values)).max())
        for entry in weights
        if not signed or entry.dtype == "int8"
    )
    return max(magnitudes, default=0)


def weights_bits(found: Sequence[StoredTensor]) -> int:
    """7 where no weight lies beyond ±63, else 8."""
    return 7 if largest_weight(found) <= REDUCED_LIMIT else 8


def needs(found: Sequence[StoredTensor], framework: str, execution: str) -> str | None:
    """The instructions without which x86 kernels can saturate on a model's weights, or None.

    Reference arithmetic has no such sums.
    """
    if execution == "reference" or largest_weight(found, signed=True) <= SATURATION_FREE_LIMIT:
        return None
    return environment.exact_instructions(framework)


def cause(found: Sequence[StoredTensor], framework: str) -> str | None:
    """Why this processor's kernels may saturate on stored weights; None where they cannot."""
    reason = environment.saturating_kernels(framework)
    largest = largest_weight(found, signed=True)
    if reason is None or largest <= SATURATION_FREE_LIMIT:
        return None
    beyond = f"beyond ±{SATURATION_FREE_LIMIT} (here ±{largest})"
    return f"{reason}, so weights {beyond} overflow 16-bit sums"


def told(path: Path, images: Images, labels: Labels, scores: Scores) -> dict[str, Any] | None:
    """What signed weights mean for a stored model of any tool.

    Parameters
    ----------
    images, labels, scores
        What it was evaluated on, and what its kernels gave.

    Returns
    -------
    dict or None
        None for a model without signed 8-bit weights in kernels. Else ``largest_weight``;
        ``needs``, the instructions without which x86 kernels can saturate on it, None within ±64;
        and, on a processor without them, ``warning``. Then ``disagreements`` counts the images to
        which kernels and exact integers give another class, and ``exact_correct`` what the integers
        get right, both None where they could not be computed. ``unread`` is there instead, with
        None for the rest, where the weights could not be read: what they are.
    """
    framework = framework_of(path)
    try:
        largest = 0 if framework == "keras" else backend(framework).signed_weights(path)
    except ModelError as error:  # what was measured stands without it
        return {"largest_weight": None, "needs": None, "warning": None, "unread": error.given}
    if largest == 0:
        return None
    saturates = largest > SATURATION_FREE_LIMIT
    needed = environment.exact_instructions(framework) if saturates else None
    found: dict[str, Any] = {"largest_weight": largest, "needs": needed, "warning": None}
    reason = environment.saturating_kernels(framework)
    if not saturates or reason is None:
        return found
    differing, correct, counted = _against_exact(path, images, labels, scores)
    found["warning"] = (
        f"signed weights go up to ±{largest}, and {reason}. Kernels here add pairs of products in "
        f"16 bits, which weights beyond ±{SATURATION_FREE_LIMIT} overflow: these figures are those "
        f"of cut-off sums. {counted} Run it on x86 with {needed}, or quantize it with "
        f"weights within ±{SATURATION_FREE_LIMIT} (reduce_range)."
    )
    return {**found, "disagreements": differing, "exact_correct": correct}


def _against_exact(
    path: Path, images: Images, labels: Labels, scores: Scores
) -> tuple[int | None, int | None, str]:
    """Images of another class, what exact integers get right, and both in a sentence."""
    from resnet8_eval import quantized_onnx

    unknown = "On how many images exact integers give another class could not be computed"
    if path.suffix != ".onnx":
        return None, None, f"{unknown}: a TorchScript file does not show its network."
    try:
        answers = quantized_onnx.read(path).scores(images).argmax(axis=1)
    except ModelError as error:
        return None, None, f"{unknown}: {error.what} Given: {error.given}."
    differing = int((scores.argmax(axis=1) != answers).sum())
    correct = int((answers == labels).sum())
    said = f"Exact integers give another class on {differing} of {len(labels)} images, and get"
    return differing, correct, f"{said} {correct} right."
