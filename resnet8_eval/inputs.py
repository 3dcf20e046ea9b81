"""What a run is asked for, and what each of its stages is given."""

from __future__ import annotations

import os
import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from resnet8_eval.assets import Assets, unchanged
from resnet8_eval.configurations import Recipe
from resnet8_eval.gate import Demand
from resnet8_eval.preprocess import RAW, Feed, Labels, Preprocessing, Scores
from resnet8_eval.requirements import MIN_CALIBRATION_IMAGES
from resnet8_eval.store import Artifact, Record

if TYPE_CHECKING:
    from resnet8_eval.calibrate.parameters import Parameters
    from resnet8_eval.calibrate.tuned import Statistics


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Attributes
    ----------
    calibration_count, calibration_seed
        Size and seed of the calibration set.
    min_speedup
        Least speed of a quantized row over float32 that EVAL-05 demands; it decides no artefact.
    min_accuracy
        Accuracy in percent that the user's own model must exceed; None for the register's. Nor
        does it.
    gate
        What is demanded of every row that is not stock, beyond the requirements.
    seeds
        How many calibration seeds the quantized rows are made with.
    run
        The name of the run, by chance, which all of its processes share; it decides no artefact.
    """

    assets: Assets
    cache_dir: Path
    calibration_count: int = MIN_CALIBRATION_IMAGES
    calibration_seed: int = 0
    min_speedup: float | None = None
    min_accuracy: float | None = None
    gate: Demand | None = None
    preprocessing: Preprocessing = RAW
    seeds: int = 1
    run: str = field(default_factory=lambda: os.urandom(8).hex(), compare=False)

    @property
    def further_seeds(self) -> range:
        """The other calibration seeds, which follow `calibration_seed`."""
        return range(self.calibration_seed + 1, self.calibration_seed + self.seeds)

    def alone(self, stage: str, *more: str) -> str | None:
        """The command that makes a stage by itself; None for an ONNX model, which `run` refuses.

        The folder of the assets is not in it, nor that of a file of preprocessing.
        """
        given = self.assets
        if given.model.suffix == ".onnx":
            return None
        # What was made without images needs none, but `run` looks for some.
        kind = given.kind if given.dataset_sha256 else "stand-in"
        told = {
            "--keras-model": str(given.model) if given.user_model else None,
            "--preprocessing": None if self.preprocessing == RAW else self.preprocessing.name,
            "--calibration-count": str(self.calibration_count),
            "--calibration-seed": str(self.calibration_seed),
            "--cache-dir": str(self.cache_dir),
        }
        options = [word for name, value in told.items() if value for word in (name, value)]
        return shlex.join(
            ["python", "-m", "resnet8_eval", "run", stage, *more, "--assets", kind, *options]
        )


class Labelled(NamedTuple):
    """Images as the run's model is fed them, and their labels."""

    images: Feed
    labels: Labels


@dataclass(frozen=True)
class Inputs:
    """What a stage may use: the assets, the artefacts that it needs, so many threads, a folder.

    The stage's key names the assets by checksum. Each asset is checked against its checksum when it
    is read, because it may have changed since it was verified before the run. The stage's files go
    to `out`.
    """

    settings: Settings
    artifacts: dict[str, Artifact]
    threads: int
    out: Path

    def model(self) -> AbstractContextManager[Path]:
        """The Keras model, for as long as it is being read."""
        return unchanged(self.settings.assets.model, self.settings.assets.model_sha256)

    def split(self, name: Literal["train", "test"]) -> Labelled:
        """Images and labels of a split."""
        from resnet8_eval.cifar10 import read_split

        assets = self.settings.assets
        found = read_split(assets.dataset, name, assets.dataset_sha256)
        return Labelled(Feed(found.images, self.settings.preprocessing), found.labels)

    def images(self, stage: str) -> Feed:
        """The images that a needed artefact holds."""
        return Feed(np.load(self.path(stage, "images.npy")), self.settings.preprocessing)

    def scores(self, stage: str) -> Scores:
        """The scores that a needed artefact holds."""
        found: Scores = np.load(self.path(stage, "scores.npy"))
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the index is the label."""
        from resnet8_eval.cifar10 import read_class_names

        assets = self.settings.assets
        return read_class_names(assets.dataset, assets.dataset_sha256)

    def statistics(self, stage: str) -> Statistics:
        """What a needed artefact's stage collected on the calibration images."""
        from resnet8_eval.calibrate.tuned import Statistics

        return Statistics.load(self.artifacts[stage].folder, self.record(stage)["fed_sha256"])

    def parameters(self, recipe: Recipe) -> Parameters:
        """What a recipe's calibration decided."""
        from resnet8_eval.calibrate.parameters import Parameters

        return Parameters.load(self.artifacts[f"parameters/{recipe.key}"].folder)

    def path(self, stage: str, name: str) -> Path:
        """A file of a needed artefact."""
        return self.artifacts[stage].path(name)

    def record(self, stage: str) -> Record:
        """The record of a needed artefact."""
        return self.artifacts[stage].record
