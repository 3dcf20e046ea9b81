"""Whether a model's answer to an image depends on the other images of its batch, or on chance.

A network that was saved in training mode takes the statistics of each batch, and drops values at
random. Its accuracy is then one of the batches that it happened to get, and not of the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from resnet8_eval import backends
from resnet8_eval.errors import ModelError
from resnet8_eval.evaluate import probabilities
from resnet8_eval.preprocess import BATCH_SIZE, Feed, Scores

COPIES: Final = 5
"""Of each image, in a batch of as many images as the evaluation's had."""
ROUNDING: Final = 1e-4
"""Mean difference in probability. Kernels moved it by 1e-8 at most, in every row of the suite; one
rounding that falls on the other side moves a probability by some 1e-2, but of one image."""
MOST: Final = 0.05
"""Share of the images that may get another class. Dynamic quantization moved 0.0075 of them."""


def told(path: Path, images: Feed, scores: Scores) -> str | None:
    """Feed some images again, each beside others and beside copies of its own.

    Parameters
    ----------
    path
        The model, as :func:`resnet8_eval.backends.scores` takes it.
    images, scores
        Stored test images, and the scores, float32 (N, 10), that the model gave them.

    Returns
    -------
    str or None
        What is to be said beside its figures; None if each answer depends on its image alone.

    Raises
    ------
    ModelError
        If equal images of one batch get other scores, or if more than :data:`MOST` of the images
        get another class beside others.
    """
    few = min(BATCH_SIZE, len(images))
    again = np.repeat(np.arange(few), COPIES)
    before = probabilities(scores[:few])
    found = probabilities(backends.scorer(path, threads=1)(images[again])).reshape(few, COPIES, -1)
    apart = np.abs(found - found[:, :1]).max(axis=(1, 2))
    if apart.mean() > ROUNDING:
        raise _refused(
            f"{path.name} gives the same image other scores from one time to the next.",
            f"scores of copies in one batch that differ by up to {apart.max():.2g}",
        )
    if np.abs(found[:, 0] - before).max(axis=1).mean() <= ROUNDING:
        return None
    moved = int((found[:, 0].argmax(axis=1) != before.argmax(axis=1)).sum())
    if moved > MOST * few:
        raise _refused(
            f"{path.name} answers by what else is in the batch.",
            f"another class for {moved} of {few} images when other images stand beside them",
        )
    return (
        f"scores depend on the batch, as where activations are quantized dynamically: beside other"
        f" images, {moved} of {few} images get another class; figures are those of batches of"
        f" {BATCH_SIZE}"
    )


def _refused(what: str, given: str) -> ModelError:
    return ModelError(
        what,
        expected="a network in evaluation mode, whose answer depends on the image alone",
        given=given,
        next_step="save it after module.eval(); dropout that is called as a function needs"
        " training=False",
    )
