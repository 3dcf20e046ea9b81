"""The stages of milestone v1_4; no other milestone needs any of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval import calibration, configurations, lanes, network, stock
from resnet8_eval.advanced import lowbit, mixed, qat
from resnet8_eval.advanced.bits import Bits
from resnet8_eval.advanced.granularity import explore, paired, weight_ranges
from resnet8_eval.analysis import compare
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.tuned import collect
from resnet8_eval.configurations import TUNED, Configuration
from resnet8_eval.inputs import Inputs, Labelled, Settings
from resnet8_eval.preprocess import Feed
from resnet8_eval.store import TRAINING, Record

SEEDS: Final = 3
"""Calibration sets that granularity is explored with, and trainings: the run's seed and those after
it."""
STATISTICS: Final = f"statistics/{TUNED.statistics}"
BASELINE: Final = f"scores/{configurations.baseline().name}"
CHOICE: Final = "mixed/choice"
UNIFORM: Final = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
"""The same bits in every layer: weights and activations."""
CHOSEN: Final = {"mixed-weights": ("weights",), "mixed": ("weights", "activations")}
"""Bits per layer: what is chosen. Where activations are not, they have 8."""
LOW_BIT: Final = (*UNIFORM, *CHOSEN)
EPOCHS: Final = {"W8A8": 1, "W4A8": 1, "W4A4": 3}
"""Of fine-tuning, by bits. The fewer, the more there is to win back."""
FINE_TUNED: Final = tuple(f"{bits}-{k}" for bits in EPOCHS for k in range(SEEDS))
"""Bits and seed: the run's calibration seed and those after it; all start from the run's own."""
SENSITIVITY_IMAGES: Final = 2000
HELD_IMAGES: Final = 12000
"""Training images that costs are measured on, and others that choices are held on."""
DRAWN: Final = 20
"""Points of a front whose divergence is measured to be drawn beside what was predicted."""
Made = tuple[str, str, tuple[str, ...], Callable[[Inputs], Record], dict[str, Any]]
"""Name, lane, needs, what makes it, and what else decides it."""


def explorations() -> list[str]:
    """The stages of ADV-02."""
    pairs = configurations.explored()
    return [_name(tensor, k) for k in range(SEEDS) for tensor, _ in pairs]


def table(settings: Settings, test: dict[str, Any], train: dict[str, Any]) -> list[Made]:
    """Every stage, each behind those that it needs."""
    drawn = {"count": settings.calibration_count, "seed": settings.calibration_seed}
    calibrated = train | test | drawn
    stages: list[Made] = []

    def add(
        stage: str,
        lane: str,
        needs: tuple[str, ...],
        make: Callable[..., Record],
        decided_by: dict[str, Any],
        **given: Any,
    ) -> None:
        stages.append((stage, lane, needs, functools.partial(make, **given), decided_by))

    for bits, k in itertools.product(EPOCHS, range(SEEDS)):  # the longest
        name = f"qat-training/{bits}-{k}"
        add(name, "torch", (STATISTICS,), _trained, calibrated, bits=bits, offset=k)
    for k in range(SEEDS):
        add(f"explored/{k}", "onnxruntime", ("folded",), _explored, calibrated, offset=k)
        needs = ("folded", f"explored/{k}", BASELINE)
        for rows in configurations.explored():
            name, lane = _name(rows[0], k), rows[0].framework
            decided_by = test | {"rows": [asdict(row) for row in rows]}
            add(name, lane, needs, _granularity, decided_by, rows=rows, offset=k)
    add(CHOICE, "torch", (STATISTICS,), _choice, calibrated)
    for name in LOW_BIT:
        add(f"mixed/{name}", "onnxruntime", (CHOICE, BASELINE), _low_bit, test, name=name)
    for bits in EPOCHS:
        of_bits, seeds = f"mixed/{bits}", [f"{bits}-{k}" for k in range(SEEDS)]
        for name in seeds:
            made, stored = f"qat-training/{name}", f"qat/{name}"
            needs = (made, of_bits, BASELINE)
            add(stored, "onnxruntime", needs, _fine_tuned, test, made=made, bits=bits)
            add(f"qat-torch/{name}", "torch", (made, stored), _in_torch, test, made=made, bits=bits)
        every = (*(f"qat/{name}" for name in seeds), of_bits, BASELINE)
        add(f"qat-mean/{bits}", "onnxruntime", every, _mean_of_seeds, test, bits=bits)
    return stages


def _name(row: Configuration, k: int) -> str:
    recipe = row.recipe.name.removesuffix("-per-tensor") if row.recipe else ""
    return f"granularity/{row.framework}-{row.dtype}-{recipe}-{k}"


def _in_test(inputs: Inputs, images: Feed) -> int:
    """How many of some images are test images, pixel for pixel."""
    return calibration.shared(images.pixels, inputs.split("test").images.pixels)


def _explored(inputs: Inputs, *, offset: int) -> Record:
    settings, train = inputs.settings, inputs.split("train")
    seed = settings.calibration_seed + offset
    chosen = calibration.choose(train.labels, settings.calibration_count, seed)
    images = train.images[chosen]
    folded = network.read(inputs.path("folded", "folded.onnx"))
    found = collect(folded, images, TUNED)
    found.save(inputs.out)
    np.save(inputs.out / "images.npy", images.pixels)
    return {
        "seed": seed,
        "in_test": _in_test(inputs, images),
        "fed_sha256": found.observed.fed_sha256,
        "spans": stock.spans(folded, images),
        "ranges": {"as trained": weight_ranges(folded), "equalized": weight_ranges(found.network)},
    }


def _granularity(
    inputs: Inputs, *, rows: tuple[Configuration, Configuration], offset: int
) -> Record:
    explored, test = f"explored/{offset}", inputs.split("test")
    folded, images = inputs.path("folded", "folded.onnx"), inputs.images(explored)
    statistics, told = inputs.statistics(explored), inputs.record(explored)
    (one, tensor), (other, channel) = (
        explore(row, folded, images, told["spans"], statistics, test, inputs.out, inputs.threads)
        for row in rows
    )
    return {
        "seed": told["seed"],
        "cells": [one, other],
        **paired(tensor, channel, inputs.scores(BASELINE), test.labels),
    }


def _choice(inputs: Inputs) -> Record:
    import torch

    torch.set_num_threads(inputs.threads)
    settings, train = inputs.settings, inputs.split("train")
    count, seed = settings.calibration_count, settings.calibration_seed
    rest = len(train.labels) - count
    wanted = [min(n, rest // 4) for n in (SENSITIVITY_IMAGES, HELD_IMAGES)]
    _, free = calibration.split(train.labels, count, seed, sum(wanted))
    free = np.random.default_rng(seed).permutation(free)
    measuring, holding = (np.sort(part) for part in (free[: wanted[0]], free[wanted[0] :]))
    variants = mixed.variants(inputs.statistics(STATISTICS))
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
        decided = variants.at(widths)
        decided.save(inputs.out, f"{name}-")
        lowbit.write(decided, widths, inputs.out / f"{name}.onnx")
    return {
        "measured_on": len(measuring),
        "held_on": len(holding),
        "shared": len(np.intersect1d(measuring, holding)),
        "in_test": _in_test(inputs, train.images[np.union1d(measuring, holding)]),
        "parts": [part.describe() for part in parts],
        "fronts": fronts,
        "bits": {name: asdict(widths) for name, widths in bits.items()},
    }


def _low_bit(inputs: Inputs, *, name: str) -> Record:
    bits = inputs.record(CHOICE)["bits"].get(name)
    if bits is None:
        return {}
    parameters = Parameters.load(inputs.artifacts[CHOICE].folder, f"{name}-")
    return _judged(inputs, inputs.path(CHOICE, f"{name}.onnx"), parameters, Bits(**bits))


def _judged(inputs: Inputs, model: Path, parameters: Parameters, bits: Bits) -> Record:
    baseline, test = inputs.scores(BASELINE), inputs.split("test")
    return lowbit.judge(model, parameters, bits, test, baseline, inputs.out, inputs.threads)


def _trained(inputs: Inputs, *, bits: str, offset: int) -> Record:
    import torch

    from resnet8_eval.advanced.training import Course, train

    torch.set_num_threads(inputs.threads)
    settings, split = inputs.settings, inputs.split("train")
    count, seed = settings.calibration_count, settings.calibration_seed
    training, validating = (
        Labelled(split.images[places], split.labels[places])
        for places in qat.divided(split.labels, count, seed)
    )
    variants = mixed.variants(inputs.statistics(STATISTICS))
    widths = Bits.all(variants.exact, *UNIFORM[bits])
    course = Course(EPOCHS[bits], seed=seed + offset)
    learned, history = train(
        variants.at(widths),
        widths,
        training,
        validating.images,
        course,
        settings.cache_dir / TRAINING,
        lambda line: lanes.say(f"{bits}, seed {course.seed}: {line}"),
    )
    learned = lowbit.with_whole_biases(learned, widths)
    learned.save(inputs.out)
    lowbit.write(learned, widths, inputs.out / "model.onnx")
    return {
        "bits": bits,
        "seed": course.seed,
        "trained_on": len(training.labels),
        "validated_on": len(validating.labels),
        "shared": calibration.shared(validating.images.pixels, training.images.pixels),
        "in_test": _in_test(inputs, training.images),
        "history": history,
        "moved_percent": qat.moved_percent(variants.at(widths), learned),
    }


def _fine_tuned(inputs: Inputs, *, made: str, bits: str) -> Record:
    learned = Parameters.load(inputs.artifacts[made].folder)
    widths = Bits.all(learned.exact, *UNIFORM[bits])
    record = _judged(inputs, inputs.path(made, "model.onnx"), learned, widths)
    scores, untrained = np.load(inputs.out / "scores.npy"), inputs.scores(f"mixed/{bits}")
    beside = compare(scores, untrained, inputs.split("test").labels)
    return {**record, "beside": beside}


def _in_torch(inputs: Inputs, *, made: str, bits: str) -> Record:
    learned = Parameters.load(inputs.artifacts[made].folder)
    widths = Bits.all(learned.exact, *UNIFORM[bits])
    record, scores = qat.in_torch(
        learned, widths, inputs.out / "model.pt", inputs.split("test"), inputs.threads
    )
    stored = inputs.scores(made.replace("qat-training", "qat"))
    other = int((scores.argmax(axis=1) != stored.argmax(axis=1)).sum())
    return {**record, "other_than_onnx": other}


def _mean_of_seeds(inputs: Inputs, *, bits: str) -> Record:
    trained = [inputs.scores(stage) for stage in inputs.artifacts if stage.startswith("qat/")]
    before, baseline = inputs.scores(f"mixed/{bits}"), inputs.scores(BASELINE)
    return qat.mean_of_seeds(trained, before, baseline, inputs.split("test").labels)
