"""The drawings of the report: where things stand, and what they say of the flow."""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import pytest

from resnet8_eval.report import charts, flow, html
from tests.unit import report_samples
from tests.unit.test_report_golden import SAMPLES

ALL: Final = (*SAMPLES, "extended", "crowded")
WIDTHS: Final = (260, 390, 1200)
Place = tuple[float, float]


def crowded() -> dict[str, Any]:
    """Three models of one size and accuracy, and others right beside them."""
    results = report_samples.all_met()
    alike, *others = results["configurations"][3:]
    for k, found in enumerate(others):
        for key in ("accuracy_percent", "accuracy_ci95_percent"):
            found[key] = alike[key]
        found["size_bytes"] = alike["size_bytes"] + (7_000 if k == 2 else k)
    return results


def plane(sample: str) -> dict[str, Any]:
    results = crowded() if sample == "crowded" else getattr(report_samples, sample)()
    return charts.plane(results) or {"points": []}


def mark(point: dict[str, Any], width: int) -> Place:
    return width * point["share"], point["y"]


def letter(point: dict[str, Any], width: int) -> Place:
    x, y = mark(point, width)
    return x + point["dx"], y + point["dy"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sample", ALL)
def test_every_letter_of_the_plane_stands_clear(sample: str, width: int) -> None:
    points = plane(sample)["points"]
    for one, other in itertools.combinations(points, 2):
        assert math.dist(letter(one, width), letter(other, width)) >= 12
    for one, other in itertools.product(points, points):
        assert math.dist(letter(one, width), mark(other, width)) >= 10


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sample", ALL)
def test_no_leader_of_the_plane_crosses_the_mark_of_another(sample: str, width: int) -> None:
    points = plane(sample)["points"]
    for one, other in itertools.permutations(points, 2):
        start, end = mark(one, width), letter(one, width)
        if math.dist(start, mark(other, width)) < 12:
            continue  # they stand in each other already
        for k in range(11):
            on_the_way = tuple(a + (b - a) * k / 10 for a, b in zip(start, end, strict=True))
            assert math.dist(on_the_way, mark(other, width)) >= 6


@pytest.mark.parametrize("sample", ALL)
def test_marks_in_one_place_of_the_plane_are_of_different_sizes(sample: str) -> None:
    for one, other in itertools.combinations(plane(sample)["points"], 2):
        if math.dist(mark(one, 260), mark(other, 260)) < 3:
            assert one["around"] != other["around"]


def test_three_models_in_one_place_are_all_seen() -> None:
    around = [point["around"] for point in plane("crowded")["points"]]
    assert around == [0, 0, 0, 2, 1, 0, 0]


def test_sizes_of_the_plane_are_powers_of_ten_apart() -> None:
    results = report_samples.all_met()
    results["configurations"][0]["size_bytes"] = 1_000_000
    drawing = charts.plane(results)
    assert drawing is not None
    assert [tick["label"] for tick in drawing["x_ticks"]] == ["100", "200", "500", "1000"]
    places = [float(tick["x"].rstrip("%")) for tick in drawing["x_ticks"]]
    assert places[1] - places[0] == pytest.approx(places[3] - places[2], abs=0.02)


@pytest.mark.parametrize("sizes", [(100_000, 100_000), (90_000, 110_000), (3, 2_000_000_000)])
def test_plane_has_ticks_whatever_the_sizes(sizes: tuple[int, int]) -> None:
    results = report_samples.missing()
    for found, size in zip(results["configurations"], sizes, strict=True):
        found["size_bytes"] = size
    drawing = charts.plane(results)
    assert drawing is not None
    assert 1 <= len(drawing["x_ticks"]) <= 10


def test_more_configurations_than_letters_are_all_named() -> None:
    results = report_samples.all_met()
    first = results["configurations"][0]
    results["configurations"] += [{**first, "framework": f"other{i}"} for i in range(30)]
    letters = [point["letter"] for point in charts.plane(results)["points"]]  # type: ignore[index]
    assert len(set(letters)) == 37


def test_lines_of_the_accuracy_plot_begin_below_the_labels_of_those_to_their_right() -> None:
    drawing = charts.accuracy_plot(report_samples.flagged())
    assert drawing is not None
    places = [float(line["x"].rstrip("%")) for line in drawing["lines"]]
    assert places == sorted(places, reverse=True)
    heights = [line["y"] for line in drawing["lines"]]
    assert heights == sorted(set(heights))


def test_longest_chain_of_a_planted_graph() -> None:
    seconds = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 1.0, "alone": 7.5, "e": 2.9}
    needs = {"c": ["a", "b"], "d": ["c", "not made"], "e": ["b"]}
    assert flow.longest_chain(seconds, needs) == ["b", "c", "d"]
    assert flow.longest_chain({**seconds, "alone": 8.1}, needs) == ["alone"]
    assert flow.longest_chain(seconds, {**needs, "d": []}) == ["b", "e"]
    assert flow.longest_chain({}, needs) == []


def test_longest_chain_is_marked_told_and_added_up() -> None:
    results = report_samples.all_met()
    drawing = flow.pipeline(results)
    assert drawing is not None
    chain = drawing["chain"]
    assert chain[:3] == ["onnx", "folded", "parameters"]
    assert drawing["chain_seconds"] == sum(results["timing"][stage] for stage in chain)
    orders = [box["order"] for box in drawing["boxes"] if box["order"]]
    assert sorted(orders) == list(range(1, len(chain) + 1))
    text = html.section("made", results)
    assert "<code>onnx</code> → <code>folded</code> → <code>parameters</code>" in text
    assert "as long as it took when it was made" in text
    for order in orders:
        assert f">chain {order}</text>" in text


def test_older_results_without_what_a_stage_needs_are_still_drawn() -> None:
    results = report_samples.all_met()
    del results["needs"]
    drawing = flow.pipeline(results)
    assert drawing is not None
    assert drawing["chain"] == []
    assert "Longest chain" not in html.section("made", results)


def test_pipeline_shows_every_stage() -> None:
    results = report_samples.extended()
    results["timing"]["a new one"] = 3.0
    drawing = flow.pipeline(results)
    assert drawing is not None
    assert {stage for stage, _, _ in drawing["stages"]} == set(results["timing"])
    notes = [box["note"] for box in drawing["boxes"]]
    assert notes.count("not made") == 0


def test_pipeline_tells_in_words_what_no_arrow_shows() -> None:
    results = report_samples.all_met()
    results["timing"]["a new one"] = 3.0
    results["needs"]["a new one"] = ["model/torch-int8", "scores/torch-int8", "parameters"]
    drawing = flow.pipeline(results)
    assert drawing is not None
    told = [" ".join(note["lines"]) for note in drawing["notes"]]
    assert told == [
        "needs Keras float32",
        "needs parameters, quantize, evaluate on test, reference arithmetic",
    ]
    boxes = {box["title"]: " ".join(box["needs"]) for box in drawing["boxes"]}
    assert boxes["a new one"] == "needs quantize PyTorch int8, PyTorch int8, parameters"
    assert boxes["reference arithmetic"] == "needs quantize ONNX Runtime int8"
    assert boxes["parameters"] == ""
