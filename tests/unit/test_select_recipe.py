"""The recipe is chosen on training images alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resnet8_eval import cifar10
from resnet8_eval.calibration import split
from resnet8_eval.cifar10 import read_split
from resnet8_eval.pipeline import Pipeline
from tools import select_recipe


def test_the_choice_cannot_reach_the_test_split(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = select_recipe.training_only(pipeline.settings.assets.dataset, tmp_path)
    assert not [path for path in folder.iterdir() if "test" in path.name]
    with pytest.raises(Exception, match="test_batch"):
        read_split(folder, "test")
    asked: list[str] = []
    honest = cifar10.read_split

    def watched(where: Path, which: Any) -> Any:
        asked.append(which)
        assert where == folder
        return honest(where, which)

    monkeypatch.setattr(select_recipe, "read_split", watched)
    candidates = [
        select_recipe.Candidate("default", count=50),
        select_recipe.Candidate("minmax", select_recipe.CANDIDATES[1].recipe, 50),
    ]
    folded = pipeline.artifact("folded").path("folded.onnx").read_bytes()
    table = select_recipe.select(folder, folded, candidates, (0,), images=50, jobs=1)
    assert set(asked) == {"train"}
    assert {row["candidate"] for row in table} == {"default", "minmax"}
    assert table[0]["divergence_mean"] <= table[1]["divergence_mean"]


def test_calibration_and_validation_images_are_disjoint(pipeline: Pipeline) -> None:
    labels = read_split(pipeline.settings.assets.dataset, "train").labels
    for seed in range(5):
        calibrating, validating = split(labels, 100, seed, 200)
        assert not set(calibrating) & set(validating)
        assert len(set(validating)) == 200
