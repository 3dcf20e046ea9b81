"""One row of the comparison, typed, and the kinds of values that the record is made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from resnet8_eval.configurations import Configuration

Status = Literal["met", "not met", "not evaluated"]
Count = Annotated[int, Meta(ge=0)]
Total = Annotated[int, Meta(ge=1)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Points = Annotated[float, Meta(description="In percentage points (pp).")]
Positive = Annotated[float, Meta(ge=0)]
Interval = Annotated[tuple[float, float], Meta(description="Lower and upper limit.")]
Execution = Annotated[
    Literal["kernel", "reference"],
    Meta(
        description="kernel: the runtime's own operators, which for 8-bit tensors are integer "
        "kernels. reference: float32 operators between dequantize and quantize steps."
    ),
]
Word = Annotated[
    Literal[
        "baseline",
        "equivalent",
        "equivalent, lower",
        "equivalent, higher",
        "degraded",
        "improved",
        "inconclusive",
    ],
    Meta(
        description="By the 95 % interval of the delta. equivalent: two one-sided tests at 2.5 % "
        "each, margin ±0.5 pp; lower, higher: and it leaves zero out."
    ),
]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Counts = dict[str, Count]
Ten = Meta(min_length=10, max_length=10)
Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar] | dict[str, Scalar]
"""What is shown as it was found. It has no deeper levels, so no reader has to walk down any."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of the record. A field with a default is left out of the file where it has that."""


class ExpectedRow(Part, frozen=True):
    """A row of the comparison that a complete run has; `recipe` is null for a float32 row."""

    name: str
    framework: str
    dtype: str
    recipe: str | None

    @classmethod
    def of(cls, row: Configuration | ConfigurationResult) -> ExpectedRow:
        """That of a row as it is configured, or as it was measured."""
        return cls(row.name, row.framework, row.dtype, row.recipe.name if row.recipe else None)


class Recipe(Part, frozen=True):
    """How a configuration was quantized; `method` says the rest in words.

    `reduce_range`: whether weights keep 7 bits (±63); null where that is not known.
    """

    name: str
    reduce_range: bool | None
    method: dict[str, Value]
    engine: str | None = None
    runs_as: str | None = None


class PerClass(Part, frozen=True):
    """Accuracy on one class."""

    name: str
    correct: Count
    total: Count
    accuracy_percent: Percent | None


class ClassTest(Part, frozen=True):
    """One class held against the baseline: exact McNemar test, corrected by Holm's method."""

    name: str
    delta_pp: Points
    lost: Count
    gained: Count
    mcnemar_p: Probability
    holm_p: Probability


class Paired(Part, frozen=True):
    """Two models held against each other, image by image, the second less the first.

    `lost` and `gained` are images that only the first, or only the second, gets right.
    """

    delta_pp: Points
    delta_ci95_pp: Interval
    lost: Count
    gained: Count
    mcnemar_p: Probability


class Ties(Part, frozen=True):
    """Images whose two best scores are equal, and how many are right by each rule for them."""

    images: Count
    first: Count
    last: Count
    expected: Positive


class Census(Part, frozen=True):
    """Operators by the tensors that they compute with, and the stored type of each layer."""

    quantized_ops: Counts
    float_ops: Counts
    weights: dict[str, str]


class Support(Part, frozen=True):
    """Whether the framework has integer kernels for unsigned weights, and what each engine said."""

    unsigned_weights: bool
    said: dict[str, str]


class Lowering(Part, frozen=True):
    """Integer kernels held against the model that the framework itself lowered to them."""

    images: Total
    differing: Count | None
    said: str | None


class Kernels(Part, frozen=True):
    """The kernels held against another arithmetic."""

    disagreements: Count
    total: Total
    correct: Count
    probable_cause: str


class Reference(Kernels, frozen=True):
    """In files of version 1, the kernels held against float arithmetic (quantize, dequantize)."""

    largest_score_difference: Positive


class ExactIntegers(Kernels, frozen=True):
    """The kernels held against the same network in exact integer arithmetic."""

    largest_difference: Positive


class Divergence(Part, frozen=True):
    """How far probabilities lie from the baseline's: absolute differences, and the mean KL."""

    largest: Probability
    mean: Probability
    kl_nats: float


class Bin(Part, frozen=True):
    """The images of one of 15 equally wide bins of confidence."""

    images: Count
    confidence_percent: Percent | None
    accuracy_percent: Percent | None


class Reliability(Part, frozen=True):
    """Expected calibration error, and the curve that it is the error of."""

    error_percent: Percent
    bins: tuple[Bin, ...]


class Spread(Part, frozen=True):
    """A figure over the rounds of a measurement."""

    median: Positive
    low: Positive
    high: Positive


class Speed(Part, frozen=True):
    """What LoadGen's two scenarios have in common."""

    threads: Count
    batch: Count
    queries: Count
    valid: bool
    busy_percent: Positive
    speedup: Spread | None


class Latency(Speed, frozen=True):
    """One image at a time (LoadGen's SingleStream) with so many threads.

    `queries`: the fewest of a round. `valid`: whether every round was. `busy_percent`: processor
    time over time. `speedup`: over float32 of the same framework in the same round. A figure is
    null where no round was valid.
    """

    p50_ms: Spread | None
    p90_ms: Spread | None
    p99_ms: Spread | None


class Throughput(Speed, frozen=True):
    """All images at once, in the best batch (LoadGen's Offline); else as :class:`Latency`."""

    images_per_second: Spread | None


class Answers(Part, frozen=True):
    """The scores of LoadGen's accuracy mode held against the evaluation's.

    `images`: how many each timed session answered. `disagreements`: of all sessions together.
    """

    images: Count
    disagreements: Count
    largest_difference: Positive


class ChangedImage(Part, frozen=True):
    """A test image that is newly wrong; classes by number, scores from 0 to 1."""

    index: Count
    true: Count
    baseline_answer: Count
    baseline_score: float
    answer: Count
    score: float
    png_base64: str


class Tensor(Part, frozen=True):
    """A quantized tensor as read back from the stored model; axis null: one scale for all of it."""

    name: str
    kind: Literal["activation", "weight"]
    dtype: str
    axis: int | None
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]


class LayerNoise(Part, frozen=True):
    """Signal to quantization noise of a layer, in dB."""

    name: str
    sqnr_weights_db: float | None
    sqnr_output_db: float | None


class Files(Part, frozen=True):
    """Where the run kept a configuration's model and scores."""

    model: str
    scores: str


class ConfigurationResult(Part, frozen=True):
    """A row of the comparison; delta, lost, gained and agreement are against the baseline.

    Intervals cover the choice of test images, and not that of the calibration set. `mcnemar_p` is
    not corrected for the number of rows. The baseline has neither interval nor p.

    `recipe` and `census` are null for a float32 row. `confusion` has a row for each true class and
    a column for each answer. `quantized_ops` counts operators all of whose operands are 8-bit
    tensors or come out of one; what they compute in is `execution`. `kernels` are the operators of
    the graph as ONNX Runtime ran it, `default_kernels` those of a session opened without any
    setting. `weights_bytes` are those of the stored weights, scales and biases, `optimizer_bytes`
    what training left in a Keras file beside them.
    `integers_sha256` is the same for models that hold the same weights, whatever their zero point.
    `weights_bits` is 7 where every weight lies within ±63. `needs` names the instructions without
    which x86 kernels can saturate on the weights; null where none can.
    `lowering` says what integer kernels that a stock model was lowered to answer, where that was
    tried. `right_base64` says which images are right: one bit each, the first in the highest bit.
    """

    name: str
    framework: str
    dtype: str
    weights_dtype: str
    activations_dtype: str
    execution: Execution
    recipe: Recipe | None
    calibration_seed: int | None
    correct: Count
    total: Total
    accuracy_percent: Percent
    accuracy_ci95_percent: Interval
    delta_pp: Points
    delta_ci95_pp: Interval | None
    mcnemar_p: Probability | None
    lost: Count
    gained: Count
    agreement_percent: Percent
    per_class: Annotated[tuple[PerClass, ...], Ten]
    per_class_delta_pp: dict[str, float]
    confusion: Annotated[tuple[Annotated[tuple[Count, ...], Ten], ...], Ten]
    ties: Ties
    size_bytes: Total
    model_sha256: Sha256
    word: Word
    flagged: bool
    flag_reason: str | None
    quantized_ops: Count
    float_ops: Count | None
    census: Census | None
    support: Support | None
    files: Files | None = None
    weights_bytes: Count | None = None
    optimizer_bytes: Count | None = None
    per_class_tests: tuple[ClassTest, ...] = ()
    right_base64: str | None = None
    changed: tuple[ChangedImage, ...] = ()
    lowering: Lowering | None = None
    kernels: Counts | None = None
    default_kernels: Counts | None = None
    reference: Reference | None = None
    exact_integers: ExactIntegers | None = None
    divergence: Divergence | None = None
    reliability: Reliability | None = None
    baseline_reliability: Reliability | None = None
    latency: tuple[Latency, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    answers: Answers | None = None
    tensors: tuple[Tensor, ...] = ()
    integers_sha256: Sha256 | None = None
    weights_bits: Literal[7, 8] | None = None
    needs: str | None = None
    layers: tuple[LayerNoise, ...] = ()

    def __post_init__(self) -> None:
        if not math.isclose(self.accuracy_percent, 100 * self.correct / self.total, abs_tol=1e-6):
            raise ValueError(f"the accuracy of {self.name} is not that of its counts")
