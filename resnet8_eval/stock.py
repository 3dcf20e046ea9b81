"""Whether a stock model is what its framework's own quantizer makes of the network.

Nothing that the suite decides may be in it, and nothing of another framework: weights are the
float32 network's, each rounded to the nearest step, and ranges are those that were seen on the
calibration images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from resnet8_eval.backends import StoredTensor, backend
from resnet8_eval.calibrate.parameters import Ranges
from resnet8_eval.calibrate.probe import Probe, Tensor
from resnet8_eval.calibrate.ranges import smallest_and_largest
from resnet8_eval.checks import Check, equal
from resnet8_eval.configurations import Configuration
from resnet8_eval.network import Network, Pooling, output_first
from resnet8_eval.preprocess import Images, batches
from resnet8_eval.proof import other_bias, stored
from resnet8_eval.store import Record

MAKERS: Final = {"onnxruntime": "onnx.quantize", "torch": "PT2E"}
"""What the file of each framework's quantizer says of its maker."""
GRANULARITY: Final = {"onnxruntime": "per-tensor", "torch": "per-channel"}
"""Of weight scales, by the defaults of each quantizer."""
HALF_A_STEP: Final = 0.501
"""The farthest that rounding to the nearest moves a weight, in steps; float32 scales need a
little more than a half."""
FINEST: Final = 2**-12
"""PyTorch's quantizer takes no finer steps for weights, however small these are."""
NOT_FROM_IMAGES: Final = "activations whose scale or zero point is not from the calibration images"
RELATIVE: Final = 1e-4
"""Ranges are found in float32 by sessions that optimize differently: measured 3e-6."""


def spans(network: Network, images: Images) -> Ranges:
    """The smallest and the largest value of every tensor of a float32 network on these images."""
    made = [name for node in network.model.graph.node for name in node.output]
    return smallest_and_largest(Probe(network, [network.input, *made]), images)


def prove(
    row: Configuration,
    model: Path,
    network: Network,
    images: Images,
    record: Record,
    seen: Ranges,
) -> Record:
    """Hold a stock model against the folded float32 network and the calibration images.

    `record` is what was recorded when it was quantized, `seen` what :func:`spans` gives. The result
    is as :func:`resnet8_eval.proof.stored`, with ``checks`` of the tensors.
    """
    found = backend(row.framework).read_back(model, network)
    hashed = hashlib.sha256(b"".join(batch.data for batch in batches(images)))
    checks = [
        equal("made by the quantizer of", MAKERS[row.framework], record["maker"]),
        equal("SHA-256 of what calibration fed", hashed.hexdigest(), record["fed_sha256"]),
        granularity(row, found),
        nearest(found, network),
        biases(found, network),
        ranges(found, network, seen)
        if row.framework == "onnxruntime"
        else observed(found, record["observed"]),
    ]
    return {**stored(found, row), "checks": checks, "exact_integers": None}


def granularity(row: Configuration, found: Sequence[StoredTensor]) -> Check:
    """Whether layers have one weight scale, or one a channel, as the row or the default has it."""
    wanted = row.quantized_by.granularity or GRANULARITY[row.framework]
    along = (entry.axis for entry in found if entry.kind == "weight")
    stored = {"per-tensor" if axis is None else "per-channel" for axis in along}
    return equal("weight scales", [wanted], sorted(stored))


def nearest(found: Sequence[StoredTensor], network: Network) -> Check:
    """Whether every stored weight is the network's own, rounded to the nearest of 8 bits' steps."""
    exact, weights = network.weights(), {e.name: e for e in found if e.kind == "weight"}
    grids = {entry.name: entry.scales[0] for entry in found if entry.kind == "activation"}
    wrong = []
    for layer in network.weighted:
        entry = weights.get(layer.weight)
        if entry is None:
            wrong.append(layer.name)
            continue
        weight = output_first(layer, exact[layer.weight])
        steps = np.asarray(entry.scales).reshape(-1, *[1] * (weight.ndim - 1))
        distance = np.abs(np.asarray(entry.values) * steps - weight) / steps
        widest = _widest(
            weight.reshape(len(entry.scales), -1),
            exact[layer.bias].reshape(len(entry.scales), -1),
            grids.get(layer.inputs[0], np.inf),
        )
        # Signed weights are symmetric by the defaults of both.
        moved = entry.dtype == "int8" and any(entry.zero_points)
        # The largest weight of a channel may lie beyond the last step. NaN is none.
        near = (distance > HALF_A_STEP).mean() <= 0.01 and distance.max() <= 1.5
        if moved or not (near and (steps.ravel() <= widest).all()):
            wrong.append(layer.name)
    return equal("layers whose weights are not the float32 ones rounded to nearest", [], wrong)


def _widest(weights: Tensor, biases: Tensor, input_step: float) -> Tensor:
    """The widest steps that 8 bits take for rows of weights: wider ones have fewer bits.

    Where all weights are as good as zero, steps are 1; and where they and the input are small, ONNX
    Runtime widens them until 32 bits hold the bias.
    """
    span, bias = (np.abs(values).max(axis=1) for values in (weights, biases))
    widest = np.maximum(span / 127 * (1 + RELATIVE), FINEST)
    widest[span < 127 * np.finfo(np.float32).tiny] = 1
    return np.maximum(widest, bias / 2**30 / input_step)


def biases(found: Sequence[StoredTensor], network: Network) -> Check:
    """Whether every stored bias is the network's own, rounded to the nearest of its steps.

    Behind a layer of as good as nothing, these can be too narrow for 32 bits to reach it.
    """
    stored, exact, wrong = {e.name: e for e in found if e.kind == "bias"}, network.constants(), []
    for layer in network.weighted:
        entry, bias = stored.get(layer.weight), exact[layer.bias]
        if entry and entry.scales:
            most = 2**31 * np.asarray(entry.scales, np.float32)
            bias = np.clip(bias, -most, most)
        if other_bias(entry, bias):
            wrong.append(layer.name)
    return equal("layers whose bias is not the float32 one rounded to nearest", [], wrong)


def ranges(found: Sequence[StoredTensor], network: Network, seen: Ranges) -> Check:
    """Whether scales and zero points of activations are from the calibration images.

    ONNX Runtime's default spans exactly the smallest to the largest value of the same tensor, of
    probabilities 0 to 1; an average may share the scale of what it averages.
    """
    if network.softmax:
        seen = {**seen, network.output: (0.0, 1.0)}  # ONNX Runtime asks no image for these
    spans = {name: [span] for name, span in seen.items()}
    for layer in network.maps:
        if isinstance(layer, Pooling):
            spans[layer.output] += spans[layer.inputs[0]]
            spans[layer.flat] += spans[layer.output]
    # It gives the tensor before the graph's output a name of its own.
    own = spans[network.output]
    wrong = [
        entry.name
        for entry in found
        if entry.kind == "activation"
        and not any(_span(entry, *span) for span in spans.get(entry.name, own))
    ]
    return equal(NOT_FROM_IMAGES, [], wrong)


def _span(entry: StoredTensor, low: float, high: float) -> bool:
    """Whether the steps of a tensor span `low` to `high`, at most and at least 0, and no more."""
    if len(entry.scales) > 1:
        return False
    (scale,), (zero,), step = entry.scales, entry.zero_points, (high - low) / 255
    # A map that is zero throughout, or as good as zero, has no range to take a step from.
    if step < np.finfo(np.float32).tiny:
        return scale == 1
    moved = zero - (np.iinfo(entry.dtype).min - low / step)
    return abs(step - scale) <= RELATIVE * scale and abs(moved) <= 0.5 + 255 * RELATIVE


def observed(found: Sequence[StoredTensor], pairs: Sequence[list[float]]) -> Check:
    """Whether scales and zero points of activations are those that PyTorch's observers came to.

    They cut their histograms, and the file does not name the network's tensors. What the observers
    saw is known by its hash.
    """
    wrong = [
        entry.name
        for entry in found
        if entry.kind == "activation" and [*entry.scales, *entry.zero_points] not in pairs
    ]
    return equal(NOT_FROM_IMAGES, [], wrong)
