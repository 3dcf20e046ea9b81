"""What a run can demand of its rows beyond the requirements: ``--gate``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resnet8_eval.requirements import EQUIVALENT

Demand = str | float
"""``"equivalent"``, or the largest drop from the baseline in percentage points."""


def demand(text: str) -> Demand:
    """A demand from the command line; ArgumentTypeError if it is neither of the two."""
    from argparse import ArgumentTypeError

    if text == EQUIVALENT:
        return text
    try:
        drop = float(text)
    except ValueError:
        drop = math.nan
    if not 0 <= drop < math.inf:
        expected = f"{EQUIVALENT}, or the largest drop in percentage points, such as 1.0"
        raise ArgumentTypeError(f"expected {expected}; got {text}")
    return drop


def judge(
    demanded: Demand, compared: Mapping[str, Sequence[Mapping[str, Any] | None]]
) -> dict[str, Any]:
    """Hold rows against a demand; the result is as :class:`resnet8_eval.record.Gate`.

    Parameters
    ----------
    demanded
        What it is.
    compared
        Row to its ``word`` and ``delta_pp``, with each calibration seed; what was not measured is
        None, and fails.
    """
    failing = [
        name
        for name, found in compared.items()
        if not all(_passes(demanded, each) for each in found)
    ]
    return {"demand": demanded, "met": not failing, "rows": [*compared], "failing": failing}


def _passes(demanded: Demand, row: Mapping[str, Any] | None) -> bool:
    if row is None:
        return False
    if isinstance(demanded, str):
        return bool(row["word"].startswith(EQUIVALENT))
    return bool(row["delta_pp"] >= -demanded)
