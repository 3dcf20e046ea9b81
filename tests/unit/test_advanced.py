"""Granularity and bits per layer, on a small network; each check with the fault that it is for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet8_eval import backends, configurations, stock
from resnet8_eval.advanced import granularity, lowbit, mixed, qat
from resnet8_eval.advanced.bits import Bits
from resnet8_eval.advanced.mixed import Part, Variants
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.rounding import gptq, least_error_scales
from resnet8_eval.calibrate.tuned import Statistics, collect
from resnet8_eval.checks import failed
from resnet8_eval.configurations import TUNED
from resnet8_eval.inputs import Labelled
from resnet8_eval.integers import ExactNetwork
from resnet8_eval.preprocess import Feed
from tests import small_network


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return collect(small_network.parsed(), small_network.images(60), TUNED)


@pytest.fixture(scope="module")
def variants(statistics: Statistics) -> Variants:
    return mixed.variants(statistics)


MIXTURES = {
    "W8A8": (8, 8),
    "W4A8": (4, 8),
    "W4A4": (4, 4),
    "W8A4": (8, 4),
}


def mixture(variants: Variants) -> Bits:
    """8 bits in every second layer, 4 in the others."""
    bits = Bits.all(variants.exact, 4, 4)
    return Bits(
        {name: 8 if place % 2 else 4 for place, name in enumerate(bits.weights)},
        {name: 8 if place % 2 else 4 for place, name in enumerate(bits.activations)},
    )


# --- the stored file -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MIXTURES, "every second layer"])
def test_a_plain_session_computes_what_exact_integers_do(
    variants: Variants, tmp_path: Path, name: str
) -> None:
    exact = variants.exact
    bits = Bits.all(exact, *MIXTURES[name]) if name in MIXTURES else mixture(variants)
    images = small_network.images(200)
    record = judged(variants, bits, tmp_path, images)
    assert record["exact_integers"]["disagreements"] <= 1
    assert failed(record["checks"]) == []
    sizes = {n: v.size for n, v in variants.at(bits).integers.items()}
    assert record["weights_bytes"] == sum(
        -(-size * bits.weights[n] // 8) for n, size in sizes.items()
    )


def judged(variants: Variants, bits: Bits, folder: Path, images: Any) -> dict[str, Any]:
    path, parameters = folder / "model.onnx", variants.at(bits)
    lowbit.write(parameters, bits, path)
    labels = np.arange(len(images)) % 10
    baseline = np.eye(10, dtype=np.float32)[labels]
    test = Labelled(Feed(images), labels)
    return lowbit.judge(path, parameters, bits, test, baseline, folder, threads=1)


def test_swapped_bits_of_a_layer_are_found(variants: Variants, tmp_path: Path) -> None:
    decided, path = mixture(variants), tmp_path / "model.onnx"
    first, second, *_ = decided.weights
    swapped = {**decided.weights, first: decided.weights[second], second: decided.weights[first]}
    other = replace(decided, weights=swapped)
    lowbit.write(variants.at(other), other, path)
    stored = backends.backend("onnxruntime").read_back(path, variants.exact)
    checks = lowbit.compare_stored(stored, variants.at(decided), decided, lowbit.weight_bytes(path))
    assert {check.name for check in failed(checks)} >= {
        "types of the stored weights",
        "stored scales, zero points and integers of weights",
    }


def test_a_stored_integer_that_is_another_is_found(variants: Variants, tmp_path: Path) -> None:
    bits, path = Bits.all(variants.exact, 4, 8), tmp_path / "model.onnx"
    parameters = variants.at(bits)
    name, values = next(iter(parameters.integers.items()))
    values = values.copy()
    values.flat[0] = -values.flat[0] or 1
    planted = replace(parameters, integers={**parameters.integers, name: values})
    lowbit.write(planted, bits, path)
    stored = backends.backend("onnxruntime").read_back(path, variants.exact)
    sizes = lowbit.weight_bytes(path)
    (found,) = failed(lowbit.compare_stored(stored, parameters, bits, sizes))
    assert "1 of" in found.observed
    assert "integers are others" in found.observed
    images = small_network.images()
    exact = ExactNetwork(variants.exact, stored, "onnxruntime").scores(images)
    assert np.allclose(backends.scores(path, images, threads=1, execution="default"), exact)


def wider(parameters: Parameters) -> Parameters:
    """Planted: weight scales that are a quarter too wide."""
    scales = {name: scale * np.float32(1.25) for name, scale in parameters.scales.items()}
    return replace(parameters, scales=scales)


def ranging(parameters: Parameters) -> Parameters:
    """Planted: a map whose range is another."""
    name = parameters.exact.maps[0].output
    low, high = parameters.activations[name]
    return replace(parameters, activations={**parameters.activations, name: (low, high * 1.25)})


def shifted(parameters: Parameters) -> Parameters:
    """Planted: a map whose zero point is another, and its scale the same."""
    name = parameters.exact.maps[0].output
    low, high = parameters.activations[name]
    moved = (low - 0.2 * (high - low), high - 0.2 * (high - low))
    return replace(parameters, activations={**parameters.activations, name: moved})


def biased(parameters: Parameters) -> Parameters:
    """Planted: another bias in one layer."""
    rounded, name = parameters.rounded, parameters.rounded.weighted[0].bias
    moved = {name: rounded.constants()[name] + 1}
    return replace(parameters, rounded=rounded.with_weights(moved))


PLANTED: dict[str, tuple[Callable[[Parameters], Parameters], str]] = {
    "scales of weights": (wider, "stored scales, zero points and integers of weights"),
    "a range": (ranging, "stored scales and zero points of activations"),
    "a zero point": (shifted, "stored scales and zero points of activations"),
    "a bias": (biased, "stored biases"),
}


@pytest.mark.parametrize("bits", ["W4A8", "W4A4"])
@pytest.mark.parametrize(("plant", "said"), PLANTED.values(), ids=PLANTED)
def test_a_wrong_number_in_a_file_of_few_bits_is_told(
    variants: Variants,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Parameters], Parameters],
    said: str,
    bits: str,
) -> None:
    """Kernels and exact integers both compute with it, so nothing else tells."""
    write, torch = lowbit.write, backends.backend("torch")
    torch_write = torch.write
    monkeypatch.setattr(lowbit, "write", lambda found, *rest: write(plant(found), *rest))
    monkeypatch.setattr(torch, "write", lambda found, *rest: torch_write(plant(found), *rest))
    widths, images = Bits.all(variants.exact, *MIXTURES[bits]), small_network.images(20)
    record = judged(variants, widths, tmp_path, images)
    assert said in {check.name for check in failed(record["checks"])}
    test = Labelled(Feed(images), np.arange(20) % 10)
    found, _ = qat.in_torch(variants.at(widths), widths, tmp_path / "model.pt", test, threads=1)
    assert f"PyTorch, {said}" in {check.name for check in failed(found["checks"])}


# --- bits per layer ------------------------------------------------------------------------------


def parts(seed: int, count: int = 5) -> list[Part]:
    random = np.random.default_rng(seed)
    return [
        Part(
            str(place),
            "weights",
            dict(zip((4, 8), random.uniform(0, 1, 2).tolist(), strict=True)),
            {4: (size := int(random.integers(1, 50))), 8: 2 * size},
        )
        for place in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_trying_every_choice_finds(seed: int) -> None:
    some = parts(seed)
    told = {
        (
            sum(part.sizes[b] for part, b in zip(some, bits, strict=True)),
            sum(part.costs[b] for part, b in zip(some, bits, strict=True)),
        ): bits
        for bits in itertools.product((4, 8), repeat=len(some))
    }
    best = sorted(
        (size, cost)
        for size, cost in told
        if not any(s <= size and c <= cost and (s, c) != (size, cost) for s, c in told)
    )
    assert mixed.front(some) == [(size, cost, told[size, cost]) for size, cost in best]


@pytest.mark.parametrize("first", [0, 1, 6, 9, None])
def test_the_smallest_that_passes_is_found_by_halving(first: int | None) -> None:
    tried: list[int] = []

    def passes(place: int) -> bool:
        tried.append(place)
        return first is not None and place >= first

    assert mixed.smallest(10, passes) == first
    assert len(tried) <= 4


def test_fewer_bits_cost_more_and_every_part_is_measured(variants: Variants) -> None:
    found = mixed.sensitivities(variants, small_network.images(100))
    layers = [layer.name for layer in variants.exact.weighted]
    kinds = [(part.layer, part.kind) for part in found]
    assert kinds == [(n, "weights") for n in layers] + [(n, "activations") for n in layers[:-1]]
    assert all(part.costs[4] > part.costs[8] >= 0 for part in found)
    assert all(part.sizes[8] == 2 * part.sizes[4] for part in found if part.sizes[8] % 2 == 0)


def test_a_choice_that_loses_too_much_is_held_no_further(variants: Variants) -> None:
    images = small_network.images(3000)
    negated = {n: -values for n, values in variants.weights[4].network.weights().items()}
    other = variants.weights[4]._replace(network=variants.exact.with_weights(negated))
    wrong = variants._replace(weights={**variants.weights, 4: other})
    labels = mixed.Held(wrong, images, np.zeros(3000, int)).before.argmax(axis=1)
    held = mixed.Held(wrong, images, labels)
    four, eight = (Bits.all(variants.exact, width, 8) for width in (4, 8))
    assert held.hold(eight)["passes"]
    stopped, whole = held.hold(four), held.hold(four, to_the_end=True)
    assert (stopped["images"], stopped["passes"]) == (1000, False)
    assert (whole["images"], whole["passes"]) == (3000, False)


def test_smaller_scales_are_taken_where_they_change_outputs_less() -> None:
    random = np.random.default_rng(1)
    weight = random.normal(size=(6, 40))
    weight[:, 0] *= 6  # one large weight in each channel
    inputs = random.normal(size=(500, 40))
    covariance = np.cov(inputs.T)
    largest = (np.abs(weight).max(axis=1) / 7).astype(np.float32)

    def error(scale: Any) -> Any:
        step = np.asarray(scale, np.float64)
        change = weight - gptq(weight, covariance, step, 7) * step[:, None]
        return np.einsum("oi,ij,oj->o", change, covariance, change)

    found = least_error_scales(weight, covariance, largest, 7)
    assert (error(found) <= error(largest)).all()
    assert (found < largest).any()


# --- granularity ---------------------------------------------------------------------------------


def test_every_quantizer_and_dtype_has_both_granularities() -> None:
    pairs = configurations.explored()
    assert len({row.name for pair in pairs for row in pair}) == 16
    for pair in pairs:
        granularities = [row.recipe.granularity for row in pair if row.recipe]
        assert granularities == ["per-tensor", "per-channel"]


@pytest.mark.parametrize("pair", configurations.explored(), ids=lambda pair: pair[0].name)
def test_a_stored_model_has_as_many_scales_as_its_label_says(
    statistics: Statistics, pair: Any, tmp_path: Path
) -> None:
    folded = tmp_path / "folded.onnx"
    small_network.parsed().save(folded)
    images = small_network.images()
    labels = np.arange(len(images)) % 10
    test = Labelled(Feed(images), labels)
    spans = stock.spans(small_network.parsed(), Feed(images))
    for row in pair:
        record, scores = granularity.explore(
            row, folded, Feed(images), spans, statistics, test, tmp_path, threads=1
        )
        one = record["granularity"] == "per-tensor"
        assert (record["scales"][1] == 1) == one
        assert record["total"] == len(scores) == len(images)
        assert record["weights"] == [row.weights_dtype]
        assert failed(record["checks"]) == []


# Scales are held alike for every type; PyTorch's tuned uint8 has kernels of its own.
WRONG_SCALES = [
    pair
    for pair in configurations.explored()
    if pair[0].dtype == "int8" or (pair[0].framework, pair[0].is_stock) == ("torch", False)
]


@pytest.mark.parametrize("pair", WRONG_SCALES, ids=lambda pair: pair[0].name)
def test_a_wrong_scale_in_an_explored_model_is_told(
    statistics: Statistics, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, images = tmp_path / "folded.onnx", small_network.images()
    small_network.parsed().save(folded)
    test = Labelled(Feed(images), np.arange(len(images)) % 10)
    spans = stock.spans(small_network.parsed(), Feed(images))
    for row in pair:
        backend = backends.backend(row.framework)
        read = backend.read_back

        def planted(*given: Any, read: Any = read) -> Any:
            return [
                replace(entry, scales=[1.25 * scale for scale in entry.scales])
                if entry.kind == "weight"
                else entry
                for entry in read(*given)
            ]

        with monkeypatch.context() as context:
            context.setattr(backend, "read_back", planted)
            record, _ = granularity.explore(
                row, folded, Feed(images), spans, statistics, test, tmp_path, threads=1
            )
        assert len(failed(record["checks"])) == 1
