"""Every milestone and requirement, once. Their names and thresholds are written nowhere else.

Markers, verdicts, report rows and README's table are made from this register.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from resnet8_eval import configurations

Direction = Literal[">=", ">", "==", "<", "<="]

MILESTONES: Final = {
    "v1_0": "Conversion to ONNX",
    "v1_1": "Conversion to PyTorch",
    "v1_2": "Static quantization",
    "v1_3": "Extended evaluation",
    "v1_4": "Advanced quantization",
}
"""Name, which is also the marker of its tests, and title."""
ON_DEMAND: Final = frozenset({"v1_4"})
"""Milestones that take long, and so are judged only where they are named: -m or --requirement."""

MIN_ACCURACY_PERCENT: Final = 85.0
MIN_CALIBRATION_IMAGES: Final = 1000
MOST_SEEDS: Final = 1000
"""Of a run. A seed takes half a minute of a core; more than this is a mistyped number."""
FLAGGED_DROP_PP: Final = 5.0
"""A configuration that loses more than this many percentage points is flagged."""
NOTABLE_DROP_PP: Final = 1.0
"""A quantized configuration that loses more than this is told of, though nothing forbids it."""
EQUIVALENCE_MARGIN_PP: Final = 0.5
"""*Equivalent* means that the whole paired interval of the delta lies within ± this margin; why
this one, ``docs/results.md`` says."""
EQUIVALENT: Final = "equivalent"
"""How the verdict on such a row begins."""
FINE_TUNED_WITHIN_PP: Final = {"W4A8": 0.5, "W4A4": 1.5}
"""How much accuracy fine-tuned networks of so many bits may lose, mean of the seeds. Each must also
be better than the same bits without training; 8 bits need only be no worse."""
PARITY_ATOL: Final = 1e-5
"""Largest difference in probability between two float32 executions of the same network.

Softmax outputs lie in [0, 1]; reordered float32 sums over at most 576 products move them by about
1e-6, and a wrong weight by far more.
"""
MIN_QUERIES: Final = 100
"""Queries that a LoadGen run must have at least: LoadGen's own minimum."""
ANSWERED_IMAGES: Final = 1000
"""Test images, evenly spread, whose scores each timed session must give again in LoadGen's accuracy
mode. They are as many as LoadGen has in memory at a time."""
MAX_OTHERS_PERCENT: Final = 10.0
"""Share of the machine's processor time that other processes may take while speed is measured."""

_SIGNS: Final[dict[Direction, str]] = {">=": "≥", ">": ">", "==": "=", "<": "<", "<=": "≤"}
_COMPARE: Final[dict[Direction, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True)
class Requirement:
    """One requirement and the number that decides it.

    `phase` is that of the work, as the requirements document numbers them; `title` says what must
    be true, and `quantity` what is measured: ``measured direction threshold`` must hold, in `unit`.
    """

    id: str
    milestone: str
    phase: int
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
        if self.direction == "==":
            return 0.0 - abs(measured - self.threshold)
        upper_limit = self.direction in ("<", "<=")
        return self.threshold - measured if upper_limit else measured - self.threshold

    @property
    def required(self) -> str:
        """The condition, such as ``"> 85 %"``."""
        return condition(self.direction, self.threshold, self.unit)


def condition(direction: Direction, threshold: float, unit: str) -> str:
    """What must hold, in words, such as ``"> 85 %"``."""
    return f"{_SIGNS[direction]} {threshold:g} {unit}".strip()


# What is measured, and what it must be, where several requirements have it in common.
_Criterion = tuple[str, Direction, float, str]
_CHECKS: Final[_Criterion] = ("failed checks", "==", 0, "checks")
_WHOLE_TEST_SET: Final[_Criterion] = ("share of the test set scored", "==", 100, "%")
_CLASSES: Final[_Criterion] = ("classes with an accuracy of their own", "==", 10, "")
_ACCURACY: Final[_Criterion] = ("accuracy", ">", MIN_ACCURACY_PERCENT, "%")
_ABOVE: Final = f"accuracy above {MIN_ACCURACY_PERCENT:g} %"
_NO_FLOAT: Final[_Criterion] = ("weighted layers left in float", "==", 0, "layers")
_ROWS: Final = len(configurations.CONFIGURATIONS)


def _deltas(framework: str) -> _Criterion:
    return "configurations with a delta", "==", len(configurations.quantized(framework)), ""


REGISTER: Final[tuple[Requirement, ...]] = (
    Requirement("CONV-01", "v1_0", 1, "Convert the Keras .h5 to ONNX with tf2onnx", *_CHECKS),
    Requirement("CONV-02", "v1_0", 1, "Verify the ONNX structure against Keras", *_CHECKS),
    Requirement("CONV-03", "v1_0", 1, "Log conversion progress and every warning", *_CHECKS),
    Requirement(
        "EVAL-01", "v1_0", 2, "Evaluate with ONNX Runtime on the test set", *_WHOLE_TEST_SET
    ),
    Requirement(
        "EVAL-02", "v1_0", 2, "Report ONNX Runtime accuracy for each of the 10 classes", *_CLASSES
    ),
    Requirement("EVAL-03", "v1_0", 2, f"ONNX Runtime {_ABOVE}", *_ACCURACY),
    Requirement("PT-01", "v1_1", 3, "Convert the ONNX model to PyTorch with onnx2torch", *_CHECKS),
    Requirement(
        "PT-02", "v1_1", 3, "Verify the PyTorch structure against its ONNX source", *_CHECKS
    ),
    Requirement("PT-03", "v1_1", 4, "Evaluate with PyTorch on the test set", *_WHOLE_TEST_SET),
    Requirement(
        "PT-04", "v1_1", 4, "Report PyTorch accuracy for each of the 10 classes", *_CLASSES
    ),
    Requirement("PT-05", "v1_1", 4, f"PyTorch {_ABOVE}", *_ACCURACY),
    Requirement(
        "CAL-01",
        "v1_2",
        5,
        "Calibration set from CIFAR-10's training split, 1000 or more, stratified",
        *("calibration images", ">=", MIN_CALIBRATION_IMAGES, "images"),
    ),
    Requirement(
        *("CAL-02", "v1_2", 5, "Calibration preprocessing equals the evaluation's exactly"),
        *("differing bytes", "==", 0, "bytes"),
    ),
    Requirement("ORT-01", "v1_2", 6, "ONNX model statically quantized to int8", *_NO_FLOAT),
    Requirement("ORT-02", "v1_2", 6, "ONNX model statically quantized to uint8", *_NO_FLOAT),
    Requirement("ORT-03", "v1_2", 6, "Evaluate the quantized ONNX models", *_WHOLE_TEST_SET),
    Requirement(
        *("ORT-04", "v1_2", 6, "Report the delta of the quantized ONNX models from the baseline"),
        *_deltas("onnxruntime"),
    ),
    Requirement("PTQ-01", "v1_2", 7, "PyTorch model statically quantized to int8", *_NO_FLOAT),
    Requirement("PTQ-02", "v1_2", 7, "PyTorch model statically quantized to uint8", *_NO_FLOAT),
    Requirement("PTQ-03", "v1_2", 7, "Evaluate the quantized PyTorch models", *_WHOLE_TEST_SET),
    Requirement(
        *(
            "PTQ-04",
            "v1_2",
            7,
            "Report the delta of the quantized PyTorch models from the baseline",
        ),
        *_deltas("torch"),
    ),
    Requirement(
        *("ANL-01", "v1_2", 8, "Comparison table, framework × dtype × recipe"),
        *("cells of the table filled", "==", _ROWS, "cells"),
    ),
    Requirement(
        *("ANL-02", "v1_2", 8, "Flag any drop of more than 5 percentage points"),
        *("configurations that drop more than 5 pp", "==", 0, ""),
    ),
    Requirement(
        *("EVAL-04", "v1_3", 2, "Compare with the original Keras model as baseline"),
        *("configurations compared with Keras", "==", _ROWS, ""),
    ),
    Requirement(
        *("EVAL-05", "v1_3", 2, "Measure latency and throughput"),
        *("configurations measured in both scenarios", "==", _ROWS, ""),
    ),
    Requirement(
        *("ADV-01", "v1_4", 9, "Quantization-aware training"),
        *("targets met, mean of the seeds", "==", 2 * len(FINE_TUNED_WITHIN_PP) + 1, ""),
    ),
    Requirement(
        *("ADV-02", "v1_4", 9, "Per-channel against per-tensor weights"),
        *("cells explored", "==", 2 * len(configurations.explored()), ""),
    ),
    Requirement(
        *("ADV-03", "v1_4", 9, "Mixed precision, bits per layer"),
        "weights of the smallest equivalent network, of the 8-bit one's bytes",
        *("<", 100, "%"),
    ),
)

BY_ID: Final[dict[str, Requirement]] = {entry.id: entry for entry in REGISTER}
ALWAYS: Final = {name: entry for name, entry in BY_ID.items() if entry.milestone not in ON_DEMAND}
"""Those that a complete run settles, by ID."""


def asked(min_accuracy: float | None) -> dict[str, Requirement]:
    """The register by ID, for a run that may state another threshold for accuracy, in percent."""
    if min_accuracy in (None, MIN_ACCURACY_PERCENT):
        return BY_ID
    other = f"accuracy above {min_accuracy:g} % (--min-accuracy; {MIN_ACCURACY_PERCENT:g} % else)"
    return {
        name: replace(entry, threshold=min_accuracy, title=entry.title.replace(_ABOVE, other))
        if entry.title.endswith(_ABOVE)
        else entry
        for name, entry in BY_ID.items()
    }


def of_milestone(milestone: str) -> tuple[Requirement, ...]:
    """The requirements of one milestone, in register order."""
    return tuple(entry for entry in REGISTER if entry.milestone == milestone)
