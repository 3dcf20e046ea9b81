"""The stages of milestone v1_4; no other milestone needs any of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from resnet8_eval import configurations
from resnet8_eval.configurations import TUNED, Configuration
from resnet8_eval.inputs import Inputs, Settings
from resnet8_eval.store import Record

SEEDS: Final = 3
"""Calibration sets that granularity is explored with: the run's seed and those after it."""
STATISTICS: Final = f"statistics/{TUNED.statistics}"
CHOICE: Final = "mixed/choice"
UNIFORM: Final = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
"""The same bits in every layer: weights and activations."""
CHOSEN: Final = {"mixed-weights": ("weights",), "mixed": ("weights", "activations")}
"""Bits per layer: what is chosen. Where activations are not, they have 8."""
LOW_BIT: Final = (*UNIFORM, *CHOSEN)
SENSITIVITY_IMAGES: Final = 2000
HELD_IMAGES: Final = 12000
"""Training images that costs are measured on, and others that choices are held on."""
DRAWN: Final = 20
"""Points of a front whose divergence is measured to be drawn beside what was predicted."""
Made = tuple[str, str, tuple[str, ...], Callable[[Inputs, Path], Record], dict[str, Any]]
"""Name, lane, needs, what makes it, and what else decides it."""


def explorations() -> list[str]:
    """The stages of ADV-02."""
    pairs = configurations.explored()
    return [_name(tensor, k) for k in range(SEEDS) for tensor, _ in pairs]


def table(settings: Settings, test: dict[str, Any], train: dict[str, Any]) -> list[Made]:
    """Every stage, each behind those that it needs."""
    baseline = f"scores/{configurations.baseline().name}"
    drawn = {"count": settings.calibration_count, "seed": settings.calibration_seed}
    stages: list[Made] = []
    for k in range(SEEDS):
        make = functools.partial(_explored, offset=k)
        stages.append((f"explored/{k}", "onnxruntime", ("folded",), make, train | drawn))
        for tensor, channel in configurations.explored():
            stages.append(
                (
                    _name(tensor, k),
                    tensor.framework,
                    ("folded", f"explored/{k}", baseline),
                    functools.partial(_granularity, rows=(tensor, channel), offset=k),
                    test | {"rows": [tensor.describe(), channel.describe()]},
                )
            )
    stages.append((CHOICE, "torch", (STATISTICS,), _choice, train | drawn))
    for name in LOW_BIT:
        make, needs = functools.partial(_low_bit, name=name), (STATISTICS, CHOICE, baseline)
        stages.append((f"mixed/{name}", "onnxruntime", needs, make, test))
    return stages


def _name(row: Configuration, k: int) -> str:
    recipe = row.recipe.name.removesuffix("-per-tensor") if row.recipe else ""
    return f"granularity/{row.framework}-{row.dtype}-{recipe}-{k}"


def _explored(inputs: Inputs, out: Path, *, offset: int) -> Record:
    import numpy as np

    from resnet8_eval import calibration, network
    from resnet8_eval.advanced.granularity import weight_ranges
    from resnet8_eval.calibrate.tuned import collect

    settings, train = inputs.settings, inputs.split("train")
    seed = settings.calibration_seed + offset
    chosen = calibration.choose(train.labels, settings.calibration_count, seed)
    images = train.images[chosen.indices]
    folded = network.read(inputs.path("folded", "folded.onnx"))
    found = collect(folded, images, TUNED)
    found.save(out)
    np.save(out / "images.npy", images.pixels)
    return {
        "seed": seed,
        "indices_sha256": chosen.indices_sha256,
        "fed_sha256": found.observed.fed_sha256,
        "ranges": {
            "as trained": weight_ranges(folded),
            "equalized": weight_ranges(found.network),
        },
    }


def _granularity(
    inputs: Inputs, out: Path, *, rows: tuple[Configuration, Configuration], offset: int
) -> Record:
    import numpy as np

    from resnet8_eval.advanced.granularity import explore, paired
    from resnet8_eval.calibrate.tuned import Statistics

    explored = inputs.artifacts[f"explored/{offset}"]
    found = [
        explore(
            row,
            inputs.path("folded", "folded.onnx"),
            inputs.images(f"explored/{offset}"),
            Statistics.load(explored.folder, explored.record["fed_sha256"]),
            inputs.split("test"),
            out,
            inputs.threads,
        )
        for row in rows
    ]
    baseline = np.load(inputs.path(f"scores/{configurations.baseline().name}", "scores.npy"))
    (_, tensor), (_, channel) = found
    return {
        "seed": explored.record["seed"],
        "cells": [record for record, _ in found],
        **paired(tensor, channel, baseline, inputs.split("test").labels),
    }


def _choice(inputs: Inputs, out: Path) -> Record:
    import numpy as np
    import torch

    from resnet8_eval import calibration
    from resnet8_eval.advanced import lowbit, mixed
    from resnet8_eval.advanced.bits import Bits
    from resnet8_eval.calibrate.tuned import Statistics

    torch.set_num_threads(inputs.threads)
    settings, train = inputs.settings, inputs.split("train")
    count, seed = settings.calibration_count, settings.calibration_seed
    rest = len(train.labels) - count
    wanted = [min(n, rest // 4) for n in (SENSITIVITY_IMAGES, HELD_IMAGES)]
    _, free = calibration.split(train.labels, count, seed, sum(wanted))
    free = np.random.default_rng(seed).permutation(free)
    measuring, holding = (np.sort(part) for part in (free[: wanted[0]], free[wanted[0] :]))
    made = inputs.artifacts[STATISTICS]
    variants = mixed.variants(Statistics.load(made.folder, made.record["fed_sha256"]))
    parts = mixed.sensitivities(variants, train.images[measuring])
    held = mixed.Held(variants, train.images[holding], train.labels[holding])
    drawn = mixed.Held(variants, train.images[measuring], train.labels[measuring])
    fronts, bits = {}, {k: Bits.all(variants.exact, *v) for k, v in UNIFORM.items()}
    for name, kinds in CHOSEN.items():
        chosen = [part for part in parts if part.kind in kinds]
        fronts[name], found = mixed.search(chosen, held, drawn, DRAWN)
        if found is not None:
            bits[name] = found
    for name, widths in bits.items():
        lowbit.write(variants.at(widths), widths, out / f"{name}.onnx")
        integers: dict[str, Any] = {**variants.at(widths).integers}
        np.savez(out / f"{name}.npz", **integers)
    return {
        "measured_on": len(measuring),
        "held_on": len(holding),
        "shared": len(np.intersect1d(measuring, holding)),
        "parts": [part.describe() for part in parts],
        "fronts": fronts,
        "bits": {name: asdict(widths) for name, widths in bits.items()},
    }


def _low_bit(inputs: Inputs, out: Path, *, name: str) -> Record:
    import numpy as np

    from resnet8_eval import network
    from resnet8_eval.advanced import lowbit
    from resnet8_eval.advanced.bits import Bits
    from resnet8_eval.calibrate.parameters import EXACT

    bits = inputs.record(CHOICE)["bits"].get(name)
    if bits is None:
        return {"found": False}
    with np.load(inputs.path(CHOICE, f"{name}.npz")) as integers:
        return lowbit.judge(
            inputs.path(CHOICE, f"{name}.onnx"),
            network.read(inputs.path(STATISTICS, EXACT)),
            Bits(**bits),
            dict(integers),
            inputs.split("test"),
            np.load(inputs.path(f"scores/{configurations.baseline().name}", "scores.npy")),
            out,
            inputs.threads,
        )
