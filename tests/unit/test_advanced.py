"""Granularity and bits per layer, on a small network; each check with the fault that it is for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from resnet8_eval import analysis, backends, configurations, network, stock
from resnet8_eval.advanced import granularity, lowbit, mixed, qat, stages
from resnet8_eval.advanced.bits import Bits
from resnet8_eval.advanced.mixed import Part, Variants
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.calibrate.ranges import activation_ranges
from resnet8_eval.calibrate.rounding import gptq, least_error_scales, round_weights
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
    assert record["accuracy_percent"] == 100 * record["correct"] / len(images)
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


def test_a_stored_weight_that_none_decided_or_that_is_empty_is_found(
    variants: Variants, tmp_path: Path
) -> None:
    bits, path = Bits.all(variants.exact, 4, 8), tmp_path / "model.onnx"
    lowbit.write(variants.at(bits), bits, path)
    honest = backends.backend("onnxruntime").read_back(path, variants.exact)
    place, weight = next((n, e) for n, e in enumerate(honest) if e.kind == "weight")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"name": "other"}, "weights with integers beyond their bits"),
        ({"values": np.zeros(0)}, "stored scales, zero points and integers of weights"),
    ]
    for change, name in changes:
        stored = [*honest[:place], replace(weight, **change), *honest[place + 1 :]]
        checks = lowbit.compare_stored(stored, variants.at(bits), bits, lowbit.weight_bytes(path))
        assert name in {check.name for check in failed(checks)}


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


def test_more_bytes_that_buy_nothing_are_not_on_the_front() -> None:
    same = Part("one", "weights", {4: 0.5, 8: 0.5}, {4: 1, 8: 2})
    assert mixed.front([same]) == [(1, 0.5, (4,))]


@pytest.mark.parametrize("first", [0, 1, 6, 9, None])
def test_the_smallest_that_passes_is_found_by_halving(first: int | None) -> None:
    tried: list[int] = []

    def passes(place: int) -> bool:
        tried.append(place)
        return first is not None and place >= first

    assert mixed.smallest(10, passes) == first
    assert len(tried) <= 4


def test_few_bits_are_decided_for_few_bits(statistics: Statistics, variants: Variants) -> None:
    """Scales of weights may clip, and ranges weigh the error of 16 levels."""
    exact, observed, moments = statistics
    scales = round_weights(
        exact, moments, variants.activations[8], configurations.LOW_BIT, 7
    ).scales
    for name, found in variants.weights[4].scales.items():
        assert np.array_equal(found, scales[name])
    narrow = replace(TUNED, ranges="mse")
    assert variants.activations[4] == activation_ranges(exact, observed, narrow, 15)
    assert variants.activations[8] == activation_ranges(exact, observed, TUNED)


def test_fewer_bits_cost_more_and_every_part_is_measured(variants: Variants) -> None:
    found = mixed.sensitivities(variants, small_network.images(100))
    layers = [layer.name for layer in variants.exact.weighted]
    kinds = [(part.layer, part.kind) for part in found]
    assert kinds == [(n, "weights") for n in layers] + [(n, "activations") for n in layers[:-1]]
    assert all(part.costs[4] > part.costs[8] >= 0 for part in found)
    assert all(part.sizes[8] == 2 * part.sizes[4] for part in found if part.sizes[8] % 2 == 0)
    (values,) = Probe(variants.exact, [layer.output for layer in variants.exact.maps]).run(
        small_network.images(1)
    )
    weights = variants.at(Bits.all(variants.exact, 8, 8)).integers
    for kind, bytes_of in (("weights", weights), ("activations", values)):
        whole = sum(part.sizes[8] for part in found if part.kind == kind)
        assert whole == sum(array.size for array in bytes_of.values())


@pytest.mark.parametrize(
    ("low", "high", "passes"), [(-0.25, 0.25, True), (-0.26, 0.1, False), (-0.1, 0.26, False)]
)
def test_a_choice_passes_within_half_of_the_margin_of_equivalence(
    variants: Variants, monkeypatch: pytest.MonkeyPatch, low: float, high: float, passes: bool
) -> None:
    images = small_network.images(20)
    held = mixed.Held(variants, images, np.zeros(20, int))
    found = analysis.compare(held.before, held.before, np.zeros(20, int))
    told = {**found, "delta_ci95_pp": [low, high]}
    monkeypatch.setattr(analysis, "compare", lambda *_: told)
    assert held.hold(Bits.all(variants.exact, 8, 8))["passes"] == passes


def test_what_is_drawn_is_measured_on_the_images_that_costs_were(
    variants: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that hold choices are for choosing alone."""
    held, drawn = (
        mixed.Held(variants, small_network.images(n), np.zeros(n, int)) for n in (20, 30)
    )
    asked: list[int] = []

    def watched(self: mixed.Held, _: Bits) -> Any:
        asked.append(len(self.before))
        return {"kl_nats": 0.5, "passes": True}

    monkeypatch.setattr(mixed.Held, "hold", watched)
    names = [layer.name for layer in variants.exact.weighted]
    chosen = [replace(part, layer=name) for part, name in zip(parts(0, 3), names, strict=False)]
    front, _ = mixed.search(chosen, held, drawn, 2)
    assert asked == [30] * 2 + [20] * (len(asked) - 2)
    measured = [point["measured"] for point in front["points"]]
    assert measured == [0.5, *[None] * (len(measured) - 2), 0.5]
    assert front["chosen"] == 0


def test_a_choice_that_loses_too_much_does_not_pass(variants: Variants) -> None:
    images = small_network.images(3000)
    negated = {n: -values for n, values in variants.weights[4].rounded.weights().items()}
    other = replace(variants.weights[4], rounded=variants.exact.with_weights(negated))
    wrong = variants._replace(weights={**variants.weights, 4: other})
    labels = mixed.Held(wrong, images, np.zeros(3000, int)).before.argmax(axis=1)
    held = mixed.Held(wrong, images, labels)
    four, eight = (Bits.all(variants.exact, width, 8) for width in (4, 8))
    assert held.hold(eight)["passes"]
    lost = held.hold(four)
    assert (lost["images"], lost["passes"]) == (3000, False)


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


def test_how_many_integers_moved_is_their_share(variants: Variants) -> None:
    before = variants.at(Bits.all(variants.exact, 8, 8))
    (name, values), *_ = before.integers.items()
    other = replace(before, integers={**before.integers, name: values + 1})
    whole = sum(array.size for array in before.integers.values())
    assert qat.moved_percent(before, other) == 100 * values.size / whole


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


def test_the_largest_weight_of_each_channel_is_that_of_greatest_size() -> None:
    exact = small_network.parsed()
    weights = exact.weights()
    first, *_, dense = granularity.weight_ranges(exact)
    for found, largest in (
        (first, [max(map(abs, one.ravel())) for one in weights["first/weight"]]),
        (dense, [max(map(abs, one)) for one in weights["dense/weight"].T]),
    ):
        assert found["largest"] == pytest.approx(sorted(largest), abs=1e-6)


def test_a_scale_for_each_channel_is_held_against_one_for_each_layer() -> None:
    """Of 1000 images float32 is right on all, the former on 990 and the latter on 900."""
    right, wrong = np.eye(10, dtype=np.float32)[[0, 1]]
    tensor, channel, baseline = (
        np.where(np.arange(1000)[:, None] < n, right, wrong) for n in (900, 990, 1000)
    )
    found = granularity.paired(tensor, channel, baseline, np.zeros(1000, int))
    assert (found["lost"], found["gained"], found["delta_pp"]) == (0, 90, 9.0)
    told = {name: entry["agreement_percent"] for name, entry in found["from_baseline"].items()}
    assert told == {"per-tensor": 90.0, "per-channel": 99.0}


# --- what the stages hold against what -----------------------------------------------------------


def right_on(count: int) -> Any:
    """Scores of 100 images of the first class, right on so many of them."""
    right, wrong = np.eye(10, dtype=np.float32)[[0, 1]]
    return np.where(np.arange(100)[:, None] < count, right, wrong)


def given(tmp_path: Path, **scores: int) -> Any:
    """What a stage is given: scores by the names of the stages that made them."""
    return SimpleNamespace(
        artifacts=dict.fromkeys(scores, SimpleNamespace(folder=tmp_path)),
        scores=lambda name: right_on(90 if name == stages.BASELINE else scores[name]),
        split=lambda _: Labelled(Feed(small_network.images(100)), np.zeros(100, int)),
        record=lambda _: {"seed": 0, "spans": {}},
        **dict.fromkeys(("path", "images", "statistics"), lambda *_: None),
        out=tmp_path,
        threads=1,
    )


def test_trainings_are_held_against_float32_and_against_the_same_bits_without_any(
    variants: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = given(tmp_path, **{"mixed/W4A4": 60, "qat/W4A4-0": 80, "qat/W4A4-1": 84})
    mean = stages._mean_of_seeds(inputs, bits="W4A4")
    assert [round(mean[key], 6) for key in ("delta_pp", "gain_pp", "seeds")] == [-8, 22, 2]
    made = variants.at(Bits.all(variants.exact, 4, 4))
    monkeypatch.setattr(Parameters, "load", lambda *_: made)
    monkeypatch.setattr(stages, "_judged", lambda *_: {})
    np.save(tmp_path / "scores.npy", right_on(80))
    beside = stages._fine_tuned(inputs, made="qat/W4A4-0", bits="W4A4")["beside"]
    assert (beside["delta_pp"], beside["gained"], beside["lost"]) == (20, 20, 0)


def test_of_each_pair_the_second_row_is_held_against_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has one scale for each layer."""
    right = {"per-tensor": 70, "per-channel": 75}

    def explored(row: Any, *_: Any) -> Any:
        return {"name": row.name}, right_on(right[row.recipe.granularity])

    monkeypatch.setattr(stages, "explore", explored)
    for rows in configurations.explored():
        found = stages._granularity(given(tmp_path), rows=rows, offset=0)
        assert (found["gained"], found["lost"]) == (5, 0)
        assert [cell["name"] for cell in found["cells"]] == [row.name for row in rows]
        alike = {name: told["agreement_percent"] for name, told in found["from_baseline"].items()}
        assert alike == {"per-tensor": 80, "per-channel": 85}


def test_a_test_image_that_calibrates_an_exploration_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the first three training images are test images; all calibrate."""
    pixels = small_network.images(25)
    found = SimpleNamespace(
        save=lambda _: None, observed=SimpleNamespace(fed_sha256=""), network=None
    )
    for where, name in ((stages, "collect"), (network, "read"), (stock, "spans")):
        monkeypatch.setattr(where, name, lambda *_: found)
    monkeypatch.setattr(stages, "weight_ranges", lambda _: [])
    split = {"train": Feed(pixels[:20]), "test": Feed(np.concatenate([pixels[20:], pixels[:3]]))}
    inputs = SimpleNamespace(
        settings=SimpleNamespace(calibration_count=20, calibration_seed=0),
        split=lambda name: Labelled(split[name], np.arange(len(split[name])) % 10),
        path=lambda *_: tmp_path,
        out=tmp_path,
    )
    assert stages._explored(cast("Any", inputs), offset=0)["in_test"] == 3
