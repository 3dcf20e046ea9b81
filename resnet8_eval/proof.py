"""Whether a stored quantized model holds what was decided, and its kernels compute what it says.

The model is read back by code that shares nothing with the code that wrote it. A wrong scale or a
swapped axis computes alike in kernels and in exact integers, so only this comparison tells them
from a bad recipe.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import saturation
from resnet8_eval.backends import StoredTensor, backend, integers_sha256
from resnet8_eval.calibrate.parameters import Parameters, grid
from resnet8_eval.checks import Check, failed
from resnet8_eval.configurations import Configuration
from resnet8_eval.evaluate import probabilities
from resnet8_eval.inputs import Labelled
from resnet8_eval.integers import rounding
from resnet8_eval.network import output_first
from resnet8_eval.preprocess import Scores
from resnet8_eval.store import Record

PROJECTION: Final = 0.03
"""Seven times what 8 bits were measured to do (0.0043 at most, over ten layers and four seeds)."""
STEPS: Final = 4.0
"""How far rounding may move a channel along itself: further than `PROJECTION` where it has few
weights or, beside a large bias, wide steps. A wrong scale moves it by far more of its own steps."""
_RECORDED: Final = ("name", "kind", "dtype", "axis", "scales", "zero_points")
RELATIVE: Final = 1e-6
"""Scales are float32, and each tool rounds its own division."""


def prove(
    row: Configuration,
    model: Path,
    parameters: Parameters,
    test: Labelled,
    scores: Scores,
    exact: Scores | None,
) -> Record:
    """Read a stored model back, and hold its kernels against exact integers.

    Parameters
    ----------
    parameters
        What the model was made from.
    test, scores
        The images that it was evaluated on, their labels, and what it gave.
    exact
        The same in exact integers (:mod:`resnet8_eval.integers`); None where the model computes in
        reference arithmetic. It may come from another model of the framework, if the checks hold
        for both: then they stand for the same numbers.

    Returns
    -------
    dict
        As :func:`stored`; ``checks`` of the tensors; and ``exact_integers`` as
        :class:`resnet8_eval.row_record.ExactIntegers`, None where `exact` is.
    """
    found = backend(row.framework).read_back(model, parameters.rounded)
    checks = held(found, parameters, row)
    cause = probable_cause(found, row.framework, as_decided=not failed(checks))
    return {
        **stored(found, row),
        "checks": checks,
        "exact_integers": None if exact is None else disagreement(scores, exact, test, cause),
    }


def stored(found: Sequence[StoredTensor], row: Configuration) -> Record:
    """What a model was found to store: hash of its integers, tensors, bits and needs."""
    return {
        "integers_sha256": integers_sha256(found),
        "tensors": [
            {key: getattr(entry, key) for key in _RECORDED}
            for entry in found
            if entry.kind != "bias"
        ],
        "weights_bits": saturation.weights_bits(found),
        "needs": saturation.needs(found, row.framework, row.execution),
    }


def held(found: Sequence[StoredTensor], parameters: Parameters, row: Configuration) -> list[Check]:
    """Hold what was read back of a model against its parameters, and those against float32."""
    return [*compare(found, parameters, row), compare_weights(parameters)]


def compare(
    found: Sequence[StoredTensor],
    parameters: Parameters,
    row: Configuration,
    levels: Mapping[str, int] = MappingProxyType({}),
) -> list[Check]:
    """Hold weights, activations and biases, as they were read back, against what was decided.

    `levels` are the largest integers of maps that have not 8 bits. A failure names the first tensor
    that differs, and how.
    """
    by_name = {entry.name: entry for entry in found if entry.kind == "weight"}
    weight_zero = 128 if row.weights_dtype == "uint8" else 0
    signed = row.activations_dtype == "int8"
    weights = {
        name: _difference(by_name.get(name), scales, [weight_zero] * len(scales))
        or _other_integers(by_name[name], parameters.integers[name])
        for name, scales in parameters.scales.items()
    }
    stored_biases = {entry.name: entry for entry in found if entry.kind == "bias"}
    constants = parameters.rounded.constants()
    biases = {
        layer.weight: other_bias(stored_biases.get(layer.weight), constants[layer.bias])
        for layer in parameters.rounded.weighted
        if layer.weight in parameters.scales
    }
    ranges = parameters.every_range()
    maps = [(entry.name, entry) for entry in found if entry.kind == "activation"]
    lacking = parameters.activations.keys() - dict(maps)
    activations = []
    for name, entry in [*maps, *((name, None) for name in sorted(lacking))]:
        scale, zero_point = grid(*ranges[name], levels.get(name, 255))
        activations.append((name, _difference(entry, [scale], [zero_point - 128 * signed])))
    return [
        _check("scales, zero points and integers of weights", weights.items()),
        _check("scales and zero points of activations", activations),
        _check("biases", biases.items()),
    ]


def compare_weights(parameters: Parameters) -> Check:
    """Hold the rounded weights against the float32 ones that they stand for.

    Rounding errors of a channel's many weights average out, so the rounded channel, projected on
    the float32 one, has length 1; a wrong scale moves that in proportion, and a swapped axis in
    most channels.
    """
    exact = parameters.exact.weights()
    layers = {layer.weight: layer for layer in parameters.exact.weighted}
    wrong = []
    for name, integers in parameters.integers.items():
        clean = output_first(layers[name], exact[name]).reshape(len(integers), -1)
        rounded = integers.reshape(len(integers), -1) * parameters.scales[name][:, None]
        power = np.square(clean).sum(axis=1)
        # A channel of zeros has no scale to be wrong.
        length = np.where(power > 0, (clean * rounded).sum(axis=1) / np.maximum(power, 1e-30), 1.0)
        steps = STEPS * parameters.scales[name] / np.sqrt(np.maximum(power, 1e-30))
        off = np.abs(length - 1) / np.maximum(PROJECTION, steps)
        worst = int(off.argmax())
        if not off[worst] <= 1:  # NaN is not, either
            wrong.append(f"{name}: channel {worst} is {length[worst]:.3f} times its float32 self")
    return Check(
        "rounded weights against float32",
        f"{len(parameters.integers)} tensors within {PROJECTION:g} of it or {STEPS:g} steps,"
        " channel by channel",
        f"{len(parameters.integers) - len(wrong)} of them"
        + (f"; wrong scale or axis: {wrong[0]}" if wrong else ""),
        not wrong,
    )


def _check(kind: str, differences: Collection[tuple[str, str | None]]) -> Check:
    wrong = [f"{name}: {said}" for name, said in differences if said is not None]
    total = len(differences)
    return Check(
        f"stored {kind}",
        f"{total} tensors as calibration decided them",
        f"{total - len(wrong)} of them" + (f"; first wrong: {wrong[0]}" if wrong else ""),
        not wrong and total > 0,
    )


def _difference(
    entry: StoredTensor | None,
    scales: Sequence[float] | NDArray[np.float32],
    zero_points: Sequence[int],
) -> str | None:
    """How a stored tensor differs from its parameters; None where it does not."""
    if entry is None:
        return "it is not stored as a quantized tensor"
    stored, expected = np.asarray(entry.scales), np.asarray(scales, np.float64)
    if stored.shape != expected.shape:
        return f"{len(stored)} scales along axis {entry.axis}, not {len(expected)}: wrong axis?"
    if entry.wrong_axis:
        return f"scales lie along axis {entry.axis}, which is not the output channels: wrong axis"
    relative = np.abs(stored / expected - 1)
    if not relative.max() <= RELATIVE:  # NaN is not, either
        worst = int(relative.argmax())
        return f"scale {worst} is {stored[worst]:.6g}, not {expected[worst]:.6g}: wrong scale"
    if list(entry.zero_points) != list(zero_points):
        return f"zero point {entry.zero_points[0]}, not {zero_points[0]}"
    return None


def _other_integers(entry: StoredTensor, integers: NDArray[np.int8]) -> str | None:
    """How a stored weight's integers differ from those decided; None where they do not."""
    values = np.asarray(entry.values)
    if values.shape != integers.shape:
        return f"shape {values.shape}, not {integers.shape}"
    wrong = int((values != integers).sum())
    return f"{wrong} of {integers.size} integers are others" if wrong else None


def other_bias(entry: StoredTensor | None, bias: NDArray[np.float32]) -> str | None:
    """How a stored bias differs by more than its rounding; None where it does not."""
    if entry is None:
        return "it is not stored"
    # A float32 bias has no scale and must be equal.
    tolerance = np.asarray(entry.scales or 0.0) * 0.5 * (1 + RELATIVE)
    values = np.asarray(entry.values)
    distance = np.abs(values - bias.astype(np.float64)) - tolerance
    worst = int(distance.argmax())
    if not distance[worst] <= np.spacing(np.abs(bias[worst])):
        return f"bias {worst} is {values[worst]:.6g}, not {bias[worst]:.6g}"
    return None


def disagreement(kernel: Scores, exact: Scores, test: Labelled, cause: str) -> dict[str, Any]:
    """Count the images on which scores of kernels and exact integers, (N, 10), give other classes.

    `cause` is what to look at first where they part.
    """
    answers = exact.argmax(axis=1)
    return {
        "disagreements": int((kernel.argmax(axis=1) != answers).sum()),
        "total": len(answers),
        "correct": int((answers == test.labels).sum()),
        "largest_difference": float(np.abs(probabilities(kernel) - probabilities(exact)).max()),
        "probable_cause": cause,
    }


def probable_cause(found: Sequence[StoredTensor], framework: str, *, as_decided: bool) -> str:
    """What to look at first where kernels and exact integers part.

    `as_decided`: whether everything that was read back is as calibration decided it.
    """
    if saturating := saturation.cause(found, framework):
        return f"8-bit kernels that saturate: {saturating}"
    if not as_decided:
        return (
            "a wrong scale or per-channel axis in the stored model (see the tensors in its proof)"
        )
    return (
        "the kernels: what is stored is as it was decided, so operators run in float, or take other"
        f" steps than exact integers, which are those of {rounding(framework)}"
    )
