"""The drawings of the report: where things stand, and what they say of the flow."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, Final

import pytest

from resnet8_eval.report import charts, html, timeline
from tests.unit import report_samples
from tests.unit.report_samples import record
from tests.unit.test_report_golden import SAMPLES

ALL: Final = (*SAMPLES, "extended", "crowded")
WIDTHS: Final = (260, 390, 1200)
Place = tuple[float, float]


def crowded() -> dict[str, Any]:
    """Three models of one size and accuracy, and others right beside them."""
    results = report_samples.all_met()
    alike, *others = results["configurations"][3:]
    for k, found in enumerate(others):
        for key in ("correct", "accuracy_percent", "accuracy_ci95_percent"):
            found[key] = alike[key]
        found["size_bytes"] = alike["size_bytes"] + (7_000 if k == 2 else k)
    return results


def plane(sample: str) -> dict[str, Any]:
    results = crowded() if sample == "crowded" else getattr(report_samples, sample)()
    return charts.plane(record(results)) or {"points": []}


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
    assert around == [1, 0, 0, 2, 1, 0, 0]


def test_sizes_of_the_plane_are_powers_of_ten_apart() -> None:
    results = report_samples.all_met()
    results["configurations"][0]["weights_bytes"] = 1_000_000
    drawing = charts.plane(record(results))
    assert drawing is not None
    assert [value for _, value in drawing["x_ticks"]] == [100, 200, 500, 1000]
    places = [float(x.rstrip("%")) for x, _ in drawing["x_ticks"]]
    assert places[1] - places[0] == pytest.approx(places[3] - places[2], abs=0.02)


@pytest.mark.parametrize("sizes", [(100_000, 100_000), (90_000, 110_000), (3, 2_000_000_000)])
def test_plane_has_ticks_whatever_the_sizes(sizes: tuple[int, int]) -> None:
    results = report_samples.missing()
    for found, size in zip(results["configurations"], sizes, strict=True):
        found["weights_bytes"] = size
    drawing = charts.plane(record(results))
    assert drawing is not None
    assert 1 <= len(drawing["x_ticks"]) <= 10


def test_more_configurations_than_letters_are_all_named() -> None:
    results = report_samples.all_met()
    first = results["configurations"][0]
    results["configurations"] += [{**first, "name": f"other{i}"} for i in range(30)]
    letters = [point["letter"] for point in charts.plane(record(results))["points"]]  # type: ignore[index]
    assert len(set(letters)) == 37


def test_a_delta_stands_where_its_root_is() -> None:
    found = report_samples.flagged()
    row = found["configurations"][4]
    row.update(delta_pp=-0.5, delta_ci95_pp=[-5.0, 0.5])
    text = html.section("comparison", record(found))
    drawing = text[text.index('<svg class="chart deltas"') : text.index("delta, pp</text>")]
    (left, width) = map(float, re.findall(r'class="band" x="(.*?)%" width="(.*?)%"', drawing)[0])
    lines = dict(re.findall(r'class="line (\w+)" x1="(.*?)%"', drawing))
    ends = re.findall(r'class="interval" x1="(.*?)%" x2="(.*?)%"', drawing)
    dots = re.findall(r'<svg x="(.*?)%" y="\d+" overflow="visible" class=', drawing)
    ((low, high, dot),) = [(*one, x) for one, x in zip(ends, dots, strict=True) if float(x) == left]
    assert (low, float(dot)) == (lines["flagged"], left)
    assert float(high) == pytest.approx(left + width, abs=0.02)
    zero = float(lines["baseline"])
    assert zero == pytest.approx(left + width / 2, abs=0.02)
    assert zero - float(low) == pytest.approx(math.sqrt(10) * width / 2, abs=0.1)
    assert len(dots) == len(found["configurations"]) - 1


def test_without_a_delta_there_is_no_plot() -> None:
    found = report_samples.all_met()
    del found["configurations"][1:]
    assert "chart deltas" not in html.section("comparison", record(found))


def test_longest_chain_of_a_planted_graph() -> None:
    seconds = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 1.0, "alone": 7.5, "e": 2.9}
    needs = {"c": ["a", "b"], "d": ["c", "not made"], "e": ["b"]}
    assert timeline.longest_chain(seconds, needs) == ["b", "c", "d"]
    assert timeline.longest_chain({**seconds, "alone": 8.1}, needs) == ["alone"]
    assert timeline.longest_chain(seconds, {**needs, "d": []}) == ["b", "e"]
    assert timeline.longest_chain({}, needs) == []


def drawn(results: dict[str, Any]) -> dict[str, Any]:
    found = timeline.timeline(record(results))
    assert found is not None
    return found


def test_longest_chain_is_marked_told_and_added_up() -> None:
    results = report_samples.all_met()
    found = drawn(results)
    chain = found["chain"]
    assert chain[:3] == ["onnx", "folded", "parameters"]
    assert found["chain_seconds"] == sum(results["stages"][stage]["seconds"] for stage in chain)
    marked = {bar["name"] for lane in found["lanes"] for bar in lane["bars"] if bar["chain"]}
    assert marked == set(chain) - {"onnx", "folded"}  # which come from the cache
    text = html.section("made", record(results))
    assert "<code>onnx</code> → <code>folded</code> → <code>parameters</code>" in text
    assert "as long as it took when it was made" in text


def test_timeline_has_each_stage_in_its_lane_or_among_those_from_the_cache() -> None:
    results = report_samples.extended()
    found = drawn(results)
    shown = {(lane["name"], bar["name"]) for lane in found["lanes"] for bar in lane["bars"]}
    made = {(s["lane"], name) for name, s in results["stages"].items() if s["cache"] == "miss"}
    assert shown == made
    assert found["cached"] == ["onnx", "calibration", "folded"]
    assert len(shown) + 3 == len(results["stages"])


def test_bars_stand_where_their_stages_began_and_ended() -> None:
    results = report_samples.all_met()
    found = drawn(results)
    last = max(stage["ended"] or 0 for stage in results["stages"].values())
    for lane in found["lanes"]:
        for bar in lane["bars"]:
            stage = results["stages"][bar["name"]]
            assert bar["x"] == pytest.approx(found["width"] * stage["started"] / last, abs=0.1)
            assert bar["width"] == pytest.approx(
                max(found["width"] * stage["seconds"] / last, 1), abs=0.1
            )


@pytest.mark.parametrize("seconds", [0.0, 0.02, 5.0])
def test_names_in_a_lane_do_not_cover_each_other_and_stay_inside(seconds: float) -> None:
    results = report_samples.all_met()
    for stage in results["stages"].values():
        if stage["cache"] == "miss":
            stage["started"], stage["ended"] = 10 - seconds, 10.0
    bars = [bar for lane in drawn(results)["lanes"] for bar in lane["bars"]]
    assert all(bar["text_x"] + 6 * len(bar["name"]) <= 960 for bar in bars)
    for one, other in itertools.combinations(bars, 2):
        assert one["y"] != other["y"]


def test_a_record_without_times_has_its_stages_as_a_table_alone() -> None:
    results = report_samples.all_met()
    for stage in results["stages"].values():
        stage.update(lane=None, started=None, ended=None)
    assert drawn(results)["lanes"] == []
    text = html.section("made", record(results))
    assert "<svg" not in text
    assert f"All {len(results['stages'])} stages as a table" in text
