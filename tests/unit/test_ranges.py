"""Activation ranges: of the values that were seen, cut where the outliers begin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from resnet8_eval.calibrate.parameters import Parameters, Ranges, grid
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.calibrate.ranges import (
    BINS,
    Observed,
    _cut,
    _histograms,
    _pooled,
    activation_ranges,
    observe,
    smallest_and_largest,
)
from resnet8_eval.configurations import Recipe
from resnet8_eval.network import Network, parse, read
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.preprocess import preprocess
from tests import small_network

Images = NDArray[np.uint8]


def counts(*filled: tuple[int, int]) -> NDArray[np.int64]:
    found = np.zeros(BINS, np.int64)
    for position, number in filled:
        found[position] = number
    return found


@pytest.mark.parametrize(
    ("low", "high", "histogram", "expected"),
    [
        (0.0, 1.0, counts((0, 10), (BINS - 1, 10)), (0.0, 1.0)),
        (0.0, 1.0, counts((0, 10**7), (BINS - 1, 10)), (0.0, 1 / BINS)),
        (0.0, 1.0, counts((0, 10**6), (BINS - 1, 11)), (0.0, 1.0)),
        (-1.0, 1.0, counts((0, 1), (BINS // 2, 10**7), (BINS - 1, 1)), (0.0, 2 / BINS)),
        (-1.0, 1.0, counts((0, 60), (BINS // 2, 10**7), (BINS - 1, 1)), (-1.0, 2 / BINS)),
    ],
    ids=["all kept", "outliers cut", "too many to cut", "both tails", "one tail"],
)
def test_the_cut_keeps_the_percentile(
    low: float, high: float, histogram: NDArray[np.int64], expected: tuple[float, float]
) -> None:
    assert Recipe() == Recipe(ranges="percentile", percentile=99.999)
    assert _cut(low, high, histogram, Recipe(), 255) == pytest.approx(expected)
    assert _cut(low, high, histogram, Recipe(ranges="minmax"), 255) == (low, high)


@pytest.mark.parametrize("high", [0.0, 1e-21])
@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_a_map_of_zeros_has_a_range_that_every_quantizer_reads_alike(
    ranges: str, high: float
) -> None:
    """Of no range, ONNX Runtime puts zero at 0 in int8, and at -128 of every other."""
    zeros = np.zeros(2048, np.int64)
    zeros[0] = 1000
    assert _cut(0.0, high, zeros, Recipe(ranges=cast("Any", ranges)), 255) == (0.0, 1.0)


def test_the_least_error_is_found_between_clipping_and_rounding() -> None:
    """A few outliers are worth clipping; if they are many, they are not."""
    recipe = Recipe(ranges="mse")
    few, many = (counts((40, 10**6), (BINS - 1, number)) for number in (1, 10**5))
    assert _cut(0.0, 1.0, few, recipe, 15)[1] < 0.5
    assert _cut(0.0, 1.0, many, recipe, 15)[1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("before", "pooled", "expected"),
    [
        ((0.0, 6.4), (0.0, 1.0), 1.0),
        ((0.0, 6.4), (0.0, 1.01), 1.1),
        ((0.0, 6.4), (0.0, 6.4), 6.4),
        ((0.0, 6.4), (0.0, 0.0), 0.1),
        ((0.0, 0.0), (0.0, 0.0), 0.0),
        ((0.0, 6.4), (0.0, 7.0), 6.4),
    ],
)
def test_a_pooled_range_is_a_whole_number_of_64ths(
    before: tuple[float, float], pooled: tuple[float, float], expected: float
) -> None:
    assert _pooled(before, pooled, 64) == pytest.approx((0.0, expected))


@pytest.mark.parametrize("largest", np.linspace(1, 9, 17).tolist())
def test_an_averaged_map_and_its_average_have_one_zero_point(largest: float) -> None:
    """Equalized on one batch, a map without ReLU spans as much on either side of zero."""
    model = small_network.network()
    nodes = {node.name: node for node in model.graph.node}
    nodes["mean"].input[0] = "sum"
    model.graph.node.remove(nodes["sum/relu"])
    network = parse(model)
    observed = observe(network, small_network.images(2))
    for mean in np.linspace(0.1, 0.9, 9) * largest:
        observed.extremes.update({"sum": (-largest, largest), "mean": (-mean, mean)})
        found = activation_ranges(network, observed, Recipe(ranges="minmax"))
        assert found["sum"] == pytest.approx((-largest, largest), rel=0.01)
        assert grid(*found["mean"]).zero_point == grid(*found["sum"]).zero_point


class Seen:
    """Stands for a probe: one tensor, whose values come in batches."""

    def __init__(self, *batches: list[float]) -> None:
        self._batches = [np.array(batch, np.float32) for batch in batches]

    def run(self, _: Images) -> Iterator[dict[str, NDArray[np.float32]]]:
        return ({"x": batch} for batch in self._batches)


NONE = np.zeros((0, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[3.0, -2.0], [1.0, -1.0]], (-2.0, 3.0)),
        ([[1.0, -1.0], [3.0, -2.0]], (-2.0, 3.0)),
        ([[2.0, 1.0]], (0.0, 2.0)),
        ([[-2.0, -1.0]], (-2.0, 0.0)),
    ],
    ids=["first batch", "last batch", "all above zero", "all below zero"],
)
def test_extremes_are_those_of_all_batches_and_hold_zero(
    batches: list[list[float]], expected: tuple[float, float]
) -> None:
    assert smallest_and_largest(cast("Probe", Seen(*batches)), NONE) == {"x": expected}


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 2.0), (0.0, 2e-15)])
def test_a_histogram_counts_each_value_of_each_batch_in_its_bin(low: float, high: float) -> None:
    bins = np.random.default_rng(2).integers(0, BINS, 500)
    values = (low + (bins + 0.5) * (high - low) / BINS).tolist()
    probe = cast("Probe", Seen(values[:200], values[200:], [high]))
    found = _histograms(probe, {"x": (low, high)}, NONE)["x"]
    assert found.tolist() == np.bincount([*bins, BINS - 1], minlength=BINS).tolist()


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> Images:
    found: Images = np.load(pipeline.artifact("calibration").path("images.npy"))[::25]
    return found


@pytest.fixture(scope="module")
def model(pipeline: Pipeline) -> Network:
    return read(pipeline.artifact("parameters/tuned").path("rounded.onnx"))


@pytest.fixture(scope="module")
def observed(model: Network, images: Images) -> Observed:
    return observe(model, images)


@pytest.fixture(scope="module")
def ranges(model: Network, observed: Observed) -> Ranges:
    return activation_ranges(model, observed)


def test_the_hash_is_of_every_byte_that_evaluation_would_feed(
    observed: Observed, images: Images
) -> None:
    assert observed.fed_sha256 == hashlib.sha256(preprocess(images).tobytes()).hexdigest()


def test_every_activation_has_a_range_that_holds_zero(ranges: Ranges, model: Network) -> None:
    assert set(ranges) == {"images", *(layer.output for layer in model.maps)}
    assert all(low <= 0 <= high for low, high in ranges.values())
    assert ranges["images"] == (0.0, 255.0)


def test_what_goes_into_a_relu_takes_its_range(pipeline: Pipeline) -> None:
    ranges = Parameters.load(pipeline.artifact("parameters/tuned").folder).every_range()
    graph = onnx.load(pipeline.artifact("parameters/tuned").path("rounded.onnx")).graph
    float_ones = {node.output[0] for node in graph.node if node.op_type in ("Gemm", "Softmax")}
    every = {name for node in graph.node for name in node.output} | {"images"}
    assert set(ranges) == every - float_ones
    for node in graph.node:
        if node.op_type in ("Relu", "Reshape", "Transpose"):
            assert ranges[node.input[0]] == ranges[node.output[0]]
        if node.op_type == "Relu":
            assert ranges[node.output[0]][0] == 0


def test_a_pooled_map_without_relu_keeps_its_zero_point() -> None:
    """By an odd divisor: in an even one, PyTorch's kernel rounds halves both ways."""
    low, high = _pooled((-2.0, 6.0), (-0.5, 1.2), 16)
    assert (low, high) == pytest.approx((-2 * 5 / 16, 6 * 5 / 16))


def test_ranges_do_not_depend_on_threads_or_on_what_was_asked_before(
    ranges: Ranges, model: Network, images: Images
) -> None:
    assert activation_ranges(model, observe(model, images)) == ranges


def test_the_stand_in_s_ranges_were_found_with_what_it_recorded(pipeline: Pipeline) -> None:
    images = np.load(pipeline.artifact("calibration").path("images.npy"))
    fed = hashlib.sha256(preprocess(images).tobytes()).hexdigest()
    assert pipeline.artifact("parameters/tuned").record["fed_sha256"] == fed
    assert Path(pipeline.artifact("parameters/tuned").path("activations.json")).is_file()
