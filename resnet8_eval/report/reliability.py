"""How far each model's confidence can be believed: its reliability curve beside the baseline's."""

from __future__ import annotations

from typing import Any

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.row_record import Reliability


def curves(results: Results) -> list[dict[str, Any]]:
    """One curve for each row that was held against the Keras model.

    Returns
    -------
    list of dict
        ``title``; ``before`` and ``after``, the expected calibration errors in words;
        ``baseline`` and ``model``, points for an SVG polyline in a square of side 100 whose lower
        left corner is confidence 0 and accuracy 0.
    """
    return [
        {
            "title": row.title,
            "before": words.percent(found.baseline_reliability.error_percent),
            "after": words.percent(found.reliability.error_percent),
            "baseline": _points(found.baseline_reliability),
            "model": _points(found.reliability),
        }
        for row, found in table.measured(results)
        if found.recipe and found.reliability and found.baseline_reliability
    ]


def _points(found: Reliability) -> str:
    return " ".join(
        f"{part.confidence_percent:.1f},{100 - part.accuracy_percent:.1f}"
        for part in found.bins
        if part.confidence_percent is not None and part.accuracy_percent is not None
    )
