"""Simulated arithmetic computes what the reference executions do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resnet8_eval import calibration, layers, making
from resnet8_eval.analysis import divergences
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.calibrate.ranges import activation_ranges, observe
from resnet8_eval.cifar10 import Split
from resnet8_eval.configurations import Recipe
from resnet8_eval.evaluate import softmax
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.simulate import Simulation
from resnet8_eval.statistics import mean_interval, paired_interval_pp, wilson_interval_percent
from tests import small_network
from tests.planted import Bench


@pytest.fixture
def simulation(pipeline: Pipeline) -> Simulation:
    return Simulation(Parameters.load(pipeline.artifact("parameters/tuned-8bit").folder))


def test_with_no_layer_quantized_it_is_the_float_network(
    simulation: Simulation, pipeline: Pipeline, standin_test: Split
) -> None:
    expected = np.load(pipeline.artifact("scores/onnxruntime-float32").path("scores.npy"))[:300]
    found = softmax(simulation.logits(standin_test.images[:300], []))
    assert np.abs(found - expected).max() < 1e-4
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_with_all_layers_quantized_it_is_the_reference_network(
    pipeline: Pipeline, standin_test: Split
) -> None:
    expected = np.load(pipeline.artifact("scores/torch-uint8-tuned").path("scores.npy"))[:300]
    parameters = Parameters.load(pipeline.artifact("parameters/tuned-8bit").folder)
    found = softmax(Simulation(parameters).logits(standin_test.images[:300]))
    assert (found.argmax(axis=1) != expected.argmax(axis=1)).sum() <= 2


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
def test_one_layer_changed_is_the_network_run_anew(
    simulation: Simulation, standin_test: Split, quantized: bool
) -> None:
    """What is taken over from the unchanged run is what would be computed again."""
    images, names = standin_test.images[:150], simulation.layers
    layers_ = names if quantized else []
    unchanged, changed = simulation.logits_by_layer(images, layers_)
    assert np.array_equal(unchanged, simulation.logits(images, layers_))
    assert list(changed) == names
    for name in names:
        others = [n for n in names if n != name] if quantized else [name]
        assert np.array_equal(changed[name], simulation.logits(images, others))
        assert not np.array_equal(changed[name], unchanged)


@pytest.mark.usefixtures("made_here")
@pytest.mark.parametrize(
    "name", ["onnxruntime-int8-tuned", "onnxruntime-uint8-tuned", "torch-int8-tuned"]
)
def test_every_layer_has_its_noise(pipeline: Pipeline, name: str) -> None:
    found = pipeline.artifact(f"layers/{name}").record["layers"]
    assert len(found) == 10
    for entry in found:
        assert entry["sqnr_weights_db"] > 30, entry
        assert entry["sqnr_output_db"] > 15, entry


def test_what_one_layer_costs_is_held_against_float32_and_the_whole_network(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four images, the quantized network classes three otherwise; without this layer, two."""

    class Counting:
        layers = ("conv",)

        def __init__(self, *_: object) -> None:
            pass

        def logits_by_layer(self, _: object, quantized: list[str]) -> Any:
            changed, changed_otherwise = (3, 2) if quantized else (0, 1)
            return logits(changed), {"conv": logits(changed_otherwise)}

    def logits(changed: int) -> Any:
        sure = np.array([[3.0]] * changed + [[1.0]] * (4 - changed))  # and turned round, it differs
        return sure * np.eye(10)[[1] * changed + [0] * (4 - changed)]

    monkeypatch.setattr("resnet8_eval.simulate.Simulation", Counting)
    images = np.zeros((4, 32, 32, 3), np.uint8)
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    found = layers.sensitivity(parameters, images, np.zeros(4, np.int64), 1)
    assert (found["float_percent"], found["quantized_percent"]) == (100.0, 25.0)
    one = divergences(softmax(logits(1)), softmax(logits(0)))[0]  # of one changed image
    assert found["divergence_nats"] == pytest.approx(one * 3 / 4)
    assert found["agreement_percent"] == 25
    (entry,) = found["layers"]
    assert entry["divergence_alone_nats"] == pytest.approx(one / 4)
    assert entry["divergence_alone_ci95_nats"] == pytest.approx(
        mean_interval(np.array([one, 0, 0, 0]))
    )
    assert (entry["agreement_alone_percent"], entry["agreement_recovered_pp"]) == (75, 25)
    assert entry["agreement_alone_ci95_percent"] == list(wilson_interval_percent(3, 4))
    assert entry["divergence_recovered_nats"] == pytest.approx(one / 4)
    assert entry["agreement_recovered_ci95_pp"] == list(paired_interval_pp(0, 1, 4))


def test_a_layer_that_costs_nothing_and_one_that_costs_much_are_told_apart(
    pipeline: Pipeline, standin_test: Split
) -> None:
    """With exact weights the last layer changes nothing; a layer on a coarse grid changes much."""
    honest = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    coarse = honest.exact.weighted[1].output
    low, high = honest.activations[coarse]
    planted = replace(
        honest,
        rounded=honest.exact,
        activations={**honest.activations, coarse: (100 * low, 100 * high)},
    )
    images, labels = standin_test.images[:200], standin_test.labels[:200]
    found = layers.sensitivity(planted, images, labels, 1)["layers"]
    assert found[-1]["divergence_alone_ci95_nats"] == [0, 0]
    assert found[-1]["agreement_alone_percent"] == 100
    worst = found.pop(1)
    assert worst["divergence_alone_ci95_nats"][0] > 0
    assert worst["divergence_recovered_ci95_nats"][0] > 0
    least = worst["divergence_alone_nats"] / 10
    assert all(entry["divergence_alone_nats"] < least for entry in found)


def test_sensitivity_says_which_images_it_was_measured_on(pipeline: Pipeline) -> None:
    found = pipeline.artifact("sensitivity/tuned").record
    assert (found["source"], found["calibrated"]) == ("train", 0)
    assert found["images"] >= found["noise_images"] > 0
    of_noise, calibrating = (
        np.load(pipeline.artifact(stage).path("images.npy"))
        for stage in ("sensitivity/tuned", "calibration")
    )
    assert len(of_noise) == found["noise_images"]
    assert calibration.shared(of_noise, calibrating) == 0


def test_images_that_also_calibrated_are_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overlapping(*words: Any) -> Any:
        calibrating, validating = calibration.split(*words)
        return calibrating, np.sort([*validating[7:], *calibrating[:7]])

    monkeypatch.setattr(making, "split", overlapping)
    monkeypatch.setattr(making, "costs", lambda *_: {})
    bench.remake("sensitivity/tuned")
    assert bench.artifact("sensitivity/tuned").record["calibrated"] == 7


def test_noise_is_held_against_the_signal_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are off by a tenth, and outputs by a hundredth in the second of two batches alone."""
    exact, images = small_network.parsed(), small_network.images(200)
    off = exact.with_weights({name: 1.1 * value for name, value in exact.weights().items()})

    def tensors(*_: Any) -> Any:
        names = [layer.output for layer in exact.weighted]
        for n, clean in enumerate(Probe(exact, names).run(images)):
            yield {name: (1.01 if n else 1) * value for name, value in clean.items()}

    monkeypatch.setattr(layers, "backend", lambda _: SimpleNamespace(tensors=tensors))
    row: Any = SimpleNamespace(framework="")
    found = layers.noise(row, Path(), Parameters(exact, off, {}, {}, {}), images, 1)
    assert [entry["name"] for entry in found] == ["first", "second", "dense"]
    clean = list(Probe(exact, [layer.output for layer in exact.weighted]).run(images))
    for entry, layer in zip(found, exact.weighted, strict=True):
        whole, second = (
            sum(float(np.square(part[layer.output]).sum()) for part in parts)
            for parts in (clean, clean[1:])
        )
        assert entry["sqnr_weights_db"] == pytest.approx(20, abs=1e-4)
        assert entry["sqnr_output_db"] == pytest.approx(40 + 10 * np.log10(whole / second))


def test_noise_is_told_in_decibels() -> None:
    assert layers.decibels(100.0, 1.0) == pytest.approx(20)
    assert layers.decibels(1.0, 0.0) is None


def test_a_sum_is_quantized_with_the_layer_before_it_and_with_no_other() -> None:
    """Grids fine enough to change nothing, but for the sum's, on which everything is zero."""
    model, images = small_network.parsed(), small_network.images()
    exact = next(Probe(model, ["scores"]).run(images))["scores"]
    ranges = activation_ranges(model, observe(model, images), Recipe(ranges="minmax"))
    fine, coarse = (
        Simulation(Parameters(model, model, chosen, {}, {}), levels=60_000)
        for chosen in (ranges, {**ranges, "sum/relu": (0.0, 1e9)})
    )
    assert fine.logits(images, []) == pytest.approx(exact, abs=1e-4)
    assert fine.logits(images) == pytest.approx(exact, abs=1e-2)
    assert coarse.logits(images, ["first", "dense"]) == pytest.approx(exact, abs=1e-2)
    assert coarse.logits(images, ["second"]) != pytest.approx(exact, abs=1e-2)


def test_softmax_by_hand() -> None:
    found = softmax(np.log(np.array([[1, 2, 5], [1e30, 1e30, 2e30]], np.float32)))
    assert found == pytest.approx(np.array([[0.125, 0.25, 0.625], [0.25, 0.25, 0.5]]), abs=1e-6)
