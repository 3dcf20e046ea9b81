"""What the requirement tests of v1_4 say of records that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from resnet8_eval import configurations
from resnet8_eval.advanced import stages as advanced
from resnet8_eval.checks import equal
from resnet8_eval.requirements import BY_ID
from resnet8_eval.verdicts import Judge, shortfall
from tests.acceptance import test_adv

Records = dict[str, Any]


def honest() -> Records:
    """Records that meet all three requirements."""
    records: Records = {"scores/keras-float32": {"total": 100, "accuracy_percent": 87.0}}
    stages = iter(advanced.explorations())
    for seed in range(advanced.SEEDS):
        records[f"explored/{seed}"] = {"seed": seed, "in_test": 0}
        for pair in configurations.explored():
            cells = [
                {
                    "name": row.name,
                    "granularity": row.recipe.granularity,
                    "scales": [1, 1] if row.recipe.granularity == "per-tensor" else [1, 64],
                    "total": 100,
                    "weights": [row.weights_dtype],
                    "activations": [row.activations_dtype],
                    "checks": [asdict(equal("scales", 1, 1))],
                }
                for row in pair
                if row.recipe
            ]
            records[next(stages)] = {"seed": seed, "cells": cells}
    points = [{"bytes": 50, "predicted": 0.2}, {"bytes": 100, "predicted": 0.1}]
    bits = {name: {"activations": {"map": 8}} for name in advanced.LOW_BIT}
    fronts = {"mixed-weights": {"points": points}}
    records[advanced.CHOICE] = {"shared": 0, "in_test": 0, "fronts": fronts, "bits": bits}
    for name in advanced.LOW_BIT:
        records[f"mixed/{name}"] = {
            "checks": [asdict(equal("types", 1, 1))],
            "exact_integers": {"disagreements": 0, "total": 100},
            "word": "equivalent",
            "weights_bytes": 100 if name == "W8A8" else 60,
        }
    for name in advanced.FINE_TUNED:
        label, k = name.split("-")
        records[f"qat-training/{name}"] = {
            "bits": label,
            "seed": int(k),
            "shared": 0,
            "in_test": 0,
            "history": [{}] * (advanced.EPOCHS[label] + 1),
            "moved_percent": 12.5,
        }
        checks = [asdict(equal("types", 1, 1))]
        records[f"qat/{name}"] = {
            "model_sha256": name,
            "checks": checks,
            "exact_integers": {"disagreements": 0, "total": 100},
        }
        records[f"qat-torch/{name}"] = {"disagreements": 0, "checks": checks}
    for label in advanced.EPOCHS:
        mean = {"delta_pp": -0.1, "gain_pp": 0.5, "gain_ci95_pp": [0.1, 0.9]}
        records[f"qat-mean/{label}"] = mean
    return records


def said(requirement_id: str, records: Records) -> str:
    """Why the requirement is not met by these records; empty where it is."""
    run = SimpleNamespace(
        artifact=lambda stage: SimpleNamespace(record=records[stage]),
        settings=SimpleNamespace(calibration_seed=0),
    )
    test = {
        "ADV-01": test_adv.test_adv_01_quantization_aware_training,
        "ADV-02": test_adv.test_adv_02_granularity,
        "ADV-03": test_adv.test_adv_03_mixed_precision,
    }
    item = cast("pytest.Item", SimpleNamespace(user_properties=[]))
    test[requirement_id](Judge(item, BY_ID[requirement_id]), cast("Any", run))
    return shortfall(BY_ID[requirement_id], item.user_properties)


@pytest.mark.parametrize("requirement_id", ["ADV-01", "ADV-02", "ADV-03"])
def test_honest_records_meet_them(requirement_id: str) -> None:
    assert said(requirement_id, honest()) == ""


def first(records: Records) -> Records:
    """The first exploration."""
    return cast("Records", records[advanced.explorations()[0]])


FAULTS: dict[str, tuple[str, Callable[[Records], object], str]] = {
    "a training image among those that validate": (
        "ADV-01",
        lambda r: r["qat-training/W4A4-1"].update(shared=1),
        "W4A4-1, validating images that trained as well",
    ),
    "a test image among those that train": (
        "ADV-01",
        lambda r: r["qat-training/W4A8-0"].update(in_test=1),
        "W4A8-0, training images that are test images",
    ),
    "nothing was trained": (
        "ADV-01",
        lambda r: r["qat-training/W4A4-0"].update(moved_percent=0.0),
        "W4A4-0, weights that training changed",
    ),
    "a training that was not finished": (
        "ADV-01",
        lambda r: r["qat-training/W4A4-0"]["history"].pop(),
        "W4A4-0, epochs",
    ),
    "other bits than its label": (
        "ADV-01",
        lambda r: r["qat-training/W4A4-0"].update(bits="W8A8"),
        "W4A4-0, bits",
    ),
    "one training for all seeds": (
        "ADV-01",
        lambda r: [r[f"qat/{name}"].update(model_sha256="") for name in advanced.FINE_TUNED],
        "stored networks that differ",
    ),
    "the seed of another": (
        "ADV-01",
        lambda r: r["qat-training/W4A8-2"].update(seed=0),
        "W4A8-2, seed",
    ),
    "a fine-tuned file that stores something else": (
        "ADV-01",
        lambda r: r["qat/W4A4-2"].update(checks=[asdict(equal("bits of a layer", 4, 8))]),
        "W4A4-2, bits of a layer",
    ),
    "a PyTorch file that stores something else": (
        "ADV-01",
        lambda r: r["qat-torch/W8A8-2"].update(checks=[asdict(equal("grids", 1, 2))]),
        "W8A8-2, grids",
    ),
    "a PyTorch file that computes something else": (
        "ADV-01",
        lambda r: r["qat-torch/W8A8-0"].update(disagreements=1),
        "exact integers class otherwise, PyTorch",
    ),
    "too much lost": (
        "ADV-01",
        lambda r: r["qat-mean/W4A4"].update(delta_pp=-1.51),
        "measured 4",
    ),
    "no better than without training": (
        "ADV-01",
        lambda r: r["qat-mean/W4A8"].update(gain_ci95_pp=[-0.01, 0.9]),
        "W4A8, gain over no training",
    ),
    "8 bits worse than without training": (
        "ADV-01",
        lambda r: r["qat-mean/W8A8"].update(gain_ci95_pp=[-0.5004, 0.1]),
        "95 % interval above -0.5, observed +0.50 [-0.5004, +0.1000]",
    ),
    "per-tensor under a per-channel label": (
        "ADV-02",
        lambda r: first(r)["cells"][1].update(scales=[1, 1]),
        "more than 1 in some layer",
    ),
    "per-channel under a per-tensor label": (
        "ADV-02",
        lambda r: first(r)["cells"][0].update(scales=[1, 64]),
        "weight scales of a layer",
    ),
    "another type": (
        "ADV-02",
        lambda r: first(r)["cells"][0].update(weights=["uint8"]),
        "stored types",
    ),
    "a model that stores another scale": (
        "ADV-02",
        lambda r: first(r)["cells"][1].update(checks=[asdict(equal("a scale", 1, 2))]),
        "seed 0, a scale",
    ),
    "fewer images": ("ADV-02", lambda r: first(r)["cells"][0].update(total=99), "images scored"),
    "one seed for all": (
        "ADV-02",
        lambda r: [r[stage].update(seed=0) for stage in advanced.explorations()],
        "calibration seeds",
    ),
    "a test image among those that calibrate": (
        "ADV-02",
        lambda r: r["explored/1"].update(in_test=1),
        "seed 1, calibration images that are test images",
    ),
    "a cell that is not there": ("ADV-02", lambda r: first(r)["cells"].pop(), "cells explored"),
    "an image that measured and held": (
        "ADV-03",
        lambda r: r["mixed/choice"].update(shared=1),
        "as well",
    ),
    "a test image among those that choose": (
        "ADV-03",
        lambda r: r["mixed/choice"].update(in_test=1),
        "held choices and are test images",
    ),
    "a file that stores something else": (
        "ADV-03",
        lambda r: r["mixed/mixed"].update(checks=[asdict(equal("bits of a layer", 4, 8))]),
        "mixed, bits of a layer",
    ),
    "a file that computes something else": (
        "ADV-03",
        lambda r: r["mixed/W4A4"]["exact_integers"].update(disagreements=1),
        "W4A4, share of 100 images",
    ),
    "not equivalent on the test split": (
        "ADV-03",
        lambda r: r["mixed/mixed-weights"].update(word="inconclusive"),
        "on the test split",
    ),
    "nothing found": (
        "ADV-03",
        lambda r: r.update({f"mixed/{name}": {} for name in advanced.CHOSEN}),
        "on the test split",
    ),
    "no smaller": (
        "ADV-03",
        lambda r: [r[f"mixed/{name}"].update(weights_bytes=100) for name in advanced.CHOSEN],
        "measured 100.00 %",
    ),
    "a front that is none": (
        "ADV-03",
        lambda r: r["mixed/choice"]["fronts"]["mixed-weights"]["points"][0].update(predicted=0.05),
        "in order of size",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told(fault: str) -> None:
    requirement_id, plant, words = FAULTS[fault]
    records = honest()
    plant(records)
    assert words in said(requirement_id, records)
