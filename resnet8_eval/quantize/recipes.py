"""Recipes as data: everything that decides a quantized model, besides its calibration images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True)
class Recipe:
    """How one configuration is quantized.

    Attributes
    ----------
    framework, dtype
        The cell of the comparison table.
    weights_dtype, activations_dtype
        What the 8 bits of each stand for.
    execution
        ``"kernel"``: the integer kernels that a user would deploy on. ``"reference"``:
        quantize/dequantize arithmetic in float32.
    file_name
        The stored model.
    """

    framework: Literal["onnxruntime", "torch"]
    dtype: Literal["int8", "uint8"]
    weights_dtype: Literal["int8", "uint8"]
    activations_dtype: Literal["int8", "uint8"]
    execution: Literal["kernel", "reference"]
    file_name: str

    @property
    def name(self) -> str:
        """The configuration's name, such as ``"torch-int8"``."""
        return f"{self.framework}-{self.dtype}"

    def describe(self) -> dict[str, Any]:
        """The recipe as results.json records it."""
        return asdict(self)


RECIPES: Final[dict[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe("onnxruntime", "int8", "int8", "int8", "kernel", "model.onnx"),
        Recipe("onnxruntime", "uint8", "uint8", "uint8", "kernel", "model.onnx"),
        Recipe("torch", "int8", "int8", "uint8", "kernel", "model.pt"),
        Recipe("torch", "uint8", "uint8", "uint8", "reference", "model.pt"),
    )
}
"""The four cells. PyTorch's integer kernels take unsigned activations and signed weights, whatever
the cell is called; for unsigned weights it has none, so that cell is computed in reference
arithmetic (``torch_quantize.unsigned_kernel_support`` asks it). ONNX Runtime's signed kernels need
a session entry; see :func:`resnet8_eval.runtimes.onnx_session`."""
