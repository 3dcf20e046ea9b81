"""Every row of the comparison, once.

Stages, lanes, references, the comparison's order, the command line's choices and the cells that
ANL-01 expects follow from this list. A new row of an existing kind is one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from resnet8_eval.environment import REDUCED_LIMIT, WEIGHT_LIMIT

Framework = Literal["keras", "onnxruntime", "torch"]
Dtype = Literal["float32", "int8", "uint8", "uint8/int8"]
"""What a cell is called; two types are those of activations and weights."""
Execution = Literal["kernel", "reference"]
Ranges = Literal["minmax", "percentile", "mse"]
Granularity = Literal["per-channel", "per-tensor"]

FRAMEWORKS: Final[dict[Framework, str]] = {
    "keras": "Keras",
    "onnxruntime": "ONNX Runtime",
    "torch": "PyTorch",
}
"""Their names as people write them."""


@dataclass(frozen=True)
class Recipe:
    """How the parameters of a quantized row are found. The defaults are the tuned recipe.

    Attributes
    ----------
    name
        What it is called.
    by
        Who finds them: the suite, or the framework's own static quantizer with its documented
        defaults. For the latter nothing below counts but the granularity.
    ranges
        How much of an activation's calibration values its range holds: all of them
        (``"minmax"``), all but the few largest (``"percentile"``), or so much that the mean
        squared error of clipping and rounding together is least (``"mse"``).
    granularity
        One weight scale for each output channel, or one for each layer; None: the default of the
        framework's quantizer.
    rounding
        ``"gptq"``, or to the ``"nearest"``.
    clip_weights
        Whether a channel's scale may be smaller than its largest weight asks for, where that lets
        its outputs change less.
    equalize
        Whether channels are scaled to have similar ranges.
    correct_bias
        Whether a layer's bias makes up for the change that rounding causes in its mean output.
    percentile
        For ``ranges="percentile"``, in percent. Chosen on training images: cutting the few
        largest values gives every other one a finer step.
    moment_stride
        One of this many calibration images enters the covariances of the layers' inputs. Every one,
        by the rule of tools/select_recipe.py.
    reduce_range
        Whether weights keep 7 bits (±63). x86 kernels without VNNI add two products of an unsigned
        activation and a signed weight in 16 bits; with more, the sum can overflow. The same on
        every processor, so that the same inputs give the same model.
    float_layers
        Weighted layers left in float32, by their position in the network; -1 is the last.
    """

    name: str = "tuned"
    by: Literal["suite", "framework"] = "suite"
    ranges: Ranges = "percentile"
    granularity: Granularity | None = "per-channel"
    rounding: Literal["gptq", "nearest"] = "gptq"
    clip_weights: bool = False
    equalize: bool = True
    correct_bias: bool = True
    percentile: float = 99.999
    moment_stride: int = 1
    reduce_range: bool = True
    float_layers: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """What its parameters are called; recipes that differ in them have different keys."""
        return self.name if self.reduce_range else f"{self.name}-8bit"

    @property
    def statistics(self) -> str:
        """What is collected for it on the calibration images; recipes may share that."""
        return f"{'equalized' if self.equalize else 'plain'}-{self.moment_stride}"

    @property
    def weight_limit(self) -> int:
        """Largest magnitude of a rounded weight."""
        return REDUCED_LIMIT if self.reduce_range else WEIGHT_LIMIT


@dataclass(frozen=True)
class Configuration:
    """One row.

    Attributes
    ----------
    framework, dtype
        Its cell of the comparison.
    weights_dtype, activations_dtype
        What the bits of each stand for.
    execution
        ``"kernel"``: the kernels that a user would deploy on. ``"reference"``: quantize and
        dequantize steps around float32 arithmetic.
    recipe
        How it was quantized; None for a float32 row.
    """

    framework: Framework
    dtype: Dtype
    weights_dtype: Dtype = "float32"
    activations_dtype: Dtype = "float32"
    execution: Execution = "kernel"
    recipe: Recipe | None = None

    @property
    def name(self) -> str:
        """Such as ``"keras-float32"`` or ``"torch-int8-tuned"``; no two rows share one."""
        recipe = f"-{self.recipe.name}" if self.recipe else ""
        return f"{self.framework}-{self.dtype.replace('/', '-')}{recipe}"

    @property
    def quantized_by(self) -> Recipe:
        """Its recipe; a float32 row has none, and raises ValueError."""
        if self.recipe is None:
            raise ValueError(f"{self.name} is not quantized")
        return self.recipe

    @property
    def is_stock(self) -> bool:
        """Whether the framework's own quantizer made it."""
        return self.recipe is not None and self.recipe.by == "framework"

    @property
    def session(self) -> Literal["kernel", "reference", "default"]:
        """How its model is opened. A stock one is run as its documentation says: by default."""
        return "default" if self.is_stock and self.execution == "kernel" else self.execution


TUNED: Final = Recipe()
TUNED_8BIT: Final = Recipe(reduce_range=False)
"""For unsigned weights, whose products no kernel adds in 16 bits."""
LOW_BIT: Final = Recipe("low-bit", clip_weights=True)
"""Where weights of fewer than 8 bits come from."""
STOCK: Final = Recipe("stock", by="framework", granularity=None)

CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("keras", "float32"),
    Configuration("onnxruntime", "float32"),
    Configuration("torch", "float32"),
    Configuration("onnxruntime", "int8", "int8", "int8", recipe=STOCK),
    Configuration("onnxruntime", "int8", "int8", "int8", recipe=TUNED),
    Configuration("onnxruntime", "uint8", "uint8", "uint8", recipe=STOCK),
    Configuration("onnxruntime", "uint8", "uint8", "uint8", recipe=TUNED_8BIT),
    # What one would deploy on x86: a plain session runs every convolution in integers.
    Configuration("onnxruntime", "uint8/int8", "int8", "uint8", recipe=TUNED),
    # PyTorch's integer kernels take unsigned activations and signed weights, whatever the cell is
    # called. For unsigned weights it has none, so that cell is computed in reference arithmetic;
    # and torchao's lowering of its own int8 model gives other answers (backends/torch.py tries).
    Configuration("torch", "int8", "int8", "uint8", "reference", recipe=STOCK),
    Configuration("torch", "int8", "int8", "uint8", recipe=TUNED),
    Configuration("torch", "uint8", "uint8", "uint8", "reference", recipe=STOCK),
    Configuration("torch", "uint8", "uint8", "uint8", "reference", recipe=TUNED_8BIT),
)
"""In the order of the comparison; the first is the baseline."""


def baseline() -> Configuration:
    """The row that every delta is measured against."""
    return CONFIGURATIONS[0]


def of(name: str) -> Configuration:
    """The row of a name."""
    return next(row for row in CONFIGURATIONS if row.name == name)


def quantized(framework: str | None = None, dtype: str | None = None) -> list[Configuration]:
    """The quantized rows, of one framework and one dtype where these are given."""
    return [
        row
        for row in CONFIGURATIONS
        if row.recipe and framework in (None, row.framework) and dtype in (None, row.dtype)
    ]


def calibrated(framework: str | None = None) -> list[Configuration]:
    """The rows that are written from the suite's own parameters."""
    return [row for row in quantized(framework) if not row.is_stock]


def gated() -> list[Configuration]:
    """The rows that ``--gate`` judges: one deploys these, and compares them with the others."""
    return [row for row in CONFIGURATIONS[1:] if not row.is_stock]


def stock() -> list[Configuration]:
    """The rows that a framework's own quantizer makes."""
    return [row for row in quantized() if row.is_stock]


def tunings() -> list[tuple[Configuration, Configuration]]:
    """Each stock row with the tuned one of its cell."""
    return [
        (row, other)
        for row in stock()
        for other in calibrated(row.framework)
        if other.dtype == row.dtype and other.recipe in (TUNED, TUNED_8BIT)
    ]


def recipes() -> list[Recipe]:
    """Every recipe whose parameters the suite finds, once."""
    return list(dict.fromkeys(row.recipe for row in calibrated() if row.recipe))


def explored() -> list[tuple[Configuration, Configuration]]:
    """Cells of ADV-02: each quantizer and dtype with one weight scale a layer, and one a channel.

    They are in no other comparison, and only ADV-02 makes them.
    """

    def with_granularity(row: Configuration, granularity: Granularity) -> Configuration:
        recipe = row.quantized_by
        named = replace(recipe, name=f"{recipe.name}-{granularity}", granularity=granularity)
        return replace(row, recipe=named)

    return [
        (with_granularity(row, "per-tensor"), with_granularity(row, "per-channel"))
        for row in quantized()
        if row.dtype in ("int8", "uint8")
    ]


def integers(row: Configuration) -> str | None:
    """The stage that computes the exact integers of a row written from the suite's parameters.

    Kernels of one framework and one recipe stand for the same integers, up to a shift by 128, so
    the first of them serves them all. None for a row that has no integer kernels.
    """
    if row.execution != "kernel":
        return None
    alike = (
        other
        for other in calibrated(row.framework)
        if other.recipe == row.recipe and other.execution == "kernel"
    )
    return f"integers/{next(alike).name}"
