"""Every requirement, once. The only place in which a threshold is written.

Markers, assertions, report rows and README's table are made from this register.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from resnet8_eval import configurations

Milestone = Literal["v1_0", "v1_1", "v1_2"]
Direction = Literal[">=", ">", "=="]

MILESTONES: Final[dict[Milestone, str]] = {
    "v1_0": "Conversion to ONNX",
    "v1_1": "Conversion to PyTorch",
    "v1_2": "Static quantization",
}

MIN_ACCURACY_PERCENT: Final = 85.0
MIN_CALIBRATION_IMAGES: Final = 1000
FLAGGED_DROP_PP: Final = 5.0
"""A configuration that loses more than this many percentage points is flagged."""
EQUIVALENCE_MARGIN_PP: Final = 0.5
"""*Equivalent* means that the whole paired interval of the delta lies within ± this margin."""
PARITY_ATOL: Final = 1e-5
"""Largest difference in probability between two float32 executions of the same network.

Softmax outputs lie in [0, 1]; reordered float32 sums over at most 576 products move them by about
1e-6, and a wrong weight by far more.
"""
MAX_KERNEL_DISAGREEMENT_PERCENT: Final = 0.5
"""Share of images on which integer kernels may give another class than reference arithmetic does.

Both read the same integers and scales, and differ only in how a sum that falls between two steps
is rounded: over five calibration seeds, 0 to 24 of 10,000 images (0.24 %). Kernels that saturate
change some 15 %.
"""

_SIGNS: Final[dict[Direction, str]] = {">=": "≥", ">": ">", "==": "="}
_COMPARE: Final[dict[Direction, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Requirement:
    """One requirement and the number that decides it.

    Attributes
    ----------
    id
        Such as ``"CONV-01"``.
    milestone
        The milestone that it belongs to.
    title
        What must be true.
    quantity
        What is measured.
    direction, threshold, unit
        ``measured direction threshold`` must hold, in `unit`.
    """

    id: str
    milestone: Milestone
    title: str
    quantity: str
    direction: Direction
    threshold: float
    unit: str

    def is_met_by(self, measured: float) -> bool:
        """Whether `measured` (in `unit`) fulfils the requirement; NaN and infinities never do."""
        return math.isfinite(measured) and _COMPARE[self.direction](measured, self.threshold)

    def margin(self, measured: float) -> float:
        """How far `measured` lies on the good side (positive) of the threshold, in `unit`."""
        distance = measured - self.threshold
        return 0.0 - abs(distance) if self.direction == "==" else distance

    def describe(self) -> dict[str, Any]:
        """Built-in types."""
        return asdict(self)

    @property
    def required(self) -> str:
        """The condition, such as ``"> 85 %"``."""
        return condition(self.direction, self.threshold, self.unit)


def condition(direction: Direction, threshold: float, unit: str) -> str:
    """What must hold, in words, such as ``"> 85 %"``."""
    return f"{_SIGNS[direction]} {threshold:g} {unit}".strip()


def _checks(id_: str, milestone: Milestone, title: str) -> Requirement:
    return Requirement(id_, milestone, title, "failed checks", "==", 0, "checks")


def _whole_test_set(id_: str, milestone: Milestone, title: str) -> Requirement:
    return Requirement(id_, milestone, title, "share of the test set scored", "==", 100, "%")


def _classes(id_: str, milestone: Milestone, title: str) -> Requirement:
    return Requirement(id_, milestone, title, "classes with an accuracy of their own", "==", 10, "")


def _accuracy(id_: str, milestone: Milestone, title: str) -> Requirement:
    return Requirement(id_, milestone, title, "accuracy", ">", MIN_ACCURACY_PERCENT, "%")


def _no_float(id_: str, title: str) -> Requirement:
    return Requirement(id_, "v1_2", title, "weighted layers left in float", "==", 0, "layers")


def _deltas(id_: str, name: str, framework: str) -> Requirement:
    title = f"Report the delta of both quantized {name} models from the baseline"
    rows = len(configurations.quantized(framework))
    return Requirement(id_, "v1_2", title, "configurations with a delta", "==", rows, "")


REGISTER: Final[tuple[Requirement, ...]] = (
    _checks("CONV-01", "v1_0", "Convert the Keras .h5 to ONNX with tf2onnx"),
    _checks("CONV-02", "v1_0", "Verify the ONNX structure against Keras"),
    _checks("CONV-03", "v1_0", "Log conversion progress and every warning"),
    _whole_test_set("EVAL-01", "v1_0", "Evaluate with ONNX Runtime on the test set"),
    _classes("EVAL-02", "v1_0", "Report ONNX Runtime accuracy for each of the 10 classes"),
    _accuracy("EVAL-03", "v1_0", "ONNX Runtime accuracy above 85 %"),
    _checks("PT-01", "v1_1", "Convert the ONNX model to PyTorch with onnx2torch"),
    _checks("PT-02", "v1_1", "Verify the PyTorch structure against its ONNX source"),
    _whole_test_set("PT-03", "v1_1", "Evaluate with PyTorch on the test set"),
    _classes("PT-04", "v1_1", "Report PyTorch accuracy for each of the 10 classes"),
    _accuracy("PT-05", "v1_1", "PyTorch accuracy above 85 %"),
    Requirement(
        "CAL-01",
        "v1_2",
        "Calibration set from CIFAR-10's training split, 1000 or more, stratified",
        "calibration images",
        ">=",
        MIN_CALIBRATION_IMAGES,
        "images",
    ),
    Requirement(
        "CAL-02",
        "v1_2",
        "Calibration preprocessing equals the evaluation's exactly",
        "differing bytes",
        "==",
        0,
        "bytes",
    ),
    _no_float("ORT-01", "ONNX model statically quantized to int8"),
    _no_float("ORT-02", "ONNX model statically quantized to uint8"),
    _whole_test_set("ORT-03", "v1_2", "Evaluate both quantized ONNX models"),
    _deltas("ORT-04", "ONNX", "onnxruntime"),
    _no_float("PTQ-01", "PyTorch model statically quantized to int8"),
    _no_float("PTQ-02", "PyTorch model statically quantized to uint8"),
    _whole_test_set("PTQ-03", "v1_2", "Evaluate both quantized PyTorch models"),
    _deltas("PTQ-04", "PyTorch", "torch"),
    Requirement(
        "ANL-01",
        "v1_2",
        "Comparison table, framework × dtype",
        "cells of the table filled",
        "==",
        len(configurations.CONFIGURATIONS),
        "cells",
    ),
    Requirement(
        "ANL-02",
        "v1_2",
        "Flag any drop of more than 5 percentage points",
        "configurations that drop more than 5 pp",
        "==",
        0,
        "",
    ),
)

BY_ID: Final[dict[str, Requirement]] = {entry.id: entry for entry in REGISTER}


def of_milestone(milestone: str) -> tuple[Requirement, ...]:
    """The requirements of one milestone, in register order."""
    return tuple(entry for entry in REGISTER if entry.milestone == milestone)
