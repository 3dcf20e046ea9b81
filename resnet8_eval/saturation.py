"""Whether x86 kernels can overflow 16-bit sums on a model's stored weights.

Without VNNI they add two products of an unsigned activation and a signed weight in 16 bits. Beyond
±63 that can overflow, and the sum is then cut off at its limit without a word. Signed activations
become unsigned ones before. Products of unsigned weights are added in 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resnet8_eval import environment
from resnet8_eval.backends import StoredTensor
from resnet8_eval.environment import SATURATION_FREE_LIMIT


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
    return 7 if largest_weight(found) <= SATURATION_FREE_LIMIT else 8


def needs(found: Sequence[StoredTensor], framework: str, execution: str) -> str | None:
    """The instructions without which x86 kernels can saturate on a model's weights.

    Parameters
    ----------
    found
        The stored model's tensors.
    framework
        Whose kernels run them.
    execution
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
    return f"{reason}, so weights beyond ±63 (here ±{largest}) overflow 16-bit sums"
