"""What the report says of latency and throughput."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest

from resnet8_eval.report import charts, outcome, speed, table, tables, terminal
from resnet8_eval.report.html import page as render
from resnet8_eval.report.html import section
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
    headers, (line,) = tables.speed(record(_timed()))
    assert len({*headers}) == len(headers)
    assert line[1:3] == ["7 bits: any x86", "1"]
    assert line[3:] == ["0.250", "0.500", "–", "1.70 (0.85 to 3.40)", "8299", "32", "–"]


def test_it_is_said_how_it_was_measured_and_what_makes_it_doubtful() -> None:
    results = record(_timed())
    for text in (render(results), comparison(results)):
        assert "LoadGen 6.0" in text
        assert "50.0 %" in text
        assert DOUBT in text
        assert "Processor <1>" not in text


def test_figures_of_an_earlier_run_are_said_to_be() -> None:
    raw, stage = _timed(), {"lane": "keras", "needs": [], "seconds": 90.0}
    raw["stages"]["latency"] = {**stage, "cache": "miss", "started": 1.0, "ended": 91.0}
    assert not any("earlier run" in said for said in speed.conditions(record(raw)))
    raw["stages"]["latency"] = {**stage, "cache": "hit", "started": None, "ended": None}
    assert any("earlier run" in said for said in speed.conditions(record(raw)))


def test_nothing_is_said_of_what_was_not_measured() -> None:
    results = record(all_met())
    assert tables.speed(results).lines == []
    assert speed.conditions(results) == []
    assert "Latency and throughput" not in render(results) + comparison(results)


def _raced(**p50_ms: float) -> Raw:
    """The tuned ONNX Runtime rows with these latencies, all of them equivalent."""
    raw = all_met()
    labels = {"threads": 1, "queries": 500, "valid": True, "busy_percent": 90.0, "batch": 1}
    for row in raw["configurations"]:
        ms = p50_ms.get(row["name"].replace("-", "_"))
        if ms is not None:
            spread = {"median": ms, "low": 0.99 * ms, "high": 1.01 * ms}
            speedup = {key: 1 / value for key, value in spread.items()}
            figures = {"p50_ms": spread, "p90_ms": spread, "p99_ms": spread}
            row["latency"] = [{**labels, "speedup": speedup, **figures}]
            row["throughput"] = [{**labels, "speedup": speedup, "images_per_second": spread}]
    return raw


def test_the_soonest_row_that_is_no_worse_is_recommended() -> None:
    raw = _raced(onnxruntime_int8_tuned=0.2, onnxruntime_uint8_tuned=0.3)
    assert "deploy ONNX Runtime int8" in (speed.recommendation(record(raw)) or "")
    raw = _raced(onnxruntime_int8_tuned=0.3, onnxruntime_uint8_tuned=0.2)
    assert "deploy ONNX Runtime uint8" in (speed.recommendation(record(raw)) or "")


@pytest.mark.parametrize("word", ["degraded", "inconclusive"])
def test_a_row_that_may_be_worse_is_not_recommended_however_fast(word: str) -> None:
    raw = _raced(onnxruntime_int8_tuned=0.1, onnxruntime_uint8_tuned=0.3)
    for row in raw["configurations"]:
        if row["name"] == "onnxruntime-int8-tuned":
            row["word"] = word
    advice = speed.recommendation(record(raw)) or ""
    assert "deploy ONNX Runtime uint8" in advice
    for row in raw["configurations"]:
        row["word"] = word
    assert "no row" in (speed.recommendation(record(raw)) or "")


def test_a_row_that_is_not_proven_is_not_recommended_however_fast() -> None:
    raw = _raced(onnxruntime_int8_tuned=0.1, onnxruntime_uint8_tuned=0.3)
    row = next(row for row in raw["configurations"] if row["name"] == "onnxruntime-int8-tuned")
    row["exact_integers"] = {
        **{"disagreements": 1, "total": row["total"], "largest_difference": 0.4},
        **{"correct": row["correct"], "probable_cause": "saturation"},
    }
    assert "deploy ONNX Runtime uint8" in (speed.recommendation(record(raw)) or "")
    row["exact_integers"]["disagreements"] = 0
    assert "deploy ONNX Runtime int8" in (speed.recommendation(record(raw)) or "")
    broken = {"name": "onnxruntime-int8-tuned, stored biases", "expected": "10", "observed": "9"}
    raw["requirements"][0]["evidence"] = [{**broken, "ok": False}]
    assert "deploy ONNX Runtime uint8" in (speed.recommendation(record(raw)) or "")
    broken["name"] = "seed 1: onnxruntime-int8-tuned, stored biases"
    raw["requirements"][0]["evidence"] = [{**broken, "ok": False}]
    assert "deploy ONNX Runtime uint8" in (speed.recommendation(record(raw)) or "")
    broken["name"] = "equalized network against the converted one: largest difference"
    raw["requirements"][0]["evidence"] = [{**broken, "ok": False}]
    assert "no row" in (speed.recommendation(record(raw)) or "")


def test_a_row_that_the_gate_stops_is_not_recommended_however_fast() -> None:
    raw = _raced(onnxruntime_int8_tuned=0.1, onnxruntime_uint8_tuned=0.3)
    rows = ["onnxruntime-int8-tuned", "onnxruntime-uint8-tuned"]
    raw["gate"] = {"demand": 0.01, "met": False, "rows": rows, "failing": rows[:1]}
    assert "deploy ONNX Runtime uint8" in (speed.recommendation(record(raw)) or "")
    raw["gate"]["failing"] = rows
    assert "no row" in (speed.recommendation(record(raw)) or "")


def test_of_rows_that_are_as_fast_one_for_a_plain_session_comes_first() -> None:
    """The median of the one lies beyond the range of the other, but their ranges overlap."""
    raw = _raced(onnxruntime_int8_tuned=0.2, onnxruntime_uint8_tuned=0.203)
    for row in raw["configurations"]:
        if row["name"] == "onnxruntime-int8-tuned":
            row["recipe"]["runs_as"] = "128 added"
    assert "deploy ONNX Runtime uint8" in (speed.recommendation(record(raw)) or "")


def test_every_form_of_the_report_recommends_the_same() -> None:
    results = record(_raced(onnxruntime_int8_tuned=0.2))
    advice = speed.recommendation(results)
    assert advice
    for text in (render(results), comparison(results), " ".join(terminal.render(results, 400))):
        assert advice.split(":")[0] in text
    assert speed.recommendation(record(all_met())) is None


def test_the_comparison_has_columns_of_speed_where_something_was_timed() -> None:
    timed, untimed = record(_raced(onnxruntime_int8_tuned=0.2)), record(all_met())
    for text in (render(timed), comparison(timed)):
        assert "One image, ms" in text
        assert "0.200" in text
    for text in (render(untimed), comparison(untimed)):
        assert "One image, ms" not in text
    lines = {row["name"]: row for row in csv.DictReader(io.StringIO(table.to_csv(timed)))}
    assert float(lines["onnxruntime-int8-tuned"]["latency_p50_ms"]) == 0.2


def test_a_row_without_a_speed_is_not_sorted_as_the_soonest() -> None:
    raw = _raced(onnxruntime_int8_tuned=0.2)
    raw["configurations"][4]["latency"] = []
    text = section("comparison", record(raw))
    orders = re.findall(r'data-label="one image"( data-order="[\d.]+")?>(\S+)<', text)
    assert (' data-order="0.200000"', "0.200") in orders
    assert {order for order, shown in orders if shown == "–"} == {""}


def test_the_drawing_of_speed_puts_faster_rows_to_the_right() -> None:
    drawing = charts.tradeoff(
        record(_raced(onnxruntime_int8_tuned=0.2, onnxruntime_uint8_tuned=0.4))
    )
    assert drawing
    places = {point["row"].title: point["share"] for point in drawing["points"]}
    assert places["ONNX Runtime int8, tuned"] > places["ONNX Runtime uint8, tuned"]
    assert charts.tradeoff(record(all_met())) is None


def test_the_drawing_of_latencies_puts_longer_ones_to_the_right() -> None:
    drawing = charts.percentiles(record(_timed()))
    assert drawing
    ((_, values),) = drawing["rows"]
    places = [drawing["axis"].share(ms) for ms in values]
    assert places == sorted(places)
    assert len(places) == 2  # the third is not known


def test_a_curve_of_confidence_climbs_with_the_accuracy() -> None:
    raw = all_met()
    low = {"images": 10, "confidence_percent": 20.0, "accuracy_percent": 10.0}
    none = {"images": 0, "confidence_percent": None, "accuracy_percent": None}
    high = {"images": 90, "confidence_percent": 95.0, "accuracy_percent": 90.0}
    curve = {"error_percent": 1.5, "bins": [low, none, high]}
    raw["configurations"][3] |= {"reliability": curve, "baseline_reliability": curve}
    text = render(record(raw))
    assert text.count('points="20.0,90.0 95.0,10.0"') == 2
    assert "1.50 → 1.50 %" in text


def test_doubts_call_rows_by_their_titles() -> None:
    raw = _timed()
    raw["timing"]["told"] = ["onnxruntime-uint8-int8-tuned, Offline: this run does not count (x)."]
    results = record(raw)
    for text in (render(results), " ".join(terminal.render(results, 400))):
        assert "ONNX Runtime uint8/int8, tuned, Offline: this run" in text
        assert "int8-tuned, Offline" not in text


def test_the_figure_of_speed_says_which_rows_it_is_of() -> None:
    raw = _timed()
    slow = next(row for row in raw["configurations"] if row["execution"] == "reference")
    (timed,) = raw["configurations"][3]["latency"]
    slow["latency"] = [timed | {"speedup": _spread(0.44)}]
    (told,) = [figure for figure in outcome.figures(record(raw)) if "Speed" in figure.name]
    assert "; the least of the rows in integer kernels, " in told.of
    assert "0.44" not in told.of
