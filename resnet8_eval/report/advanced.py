"""Milestone v1_4: the scales of its drawings, and the bits that were chosen layer by layer."""

from __future__ import annotations

import math

from resnet8_eval.advanced_record import Advanced, Front, Mixed
from resnet8_eval.report.charts import Axis


def scales(front: Front) -> tuple[Axis, Axis]:
    """Of size in kB and of divergence in nats; what is not above zero stands at the least."""
    found = [value for point in front.points for value in (point.predicted, point.measured)]
    told = [value for value in found if value is not None and value > 0]
    return (
        Axis([point.bytes / 1000 for point in front.points], margin=0.05),
        Axis(told, margin=0.05, scale=lambda value: math.log10(max(value, min(told)))),
    )


def largest_weights(found: Advanced) -> Axis:
    """The scale of the largest weight of every channel, before and after equalization."""
    every = [
        value
        for layers in found.ranges.values()
        for layer in layers
        for value in layer.largest
        if value > 0
    ]
    return Axis(every, margin=0.15, scale=math.log10)


def bits(mixed: Mixed) -> dict[str, dict[tuple[str, str], int]]:
    """Bits by choice, layer, and weights or activations, where something was chosen."""
    return {
        name: {
            (part.layer, part.kind): width
            for part, width in zip(front.parts, front.points[front.chosen].bits, strict=True)
        }
        for name, front in mixed.fronts.items()
        if front.chosen is not None
    }


def layers(mixed: Mixed) -> dict[str, int]:
    """Each layer, with the bytes of its weights at the most bits; 0 where it has none."""
    found = dict.fromkeys((part.layer for part in mixed.parts), 0)
    for part in mixed.parts:
        if part.kind == "weights":
            found[part.layer] = max(width.bytes for width in part.widths.values())
    return found
