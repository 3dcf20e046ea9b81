"""What the report says of latency and throughput."""

from __future__ import annotations

from typing import Any

from resnet8_eval.report import speed
from resnet8_eval.report.html import render
from resnet8_eval.report.markdown import comparison
from tests.unit.report_samples import Raw, all_met, record

DOUBT = "Other processes took half of the machine."


def _spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median / 2, "high": median * 2}


def _timed() -> Raw:
    raw = all_met()
    labels = {"threads": 1, "queries": 500, "valid": True, "busy_percent": 90.0}
    figures: dict[str, Any] = {"p50_ms": _spread(0.25), "p90_ms": _spread(0.5), "p99_ms": None}
    raw["configurations"][3]["latency"] = [
        {**labels, "batch": 1, "speedup": _spread(1.7), **figures}
    ]
    raw["configurations"][3]["throughput"] = [
        {**labels, "batch": 32, "speedup": None, "images_per_second": _spread(8298.68)}
    ]
    raw["timing"] = {
        "processor": "Processor <1>",
        "loadgen": "6.0",
        "rounds": 5,
        "min_queries": 100,
        "others_percent": 50.0,
        "told": [DOUBT],
    }
    return raw


def test_a_row_has_its_figures_and_a_dash_where_there_are_none() -> None:
    (line,) = speed.lines(record(_timed()))
    assert line[1:] == ["1", "0.250", "0.500", "–", "1.70 (0.85 to 3.40)", "8299", "32", "–"]


def test_it_is_said_how_it_was_measured_and_what_makes_it_doubtful() -> None:
    results = record(_timed())
    for text in (render(results), comparison(results)):
        assert "LoadGen 6.0" in text
        assert "50.0 %" in text
        assert DOUBT in text
        assert "Processor <1>" not in text


def test_nothing_is_said_of_what_was_not_measured() -> None:
    results = record(all_met())
    assert speed.lines(results) == []
    assert speed.conditions(results) == []
    assert "Latency and throughput" not in render(results) + comparison(results)
