"""Static quantization: parameters from calibration images, then one model for each framework."""

from __future__ import annotations

from pathlib import Path

from resnet8_eval.quantize.recipes import Recipe
from resnet8_eval.store import Record


def quantize(parameters_folder: Path, recipe: Recipe, folder: Path) -> Record:
    """Build a recipe's model from calibrated parameters.

    Parameters
    ----------
    parameters_folder
        What :func:`resnet8_eval.quantize.calibrate.calibrate` wrote.
    recipe
        One of :data:`resnet8_eval.quantize.recipes.RECIPES`.
    folder
        Where to write the model, named ``recipe.file_name``.

    Returns
    -------
    dict
        What the stored model computes in integers and what in float; see the framework's module.
    """
    from resnet8_eval.quantize.parameters import Parameters

    parameters = Parameters.load(parameters_folder)
    if recipe.framework == "torch":
        from resnet8_eval.quantize import torch_quantize

        return torch_quantize.quantize(parameters, recipe, folder / recipe.file_name)
    from resnet8_eval.quantize import ort_quantize

    return ort_quantize.quantize(parameters, recipe, folder / recipe.file_name)
