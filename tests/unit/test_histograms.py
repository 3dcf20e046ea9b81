"""What the report draws of a network: recomputed here from the network and its images."""

from __future__ import annotations

import numpy as np
import pytest

from resnet8_eval.calibrate import histograms
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.calibrate.ranges import Observed, activation_ranges, observe
from resnet8_eval.calibrate.rounding import input_moments, round_weights
from resnet8_eval.configurations import TUNED
from tests import small_network

LIMIT = 63


@pytest.fixture(scope="module")
def made() -> tuple[Parameters, Observed]:
    network, images = small_network.parsed(), small_network.images()
    observed = observe(network, images)
    ranges = activation_ranges(network, observed, TUNED)
    ranges["first/relu"] = (0.0, ranges["first/relu"][1] / 3)
    ranges["second"] = (ranges["second"][0] / 3, ranges["second"][1])
    found = round_weights(network, input_moments(network, images), ranges, TUNED, LIMIT)
    return found, observed


def test_layers_read_one_another_as_in_the_network(made: tuple[Parameters, Observed]) -> None:
    told = {layer["name"]: layer for layer in histograms.layers(*made, LIMIT)}
    assert {name: layer["reads"] for name, layer in told.items()} == {
        "first": ["images"],
        "second": ["first"],
        "sum": ["second", "first"],
        "mean": ["sum"],
        "dense": ["mean"],
    }
    assert [layer["shape"] for layer in told.values()] == [[17, 32, 4]] * 3 + [[4], [10]]
    assert told["first"]["keras"] == ["first"]
    assert told["mean"]["weights"] is None
    assert told["dense"]["output"] is None


@pytest.mark.parametrize(("name", "tensor"), [("first", "first/relu"), ("second", "second")])
def test_outputs_are_those_of_the_calibration_images(
    made: tuple[Parameters, Observed], name: str, tensor: str
) -> None:
    told = {layer["name"]: layer["output"] for layer in histograms.layers(*made, LIMIT)}
    probe = Probe(made[0].exact, [tensor])
    values = np.concatenate([batch[tensor] for batch in probe.run(small_network.images())])
    found, clip = told[name], made[0].activations[tensor]
    lowest, highest = min(values.min(), 0), values.max()
    assert (found["low"], found["high"]) == pytest.approx((lowest, highest), rel=1e-4)
    assert sum(found["counts"]) == values.size
    expected, _ = np.histogram(values, histograms.SHOWN, (lowest, highest))
    # A value on an edge may count to either side.
    assert np.abs(np.array(found["counts"]) - expected).sum() <= 20
    assert found["clip"] == pytest.approx(clip, rel=1e-4)
    outside = 100 * ((values < clip[0]) | (values > clip[1])).mean()
    assert outside > 1
    assert found["clipped_percent"] == pytest.approx(outside, abs=0.03)
    limits = np.stack([values.min(axis=(0, 2, 3)), values.max(axis=(0, 2, 3))], axis=1)
    assert np.array(found["channels"])[:, :2] == pytest.approx(limits, rel=1e-4)


def test_weights_are_held_against_the_range_of_their_own_channel(
    made: tuple[Parameters, Observed],
) -> None:
    parameters, observed = made
    whole = histograms.layers(parameters, observed, LIMIT)[0]["weights"]
    assert whole["clipped_percent"] == 0.0
    weights = parameters.exact.weights()["first/weight"]
    assert (whole["low"], whole["high"]) == pytest.approx((weights.min(), weights.max()), rel=1e-4)
    assert whole["counts"] == np.histogram(weights, histograms.SHOWN)[0].tolist()
    rows = weights.reshape(len(weights), -1)
    ends = parameters.scales["first/weight"] * LIMIT
    expected = np.stack([rows.min(axis=1), rows.max(axis=1), -ends, ends], axis=1)
    assert np.array(whole["channels"]) == pytest.approx(expected, rel=1e-4)
    half = histograms.layers(parameters, observed, LIMIT // 2)[0]["weights"]
    outside = np.abs(rows) > parameters.scales["first/weight"][:, None] * (LIMIT // 2)
    assert half["clipped_percent"] == pytest.approx(100 * outside.mean(), rel=1e-4)
    assert half["clipped_percent"] > 0


def test_weights_of_a_layer_in_float_are_not_cut(made: tuple[Parameters, Observed]) -> None:
    parameters, observed = made
    scales = {name: s for name, s in parameters.scales.items() if name != "dense/weight"}
    kept = Parameters(
        parameters.exact, parameters.rounded, parameters.activations, scales, parameters.integers
    )
    (*_, dense) = histograms.layers(kept, observed, LIMIT)
    assert dense["weights"]["clipped_percent"] == 0.0
    assert all(channel[:2] == channel[2:] for channel in dense["weights"]["channels"])
