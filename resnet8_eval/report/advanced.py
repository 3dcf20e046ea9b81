"""Milestone v1_4: granularity, bits per layer, and fine-tuning."""

from __future__ import annotations

import math
from typing import Any, Final

from resnet8_eval.advanced_record import (
    Advanced,
    FineTuned,
    Front,
    Granularity,
    MeanOfSeeds,
    Mixed,
)
from resnet8_eval.record import Results
from resnet8_eval.report import words
from resnet8_eval.report.charts import Axis, Drawing
from resnet8_eval.report.layers import short_names
from resnet8_eval.requirements import FINE_TUNED_WITHIN_PP

GRANULARITY: Final = (
    "Quantizer and cell",
    "Seed",
    "Accuracy, %: per tensor → per channel",
    "Change, pp",
    "95 % interval, pp",
    "Lost/gained",
    "McNemar p",
    "Agreement with the baseline, %: per tensor → per channel",
)
LOW_BIT: Final = (
    "Bits",
    "Accuracy, %",
    "Correct",
    "Delta, pp",
    "95 % interval, pp",
    "Verdict",
    "Agreement, %",
    "Weights, bytes",
    "Exact integers differ on",
)
FINE_TUNED: Final = (
    "Bits",
    "Seed",
    "Accuracy, %",
    "Correct",
    "Delta, pp",
    "95 % interval, pp",
    "Agreement, %",
    "Over no training, pp",
    "95 % interval, pp",
    "McNemar p",
    "KL on validation images: before → after",
    "Exact integers differ on",
    "PyTorch: correct",
    "PyTorch: other class than ONNX Runtime",
)
MEANS: Final = (
    "Bits",
    "Seeds",
    "Mean accuracy, %",
    "Delta, pp",
    "Target, pp",
    "Over no training, pp",
    "95 % interval, pp",
)
_HEIGHT: Final = 250


def advanced(results: Results) -> dict[str, Any] | None:
    """Everything that the section shows; None where nothing was measured."""
    found = results.advanced
    if found is None:
        return None
    mixed = found.mixed
    return {
        "granularity_headers": GRANULARITY,
        "granularity": [_granularity(entry) for entry in found.granularity],
        "ranges": ranges(found),
        "mixed": mixed,
        "low_bit_headers": LOW_BIT,
        "low_bit": low_bit(mixed) if mixed else [],
        "fronts": {name: front(entry) for name, entry in mixed.fronts.items()} if mixed else {},
        "bits": bits(mixed) if mixed else None,
        "fine_tuned_headers": FINE_TUNED,
        "fine_tuned": [_fine_tuned(row) for row in found.fine_tuned],
        "training": found.fine_tuned[0].training if found.fine_tuned else None,
        "said": next((row.torch.said for row in found.fine_tuned if row.torch), None),
        "means_headers": MEANS,
        "means": [_mean(mean) for mean in found.means],
    }


def _fine_tuned(row: FineTuned) -> list[str]:
    other = row.torch
    history = row.training.history
    return [
        row.name.rpartition("-")[0],
        str(row.training.seed),
        words.percent(row.accuracy_percent),
        f"{row.correct}/{row.total}",
        words.signed(row.delta_pp),
        words.delta_interval(row.delta_ci95_pp),
        words.percent(row.agreement_percent),
        words.signed(row.beside.delta_pp),
        words.delta_interval(row.beside.delta_ci95_pp),
        words.p_value(row.beside.mcnemar_p),
        f"{history[0].kl_nats:.4f} → {history[-1].kl_nats:.4f}",
        f"{row.disagreements}/{row.total}",
        f"{other.correct}/{other.total}" if other else "",
        f"{other.other_than_onnx}/{other.total}" if other else "",
    ]


def _mean(mean: MeanOfSeeds) -> list[str]:
    within = FINE_TUNED_WITHIN_PP.get(mean.bits)
    return [
        mean.bits,
        str(mean.seeds),
        words.percent(mean.accuracy_percent),
        words.signed(mean.delta_pp),
        "no worse" if within is None else f"{words.signed(-within)} and better",
        words.signed(mean.gain_pp),
        words.delta_interval(mean.gain_ci95_pp),
    ]


def _granularity(entry: Granularity) -> list[str]:
    one, other = entry.cells
    before, after = (100 * cell.correct / cell.total for cell in entry.cells)
    alike = [entry.from_baseline[cell.granularity].agreement_percent for cell in entry.cells]
    del other
    return [
        words.plain(one.name.removesuffix("-per-tensor")),
        str(entry.seed),
        f"{words.percent(before)} → {words.percent(after)}",
        words.signed(entry.delta_pp),
        words.delta_interval(entry.delta_ci95_pp),
        f"{entry.lost}/{entry.gained}",
        words.p_value(entry.mcnemar_p),
        " → ".join(map(words.percent, alike)),
    ]


def low_bit(mixed: Mixed) -> list[list[str]]:
    """One line for each stored network of few bits; columns as :data:`LOW_BIT`."""
    whole = next((row.weights_bytes for row in mixed.rows if row.name == "W8A8"), None)
    return [
        [
            words.plain(row.name),
            words.percent(row.accuracy_percent),
            f"{row.correct}/{row.total}",
            words.signed(row.delta_pp),
            words.delta_interval(row.delta_ci95_pp),
            row.word,
            words.percent(row.agreement_percent),
            f"{row.weights_bytes}"
            + (f" ({100 * row.weights_bytes / whole:.1f} % of W8A8)" if whole else ""),
            f"{row.disagreements}/{row.total}",
        ]
        for row in mixed.rows
    ]


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


def ranges(found: Advanced) -> Drawing | None:
    """Each channel's largest weight as a dot, layer by layer, before and after equalization."""
    if not found.ranges:
        return None
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
