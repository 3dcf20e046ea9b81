"""The tuned recipe: from calibration images to quantization parameters."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from resnet8_eval import network
from resnet8_eval.calibrate.equalize import equalize
from resnet8_eval.calibrate.parameters import EXACT, Parameters, grid, load_arrays, save_arrays
from resnet8_eval.calibrate.ranges import Observed, activation_ranges, observe
from resnet8_eval.calibrate.rounding import Moments, input_moments, round_weights
from resnet8_eval.configurations import Recipe
from resnet8_eval.network import Network
from resnet8_eval.preprocess import Images, batches, fed
from resnet8_eval.store import Record

STATISTICS: Final = "statistics.npz"


class Statistics(NamedTuple):
    """All that is measured on the calibration images, before anything is decided.

    `network` is float32, equalized if it is to be; `observed` are its activations, and `moments`
    those of the inputs of its layers.
    """

    network: Network
    observed: Observed
    moments: Moments

    def save(self, folder: Path) -> None:
        """Write them into `folder`."""
        self.network.save(folder / EXACT)
        save_arrays(
            folder / STATISTICS,
            extremes=self.observed.extremes,
            histogram=self.observed.histograms,
            channels=self.observed.channels,
            mean={name: mean for name, (mean, _) in self.moments.items()},
            covariance={name: covariance for name, (_, covariance) in self.moments.items()},
        )

    @classmethod
    def load(cls, folder: Path, fed_sha256: str) -> Statistics:
        """Read what :meth:`save` wrote."""
        kinds = load_arrays(folder / STATISTICS)
        extremes = {
            name: (float(low), float(high)) for name, (low, high) in kinds["extremes"].items()
        }
        moments = {name: (mean, kinds["covariance"][name]) for name, mean in kinds["mean"].items()}
        observed = Observed(extremes, kinds["histogram"], kinds["channels"], fed_sha256)
        return cls(network.read(folder / EXACT), observed, moments)


def collect(folded: Network, images: Images, recipe: Recipe) -> Statistics:
    """Run the calibration images through the folded float32 network.

    Of `recipe`, ``equalize`` and ``moment_stride`` count here; recipes that differ in nothing else
    can share what is collected.
    """
    exact = equalize(folded, images) if recipe.equalize else folded
    return Statistics(
        exact, observe(exact, images), input_moments(exact, images[:: recipe.moment_stride])
    )


def decide(statistics: Statistics, recipe: Recipe, limit: int, levels: int = 255) -> Parameters:
    """Decide every quantization parameter from what was collected.

    Parameters
    ----------
    limit
        Largest magnitude of a rounded weight.
    levels
        Largest integer of the activations' grids.
    """
    exact, observed, moments = statistics
    ranges = activation_ranges(exact, observed, recipe, levels)
    return round_weights(exact, moments, ranges, recipe, limit)


def in_words(recipe: Recipe, decided: Parameters) -> dict[str, Any]:
    """How parameters were found, for results.json."""
    scale, zero_point = grid(*decided.activations[decided.exact.input])
    cut = f" {recipe.percentile}" if recipe.ranges == "percentile" else ""
    rounding = "GPTQ rounding" if recipe.rounding == "gptq" else "rounded to nearest"
    return {
        "equalization": "activation ranges, residual groups" if recipe.equalize else "none",
        "activations": f"per tensor, {recipe.ranges}{cut}",
        "weights": f"{recipe.granularity}, symmetric, {rounding}"
        + (", bias corrected" if recipe.correct_bias else ""),
        "weight_limit": recipe.weight_limit,
        "input": f"all that preprocessing can give: scale {scale:.6g}, zero point {zero_point}",
        "score": "float32",
    }


def compare_feeds(images: Images, fed_sha256: str) -> Record:
    """Hold what calibration fed to the network against what evaluation would feed it.

    `fed_sha256` is what :func:`collect` found of the calibration images.

    Returns
    -------
    dict
        ``differing_bytes`` of ``compared_bytes`` (``expected_bytes``: four for each value of each
        image), between this moment's two feeds; ``evaluation_sha256``; ``calibration_sha256``,
        which is `fed_sha256`; ``preprocessing``, and ``largest_difference`` of what was fed from
        what it says, computed here by itself, over the largest value that it can give.
    """
    from resnet8_eval import backends

    how, found = fed(images).preprocessing, backends.run(lambda batch: batch, images)
    pixels = fed(images[: len(found)]).pixels[..., :: 1 if how.channels == "RGB" else -1]
    distance = np.abs(found - (pixels * how.scale - how.mean) / how.std)
    evaluation = found.tobytes()
    one, other = (
        np.frombuffer(part, np.uint8)
        for part in (evaluation, np.concatenate(list(batches(images))).tobytes())
    )
    shared = min(len(one), len(other))
    differing = int((one[:shared] != other[:shared]).sum())
    return {
        "differing_bytes": differing + abs(len(one) - len(other)),
        "compared_bytes": shared,
        "expected_bytes": 4 * fed(images).pixels.size,
        "preprocessing": how.describe(),
        "largest_difference": float(distance.max() / np.abs(how.span).max()),
        "evaluation_sha256": hashlib.sha256(evaluation).hexdigest(),
        "calibration_sha256": fed_sha256,
    }
