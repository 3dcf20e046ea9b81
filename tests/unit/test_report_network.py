"""The network as a picture: lines, colours, and what a layer unfolds to."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from resnet8_eval.record import NetworkLayer, Results
from resnet8_eval.report import html, network
from tests.unit import report_samples


def results(reads: dict[str, list[str]]) -> Results:
    """A run whose network has these layers."""
    found = report_samples.record(report_samples.extended())
    assert found.network is not None
    first = found.network.layers[0]
    layers: list[NetworkLayer] = [
        msgspec.structs.replace(first, name=name, reads=tuple(names))
        for name, names in reads.items()
    ]
    drawn = msgspec.structs.replace(found.network, layers=tuple(layers))
    return msgspec.structs.replace(found, network=drawn)


def lines(reads: dict[str, list[str]]) -> list[dict[str, Any]]:
    found = network.picture(results(reads))
    assert found is not None
    return [layer["lines"] for layer in found["layers"]]


def test_a_block_with_a_shortcut_has_a_line_beside_it() -> None:
    first, one, two, add, last = lines(
        {
            "first": ["images"],
            "one": ["first"],
            "two": ["one"],
            "add": ["two", "first"],
            "last": ["add"],
        }
    )
    assert [line["at"] for line in (first, one, two, add, last)] == [8] * 5
    assert one["to"] == [(8, 24)]
    assert two["past"] == [24]
    assert add["into"] == [24]
    assert add["past"] == last["past"] == []
    assert [line["ends"] for line in (first, one, two, add, last)] == [False] * 4 + [True]


def test_a_convolution_in_the_shortcut_stands_on_its_line() -> None:
    _, one, two, side, add = lines(
        {
            "first": ["images"],
            "one": ["first"],
            "two": ["one"],
            "side": ["first"],
            "add": ["side", "two"],
        }
    )
    assert (one["to"], two["past"]) == ([(8, 24)], [24])
    assert (side["at"], side["past"]) == (24, [8])
    assert (add["at"], add["into"]) == (8, [24])


def test_a_map_that_is_read_three_times_keeps_its_line_until_the_last() -> None:
    *_, two, three = lines({"a": ["images"], "b": ["a"], "c": ["b", "a"], "d": ["c", "a"]})
    assert (two["into"], two["past"]) == ([24], [24])
    assert (three["into"], three["past"]) == ([24], [])


def test_colours_follow_the_cost_and_grey_is_what_cannot_be_told_from_zero() -> None:
    raw = report_samples.extended()
    costs = {
        "conv2d_0": 0.0,
        "conv2d_1": 1e-5,
        "conv2d_2": 3e-5,
        "conv2d_3": 5e-5,
        "conv2d_4": 1e-4,
    }
    raw["sensitivity"]["layers"] = [
        layer
        | {"divergence_alone_nats": nats, "divergence_alone_ci95_nats": [0.9 * nats, 1.1 * nats]}
        for layer, nats in zip(raw["sensitivity"]["layers"], costs.values(), strict=False)
    ]
    found = network.picture(report_samples.record(raw))
    assert found is not None
    told = {drawn["layer"].name: drawn["colour"] for drawn in found["layers"]}
    assert [told[name] for name in costs] == ["same", "loss-1", "loss-3", "loss-4", "loss-4"]
    assert told["add"] == told["conv2d_8"] == "same"
    assert [text for _, text in found["legend"]] == [
        "below 12 µnat",
        "12 to 25",
        "25 to 50",
        "50 to 100",
    ]
    section = html.section("hurts", report_samples.record(raw))
    grey = section[section.index('box same">conv2d_0<') :].partition("</summary>")[0]
    assert "; divergence 0 µnat (0 to 0, inside noise)" in " ".join(grey.split())


@pytest.mark.parametrize("change", ["not measured", "another recipe"])
def test_without_costs_of_its_recipe_it_is_grey_and_says_so(change: str) -> None:
    raw = report_samples.extended()
    if change == "not measured":
        raw["sensitivity"] = None
    else:
        raw["sensitivity"]["recipe"] = "other"
    section = html.section("hurts", report_samples.record(raw))
    assert "What each layer costs was not measured" in section
    assert 'class="box same"' in section
    assert 'class="box loss-' not in section


def test_a_layer_unfolds_to_histograms_channels_and_ranges_without_any_script() -> None:
    section = html.section("hurts", report_samples.record(report_samples.extended()))
    layer = re.search(r'<details [^>]*id="net-2">.*?</details>', section, re.DOTALL)
    assert layer
    assert 'box loss-3">conv2d_2' in layer[0]
    assert layer[0].count("<svg") == 4
    assert layer[0].count('class="clip"') == 2
    assert "from −1.5 to 3; its integers span −1 to 2; outside of that: 0.25 %" in layer[0]
    assert "with activation; gives 32×32×2" in layer[0]
    assert '<a href="#net-2">conv2d_2</a>' in section


def test_what_lies_outside_of_the_range_is_drawn_where_it_lies() -> None:
    found = report_samples.record(report_samples.extended()).network
    assert found is not None
    assert found.layers[0].output is not None
    drawing = network.drawing(found.layers[0].output)
    # Values from −1.5 to 3 on 90 units; the first channel leaves at the bottom, the other on top.
    boxes = re.findall(r"M([\d.]+) ([\d.]+)h[\d.]+v([\d.]+)", drawing["beyond"])
    assert boxes == [("18.8", "80.0", "10.0"), ("168.8", "0.0", "20.0")]


def test_a_run_that_quantized_nothing_has_no_picture() -> None:
    raw = report_samples.all_met()
    assert network.picture(report_samples.record(raw)) is None
    assert 'id="network"' not in html.section("hurts", report_samples.record(raw))
