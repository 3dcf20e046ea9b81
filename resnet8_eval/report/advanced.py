"""Milestone v1_4: granularity, bits per layer, and fine-tuning."""

from __future__ import annotations

import math
from typing import Any, Final

from resnet8_eval.advanced_record import Advanced, Front, LowBit, Mixed
from resnet8_eval.report import tables, words
from resnet8_eval.report.charts import Axis, Drawing
from resnet8_eval.report.layers import short_names
from resnet8_eval.report.tables import Table
from resnet8_eval.requirements import FINE_TUNED_WITHIN_PP

_HEIGHT: Final = 250


def granularity(found: Advanced) -> Table:
    """A line for each quantizer, cell and seed: per-tensor weights against per-channel ones."""
    return tables.of_pairs(
        (
            ("Quantizer and cell", words.plain(entry.cells[0].name.removesuffix("-per-tensor"))),
            ("Seed", str(entry.seed)),
            (
                "Accuracy, %: per tensor → per channel",
                " → ".join(words.percent(100 * one.correct / one.total) for one in entry.cells),
            ),
            ("Change, pp", words.signed(entry.delta_pp)),
            ("95 % interval, pp", words.delta_interval(entry.delta_ci95_pp)),
            ("Lost/gained", f"{entry.lost}/{entry.gained}"),
            ("McNemar p", words.p_value(entry.mcnemar_p)),
            (
                "Agreement with the baseline, %: per tensor → per channel",
                " → ".join(
                    words.percent(entry.from_baseline[one.granularity].agreement_percent)
                    for one in entry.cells
                ),
            ),
        )
        for entry in found.granularity
    )


def low_bit(mixed: Mixed) -> Table:
    """A line for each stored network of few bits."""
    whole = next((row.weights_bytes for row in mixed.rows if row.name == "W8A8"), None)
    return tables.of_pairs(
        (
            ("Bits", words.plain(row.name)),
            *_scored(row),
            ("Verdict", row.word),
            ("Agreement, %", words.percent(row.agreement_percent)),
            (
                "Weights, bytes",
                f"{row.weights_bytes}"
                + (f" ({100 * row.weights_bytes / whole:.1f} % of W8A8)" if whole else ""),
            ),
            ("Exact integers differ on", f"{row.disagreements}/{row.total}"),
        )
        for row in mixed.rows
    )


def _scored(row: LowBit) -> tuple[tuple[str, str], ...]:
    return (
        ("Accuracy, %", words.percent(row.accuracy_percent)),
        ("Correct", f"{row.correct}/{row.total}"),
        ("Delta, pp", words.signed(row.delta_pp)),
        ("95 % interval, pp", words.delta_interval(row.delta_ci95_pp)),
    )


def fine_tuned(found: Advanced) -> Table:
    """A line for each training."""
    return tables.of_pairs(
        (
            ("Bits", row.name.rpartition("-")[0]),
            ("Seed", str(row.training.seed)),
            *_scored(row),
            ("Agreement, %", words.percent(row.agreement_percent)),
            ("Over no training, pp", words.signed(row.beside.delta_pp)),
            ("95 % interval, pp", words.delta_interval(row.beside.delta_ci95_pp)),
            ("McNemar p", words.p_value(row.beside.mcnemar_p)),
            (
                "KL on validation images: before → after",
                " → ".join(f"{row.training.history[k].kl_nats:.4f}" for k in (0, -1)),
            ),
            ("Exact integers differ on", f"{row.disagreements}/{row.total}"),
            ("PyTorch: correct", f"{other.correct}/{other.total}" if other else ""),
            (
                "PyTorch: other class than ONNX Runtime",
                f"{other.other_than_onnx}/{other.total}" if other else "",
            ),
        )
        for row in found.fine_tuned
        for other in [row.torch]
    )


def means(found: Advanced) -> Table:
    """A line for each number of bits: the mean of its trainings."""
    return tables.of_pairs(
        (
            ("Bits", mean.bits),
            ("Seeds", str(mean.seeds)),
            ("Mean accuracy, %", words.percent(mean.accuracy_percent)),
            ("Delta, pp", words.signed(mean.delta_pp)),
            (
                "Target, pp",
                f"{words.signed(-FINE_TUNED_WITHIN_PP[mean.bits])} and better"
                if mean.bits in FINE_TUNED_WITHIN_PP
                else "no worse",
            ),
            ("Over no training, pp", words.signed(mean.gain_pp)),
            ("95 % interval, pp", words.delta_interval(mean.gain_ci95_pp)),
        )
        for mean in found.means
    )


def front(found: Front) -> Drawing:
    """Size against divergence, predicted as a line and measured as dots."""
    top, bottom = 16, _HEIGHT
    sizes = Axis([point.bytes / 1000 for point in found.points], margin=0.05)
    told = [
        value
        for point in found.points
        for value in (point.predicted, point.measured)
        if value is not None and value > 0
    ]
    costs = Axis([math.log10(value) for value in told], margin=0.05)

    def y(value: float) -> float:
        return round(bottom - costs.share(math.log10(max(value, min(told)))) * (bottom - top), 2)

    points = [
        {
            "x": sizes.percent(point.bytes / 1000),
            "predicted": y(point.predicted),
            "measured": None if point.measured is None else y(point.measured),
            "chosen": place == found.chosen,
            "title": f"{point.bytes} bytes, predicted {point.predicted:.4g} nats"
            + ("" if point.measured is None else f", measured {point.measured:.4g}"),
        }
        for place, point in enumerate(found.points)
    ]
    powers = range(math.ceil(costs.low), math.floor(costs.high) + 1)
    return {
        "height": bottom + 38,
        "bottom": bottom,
        "points": points,
        "x_ticks": [{"x": sizes.percent(v), "label": f"{v:g}"} for v in sizes.ticks(6)],
        "y_ticks": [{"y": y(10.0**n), "label": f"{10.0**n:g}"} for n in powers],
    }


def bits(mixed: Mixed) -> dict[str, Any]:
    """The network as a table: bits of each layer's weights and maps in each choice."""
    layers = list(dict.fromkeys(part.layer for part in mixed.parts))
    chosen = {
        name: dict(
            zip(
                [(part.layer, part.kind) for part in entry.parts],
                entry.points[entry.chosen].bits,
                strict=True,
            )
        )
        for name, entry in mixed.fronts.items()
        if entry.chosen is not None
    }
    sizes = {
        part.layer: max(width.bytes for width in part.widths.values())
        for part in mixed.parts
        if part.kind == "weights"
    }
    shown = short_names(layers)
    return {
        "columns": list(chosen),
        "rows": [
            {
                "name": shown[layer],
                "title": layer,
                "bytes": sizes.get(layer, 0),
                "cells": [
                    (entry.get((layer, "weights"), 8), entry.get((layer, "activations"), 8))
                    for entry in chosen.values()
                ],
            }
            for layer in layers
        ],
    }


def ranges(found: Advanced) -> Drawing:
    """Each channel's largest weight as a dot, layer by layer, before and after equalization."""
    every = [
        value
        for layers in found.ranges.values()
        for layer in layers
        for value in layer.largest
        if value > 0
    ]
    axis, step, top = Axis(map(math.log10, every), margin=0.15), 26, 8
    first = next(iter(found.ranges.values()))
    names = short_names([layer.name for layer in first])
    rows = [
        {
            "label": names[layer.name],
            "y": top + step * place + step // 2,
            "marks": [
                {
                    "kind": kind,
                    "dy": -4 if kind else 4,
                    "places": [axis.percent(math.log10(v)) for v in same.largest if v > 0],
                }
                for kind, layers in enumerate(found.ranges.values())
                for same in [layers[place]]
            ],
        }
        for place, layer in enumerate(first)
    ]
    powers = range(math.ceil(axis.low), math.floor(axis.high) + 1)
    return {
        "height": top + step * len(rows) + 36,
        "bottom": top + step * len(rows),
        "rows": rows,
        "kinds": list(found.ranges),
        "ticks": [{"x": axis.percent(n), "label": f"{10.0**n:g}"} for n in powers],
    }
