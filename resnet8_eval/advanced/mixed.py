"""Bits per layer, chosen by an exact optimiser from what each layer costs at each width.

A layer's cost at some bits is the divergence of the network from float32 with that layer's weights,
or its maps, at those bits, and everything else in float32. Costs are taken to add up, so for any
budget of bytes the bits of least total cost are known (as in Yao et al. 2021, *HAWQ-V3: Dyadic
Neural Network Quantization*). What a choice really diverges by is measured afterwards, with all of
its layers at once.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import analysis, onnx_graph
from resnet8_eval.advanced.bits import Bits, largest, limit
from resnet8_eval.advanced.lowbit import with_whole_biases
from resnet8_eval.calibrate.parameters import Parameters, Ranges
from resnet8_eval.calibrate.ranges import activation_ranges
from resnet8_eval.calibrate.rounding import round_weights
from resnet8_eval.calibrate.tuned import Statistics
from resnet8_eval.configurations import LOW_BIT, TUNED
from resnet8_eval.evaluate import softmax
from resnet8_eval.network import Network
from resnet8_eval.preprocess import Images
from resnet8_eval.requirements import EQUIVALENCE_MARGIN_PP

WIDTHS: Final = (4, 8)
"""Bits that a file stores without waste."""


@dataclass(frozen=True)
class Part:
    """What has bits of its own: the weights of a layer, or the maps that belong to it.

    These are its output, the sum that this enters and the pooled map. `kind` is ``"weights"`` or
    ``"activations"``; `costs` are bits to divergence in nats with this part alone at those bits,
    `sizes` bits to bytes, of the weights in the file or of the maps of one image.
    """

    layer: str
    kind: str
    costs: dict[int, float]
    sizes: dict[int, int]

    def describe(self) -> dict[str, Any]:
        """Built-in types, with bits as text."""
        widths = {
            str(b): {"kl_nats": cost, "bytes": self.sizes[b]} for b, cost in self.costs.items()
        }
        return {"layer": self.layer, "kind": self.kind, "widths": widths}


class Variants(NamedTuple):
    """The equalized float32 network, and by bits its weights rounded so and its ranges cut so."""

    exact: Network
    weights: dict[int, Parameters]
    activations: dict[int, Ranges]

    def at(self, bits: Bits) -> Parameters:
        """The network with the bits that each layer is to have."""
        values = {width: made.rounded.weights() for width, made in self.weights.items()}
        layers = {layer.weight: layer for layer in self.exact.weighted}
        weights = {
            name: values[width][name]
            for weight, width in bits.weights.items()
            for name in (weight, layers[weight].bias)
        }
        ranges = {name: self.activations[b][name] for name, b in bits.activations.items()}
        ranges[self.exact.input] = self.activations[8][self.exact.input]
        found = Parameters(
            self.exact,
            self.exact.with_weights(weights),
            ranges,
            {name: self.weights[b].scales[name] for name, b in bits.weights.items()},
            {name: self.weights[b].integers[name] for name, b in bits.weights.items()},
        )
        return with_whole_biases(found, bits)


def variants(found: Statistics) -> Variants:
    """Round weights and cut ranges at every one of :data:`WIDTHS`.

    At 8 bits the tuned recipe decides, at fewer :data:`LOW_BIT` and ranges of least error.
    """
    exact, observed, moments = found
    narrow = replace(TUNED, ranges="mse")
    ranges = {
        b: activation_ranges(exact, observed, TUNED if b == 8 else narrow, largest(b))
        for b in WIDTHS
    }
    weights = {
        b: round_weights(exact, moments, ranges[8], TUNED if b == 8 else LOW_BIT, limit(b))
        for b in WIDTHS
    }
    return Variants(exact, weights, ranges)


def sensitivities(made: Variants, images: Images) -> list[Part]:
    """Measure what each part costs at each width, on images that did not calibrate."""
    from resnet8_eval.simulate import Simulation, owners

    exact = made.exact
    eight = Bits.all(exact, 8, 8)
    costs: dict[tuple[str, str], dict[int, float]] = {}

    def measure(kind: str, width: int, parameters: Parameters, levels: dict[str, int]) -> None:
        simulation = Simulation(parameters, levels)
        unchanged, changed = simulation.logits_by_layer(images, ())
        reference = softmax(unchanged)
        for layer, logits in changed.items():
            found = analysis.divergence(softmax(logits), reference)["kl_nats"]
            costs.setdefault((layer, kind), {})[width] = found

    for width in made.weights:
        bits = replace(eight, weights=dict.fromkeys(eight.weights, width))
        measure("weights", width, made.at(bits), {})
    for width in made.activations:
        bits = replace(eight, activations=dict.fromkeys(eight.activations, width))
        in_float = replace(made.at(bits), rounded=exact)
        measure("activations", width, in_float, bits.levels())
    counts = {layer.name: exact.constants()[layer.weight].size for layer in exact.weighted}
    maps, owner = dict.fromkeys(counts, 0), owners(exact)
    shapes = onnx_graph.shapes(exact.model)
    for layer in exact.maps:
        maps[owner[layer.output]] += math.prod(shapes[layer.output][1:])
    sizes = {"weights": counts, "activations": maps}
    return [
        Part(layer, kind, found, {b: -(-sizes[kind][layer] * b // 8) for b in found})
        for (layer, kind), found in costs.items()
        if sizes[kind][layer]  # the scores are no map
    ]


class Choice(NamedTuple):
    """Bits of each part in order, their bytes in all, and the divergence predicted, in nats."""

    bytes: int
    predicted: float
    bits: tuple[int, ...]


def front(parts: Sequence[Part]) -> list[Choice]:
    """Every choice of bits that no other beats in both bytes and divergence, the smallest first.

    Part after part, what another choice of the parts so far beats is dropped: it stays beaten,
    whatever bits the others get (Nemhauser and Ullmann 1969, *Discrete Dynamic Programming and
    Capital Allocation*).
    """
    found = [Choice(0, 0.0, ())]
    for part in parts:
        grown = sorted(
            Choice(one.bytes + part.sizes[b], one.predicted + cost, (*one.bits, b))
            for one in found
            for b, cost in part.costs.items()
        )
        lowest = [math.inf, *itertools.accumulate((one.predicted for one in grown), min)]
        found = [one for one, before in zip(grown, lowest, strict=False) if one.predicted < before]
    return found


def as_bits(network: Network, parts: Sequence[Part], chosen: Choice) -> Bits:
    """A choice by the network's names; what was not to be chosen keeps 8 bits."""
    from resnet8_eval.simulate import owners

    bits = zip(parts, chosen.bits, strict=True)
    of_layer = {(part.layer, part.kind): b for part, b in bits}
    owner = owners(network)
    return Bits(
        {layer.weight: of_layer.get((layer.name, "weights"), 8) for layer in network.weighted},
        {
            layer.output: of_layer.get((owner[layer.output], "activations"), 8)
            for layer in network.maps
        },
    )


class Held:
    """Choices, held against float32 on training images that did not calibrate.

    `before` are the float network's probabilities, float32 (N, 10).
    """

    def __init__(self, made: Variants, images: Images, labels: NDArray[np.integer]) -> None:
        from resnet8_eval.simulate import Simulation

        self.made, self._images, self._labels = made, images, labels
        eight = Bits.all(made.exact, 8, 8)
        self.before = softmax(Simulation(made.at(eight), {}).logits(images, ()))

    def hold(self, bits: Bits) -> dict[str, Any]:
        """Hold a choice against float32.

        It passes if the whole paired interval of the difference lies within half of the margin that
        makes a network *equivalent*: networks err half as often on training images as on others.

        The result is as :class:`resnet8_eval.advanced_record.HeldPoint`, without its place.
        """
        from resnet8_eval.simulate import Simulation

        after = softmax(Simulation(self.made.at(bits), bits.levels()).logits(self._images))
        found = analysis.compare(after, self.before, self._labels)
        return {
            "images": len(after),
            "kl_nats": found["divergence"]["kl_nats"],
            **{k: found[k] for k in ("agreement_percent", "lost", "gained", "delta_ci95_pp")},
            "passes": max(map(abs, found["delta_ci95_pp"])) <= EQUIVALENCE_MARGIN_PP / 2,
        }


def search(
    parts: Sequence[Part], held: Held, drawn: Held, count: int
) -> tuple[dict[str, Any], Bits | None]:
    """The whole front of size against divergence, and the smallest choice on it that `held` passes.

    For the picture, the divergence of `count` points is measured on `drawn`.

    Returns
    -------
    front : dict
        As :class:`resnet8_eval.advanced_record.Front`.
    bits : Bits or None
        Those of the chosen point.
    """
    network = held.made.exact
    found = front(parts)
    points: list[dict[str, Any]] = [
        {"bits": list(one.bits), "bytes": one.bytes, "predicted": one.predicted, "measured": None}
        for one in found
    ]
    for place in np.unique(np.linspace(0, len(found) - 1, count).round().astype(int)).tolist():
        bits = as_bits(network, parts, found[place])
        points[place]["measured"] = drawn.hold(bits)["kl_nats"]
    said: dict[int, dict[str, Any]] = {}

    def passes(place: int) -> bool:
        said[place] = held.hold(as_bits(network, parts, found[place]))
        return bool(said[place]["passes"])

    chosen_place = smallest(len(found), passes)
    return {
        "parts": [{"layer": part.layer, "kind": part.kind} for part in parts],
        "points": points,
        "held": [{"point": place, **record} for place, record in sorted(said.items())],
        "chosen": chosen_place,
    }, None if chosen_place is None else as_bits(network, parts, found[chosen_place])


def smallest(count: int, passes: Callable[[int], bool]) -> int | None:
    """The place of the smallest of `count` choices of a front that passes, found by halving.

    Of a front, predicted costs fall as sizes grow. Looking at each choice in turn, until one passes
    by chance, would pick that one.
    """
    place = bisect.bisect_left(range(count), True, key=passes)
    return place if place < count else None
