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


@dataclass(frozen=True)
class Method:
    """How quantization parameters are found. The defaults are what the recipes use.

    Attributes
    ----------
    ranges
        How much of an activation's calibration values its range holds: all of them
        (``"minmax"``), all but the few largest (``"percentile"``), or so much that the mean
        squared error of clipping and rounding together is least (``"mse"``).
    granularity
        One weight scale for each output channel, or one for each layer.
    rounding
        ``"gptq"``, or to the ``"nearest"``.
    equalize
        Whether channels are scaled to span alike.
    correct_bias
        Whether what rounding does to a layer's mean output goes into its bias.
    percentile
        For ``ranges="percentile"``, in percent.
    moment_stride
        Every which calibration image enters the covariances of the layers' inputs: of 1000,
        250 give each layer 250 (the dense one) to 256,000 rows.
    """

    ranges: Literal["minmax", "percentile", "mse"] = "percentile"
    granularity: Literal["per-channel", "per-tensor"] = "per-channel"
    rounding: Literal["gptq", "nearest"] = "gptq"
    equalize: bool = True
    correct_bias: bool = True
    percentile: float = 99.999
    moment_stride: int = 4


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
arithmetic (``torch_quantize.unsigned_kernel_support`` asks it). How ONNX Runtime runs signed
activations: :mod:`resnet8_eval.onnx_session`."""
