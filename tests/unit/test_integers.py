"""Exact integers: by hand, against the frameworks' kernels, and with faults planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resnet8_eval import backends, configurations
from resnet8_eval.backends import StoredTensor, torchscript
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.cifar10 import Split
from resnet8_eval.integers import ExactNetwork, Rounding, rounding
from resnet8_eval.network import Convolution, Dense, Pooling
from resnet8_eval.pipeline import Pipeline
from tests import small_network

ROWS = [row.name for row in configurations.calibrated() if row.execution == "kernel"]
COUNT = 20
"""Images that a planted fault is looked for on."""


def stored_network() -> list[StoredTensor]:
    """Grids, weights and float biases for the small network; no two grids alike."""
    network, random = small_network.parsed(), np.random.default_rng(1)
    grids: dict[str, tuple[float, int]] = {
        "images": (1.0, 3),
        "first/relu": (0.04, 2),
        "second": (0.06, 120),
    }
    grids |= {"sum/relu": (0.05, 1), "mean": (0.02, 5)}
    found = [
        StoredTensor(name, "activation", "uint8", None, [float(np.float32(scale))], [zero])
        for name, (scale, zero) in grids.items()
    ]
    for layer in network.weighted:
        shape = network.constants()[layer.weight].shape
        shape = shape[::-1] if isinstance(layer, Dense) else shape
        integers = random.integers(-127, 128, shape)
        scales = [float(np.float32(s)) for s in random.uniform(1e-4, 3e-4, len(integers))]
        bias = np.asarray(random.normal(size=len(integers)), np.float32).astype(np.float64)
        found.append(StoredTensor(layer.weight, "weight", "int8", 0, scales, [0], integers))
        found.append(StoredTensor(layer.weight, "bias", "float32", None, [], [], bias))
    return found


@pytest.mark.parametrize("steps", ["onednn", "fbgemm"])
def test_the_small_network_by_hand(steps: Rounding) -> None:
    """Sum by sum in Python's integers, each rounded in float64."""
    network, stored = small_network.parsed(), stored_network()
    exact = ExactNetwork(network, stored, steps)
    (values,) = exact.tensors(small_network.images(2))
    weights = {e.name: e for e in stored if e.kind == "weight"}
    biases = {e.name: e.values for e in stored if e.kind == "bias"}
    for layer in network.layers:
        if not isinstance(layer, Convolution):
            continue
        x, y = (values[name].astype(int) for name in (layer.inputs[0], layer.output))
        before, after = exact.grid(layer.inputs[0]), exact.grid(layer.output)
        integers, bias = np.asarray(weights[layer.weight].values), biases[layer.weight]
        assert bias is not None
        top, left, bottom, right = layer.pads
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        high, wide = integers.shape[2:]
        off = 0
        for image, row, column, channel in np.ndindex(y.shape):
            i, j = row * layer.strides[0], column * layer.strides[1]
            window = padded[image, i : i + high, j : j + wide].transpose(2, 0, 1)
            total = int((window * integers[channel]).sum())
            scale = float(before.scale) * weights[layer.weight].scales[channel]
            real = float(total * scale + bias[channel]) / float(after.scale)
            low = 0 if layer.before_relu else -after.zero_point
            expected = min(max(round(real), low), 255 - after.zero_point)
            off += y[image, row, column, channel] != expected
        assert off == 0
    scores = exact.scores(small_network.images(2))
    assert np.allclose(scores.sum(axis=1), 1)


def test_scores_of_a_layer_in_float_lie_on_the_grid_behind_it() -> None:
    """As ONNX Runtime's quantizer leaves a dense layer that is excluded, before its softmax."""
    network, images = small_network.parsed(), small_network.images(4)
    stored = [entry for entry in stored_network() if entry.name != network.dense.weight]
    (values,) = ExactNetwork(network, stored, "onnxruntime").tensors(images)
    logits = np.rint(values[network.dense.output] * 4) / 4
    step = StoredTensor(network.dense.output, "activation", "uint8", None, [0.25], [128])
    scores = ExactNetwork(network, [*stored, step], "onnxruntime").scores(images)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("divisor", range(1, 65))
def test_pooling_rounds_as_pytorchs_kernel(divisor: int) -> None:
    """By an even number, every other sum may be a half, which the last bit of a factor decides."""
    import torch

    network, stored = small_network.parsed(), stored_network()
    (layer,) = (layer for layer in network.layers if isinstance(layer, Pooling))
    before, zero = 0.10339506715536118, 3
    grids = {layer.inputs[0]: before, layer.output: before * divisor / layer.area}
    for at, entry in enumerate(stored):
        if entry.kind == "activation" and entry.name in grids:
            stored[at] = replace(entry, scales=[grids[entry.name]], zero_points=[zero])
    random = np.random.default_rng(divisor)
    x = random.integers(0, 8, (50, *layer.window, 64)).astype(np.uint8)
    with torchscript.deprecations_ignored():
        planes = torch._make_per_tensor_quantized_tensor(
            torch.from_numpy(x).permute(0, 3, 1, 2), before, zero
        )
    kernel = torch.nn.functional.avg_pool2d(planes, layer.window, divisor_override=divisor)
    exact = ExactNetwork(network, stored, "onednn")
    found = exact._pooling(layer, x.astype(np.float32) - zero)
    expected = kernel.int_repr().numpy().reshape(found.shape).astype(np.float32)
    assert np.array_equal(found + zero, expected)


def test_sums_that_float32_cannot_hold_are_taken_in_float64() -> None:
    stored = stored_network()
    assert (
        ExactNetwork(small_network.parsed(), stored, "onednn").weights["second"].integers.dtype
        == np.float32
    )
    (weight,) = (e for e in stored if e.kind == "weight" and e.name == "second/weight")
    large = replace(weight, values=np.asarray(weight.values) * 100)
    changed = [large if e is weight else e for e in stored]
    network = ExactNetwork(small_network.parsed(), changed, "onednn")
    assert network.weights["second"].integers.dtype == np.float64


def held(pipeline: Pipeline, name: str) -> tuple[Parameters, list[StoredTensor], np.ndarray]:
    row = configurations.of(name)
    assert row.recipe is not None
    backend = backends.backend(row.framework)
    parameters = Parameters.load(pipeline.artifact(f"parameters/{row.recipe.key}").folder)
    path = pipeline.artifact(f"model/{name}").path(backends.file_of(row))
    scores = np.load(pipeline.artifact(f"scores/{name}").path("scores.npy"))
    return parameters, backend.read_back(path, parameters.rounded), scores


@pytest.mark.parametrize("name", ROWS)
def test_kernels_give_these_scores_on_every_image(
    pipeline: Pipeline, standin_test: Split, name: str
) -> None:
    parameters, stored, scores = held(pipeline, name)
    framework = configurations.of(name).framework
    exact = ExactNetwork(parameters.rounded, stored, rounding(framework))
    found = exact.scores(standin_test.images)
    assert (found.argmax(axis=1) != scores.argmax(axis=1)).sum() == 0
    assert np.abs(found - scores).max() <= 1e-6


def wrong_scale(entry: StoredTensor) -> StoredTensor:
    return replace(entry, scales=[scale * 1.01 for scale in entry.scales])


def wrong_zero_point(entry: StoredTensor) -> StoredTensor:
    return replace(entry, zero_points=[zero + 1 for zero in entry.zero_points])


def wrong_axis(entry: StoredTensor) -> StoredTensor:
    return replace(entry, scales=entry.scales[::-1])


def wrong_bias(entry: StoredTensor) -> StoredTensor:
    return replace(entry, values=np.asarray(entry.values) + 0.05)


FAULTS = [
    ("activation", wrong_scale),
    ("activation", wrong_zero_point),
    ("weight", wrong_scale),
    ("weight", wrong_axis),
    ("bias", wrong_bias),
]


@pytest.mark.parametrize("name", ["onnxruntime-int8-tuned", "torch-int8-tuned"])
@pytest.mark.parametrize(("kind", "fault"), FAULTS, ids=lambda v: getattr(v, "__name__", v))
def test_one_other_number_gives_other_scores(
    pipeline: Pipeline, standin_test: Split, name: str, kind: str, fault: object
) -> None:
    assert callable(fault)
    parameters, stored, scores = held(pipeline, name)
    layer = parameters.rounded.layers[3]
    wanted = layer.output if kind == "activation" else parameters.rounded.weighted[3].weight
    (at,) = [i for i, e in enumerate(stored) if (e.kind, e.name) == (kind, wanted)]
    stored[at] = fault(stored[at])
    exact = ExactNetwork(parameters.rounded, stored, rounding(name.partition("-")[0]))
    assert np.abs(exact.scores(standin_test.images[:COUNT]) - scores[:COUNT]).max() > 1e-4


def test_another_rounding_gives_other_scores(
    pipeline: Pipeline, standin_test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, stored, scores = held(pipeline, "onnxruntime-int8-tuned")
    exact = ExactNetwork(parameters.rounded, stored, "onnxruntime")
    # Halves away from zero differ on exact halves alone; cutting off differs everywhere.
    monkeypatch.setattr("resnet8_eval.integers.np.rint", np.floor)
    assert np.abs(exact.scores(standin_test.images[:COUNT]) - scores[:COUNT]).max() > 1e-3
