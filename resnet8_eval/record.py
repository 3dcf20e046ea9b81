"""The record of a run, typed: all that results.json holds.

Everything in ``report/`` reads this record, and nothing else. Its JSON Schema is published as
``results.schema.json``.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from resnet8_eval.checks import Check
from resnet8_eval.requirements import Direction

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


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of the record. A field with a default is left out of the file where it has that."""


class Assets(_Part, frozen=True):
    """What was judged, and on which files.

    `min_accuracy_percent`: what the user said that a model of theirs must exceed (--min-accuracy);
    null for the register's threshold. `preprocessing`: null for raw pixels.
    """

    kind: Literal["real", "stand-in"]
    model_name: str
    model_sha256: Sha256
    user_model: bool
    dataset_md5: dict[str, str]
    min_accuracy_percent: Percent | None = None
    preprocessing: Preprocessing | None = None


class Preprocessing(_Part, frozen=True):
    """What becomes of a pixel: (scale * pixel - mean) / std, in this order of channels."""

    name: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: Literal["RGB", "BGR"]


class Preprocessings(_Part, frozen=True):
    """Accuracy of a user's model on training images by preprocessing, that of the run first.

    `hint`: what the run's own seems to lack, in words; null where nothing is clearly better.
    """

    images: Total
    percent: dict[str, Percent]
    hint: str | None


class Environment(_Part, frozen=True):
    """Where the run took place."""

    python: str
    platform: str
    cpu: dict[str, Value]
    packages: dict[str, str]
    git_commit: str | None
    dirty: bool | None
    threads: Counts | None = None


class Baseline(_Part, frozen=True):
    """What every delta is from."""

    configuration: str
    correct: Count
    total: Count
    accuracy_percent: Percent


class Milestone(_Part, frozen=True):
    """The verdict on a milestone."""

    verdict: Status
    met: Count
    total: Count
    reason: str | None


class RequirementResult(_Part, frozen=True):
    """A requirement, what was measured of it, and the evidence; numbers in `unit`.

    `phase` is that of the requirements document, 0 where it is not known.
    """

    id: Annotated[str, Meta(pattern="^[A-Z]+-[0-9]{2}$")]
    title: str
    milestone: str
    phase: Count
    quantity: str
    status: Status
    outcome_on_standin: Literal["met", "not met"] | None
    measured: float | None
    threshold: float
    direction: Direction
    unit: str
    margin: float | None
    evidence: tuple[Check, ...]
    test: str | None
    reason: str | None


class Gate(_Part, frozen=True):
    """What the run demanded of its rows beyond the requirements (--gate).

    `demand` is "equivalent" (to the baseline), or the largest drop in percentage points. `rows` are
    those that it judged, stock rows not among them; a row without a number fails.
    """

    demand: Literal["equivalent"] | Positive
    met: bool
    rows: tuple[str, ...]
    failing: tuple[str, ...]


class ExpectedRow(_Part, frozen=True):
    """A row of the comparison that a complete run has; `recipe` is null for a float32 row."""

    name: str
    framework: str
    dtype: str
    recipe: str | None


class Recipe(_Part, frozen=True):
    """How a configuration was quantized; `method` says the rest in words.

    `reduce_range`: whether weights keep 7 bits (±63); null where that is not known.
    """

    name: str
    reduce_range: bool | None
    method: dict[str, Value]
    engine: str | None = None
    runs_as: str | None = None


class PerClass(_Part, frozen=True):
    """Accuracy on one class."""

    name: str
    correct: Count
    total: Count
    accuracy_percent: Percent | None


class ClassTest(_Part, frozen=True):
    """One class held against the baseline: exact McNemar test, corrected by Holm's method."""

    name: str
    delta_pp: Points
    lost: Count
    gained: Count
    mcnemar_p: Probability
    holm_p: Probability


class Ties(_Part, frozen=True):
    """Images whose two best scores are equal, and how many are right by each rule for them."""

    images: Count
    first: Count
    last: Count
    expected: Positive


class Census(_Part, frozen=True):
    """Operators by the tensors that they compute with, and the stored type of each layer."""

    quantized_ops: Counts
    float_ops: Counts
    weights: dict[str, str]


class Support(_Part, frozen=True):
    """Whether the framework has integer kernels for unsigned weights, and what each engine said."""

    unsigned_weights: bool
    said: dict[str, str]


class Lowering(_Part, frozen=True):
    """Integer kernels held against the model that the framework itself lowered to them."""

    images: Total
    differing: Count | None
    said: str | None


class Reference(_Part, frozen=True):
    """In files of version 1, the kernels held against float arithmetic (quantize, dequantize)."""

    disagreements: Count
    total: Total
    correct: Count
    largest_score_difference: Positive
    probable_cause: str


class ExactIntegers(_Part, frozen=True):
    """The kernels held against the same network in exact integer arithmetic."""

    disagreements: Count
    total: Total
    correct: Count
    largest_difference: Positive
    probable_cause: str


class Divergence(_Part, frozen=True):
    """How far probabilities lie from the baseline's: absolute differences, and the mean KL."""

    largest: Probability
    mean: Probability
    kl_nats: float


class Bin(_Part, frozen=True):
    """The images of one of 15 equally wide bins of confidence."""

    images: Count
    confidence_percent: Percent | None
    accuracy_percent: Percent | None


class Reliability(_Part, frozen=True):
    """Expected calibration error, and the curve that it is the error of."""

    error_percent: Percent
    bins: tuple[Bin, ...]


class Spread(_Part, frozen=True):
    """A figure over the rounds of a measurement."""

    median: Positive
    low: Positive
    high: Positive


class Latency(_Part, frozen=True):
    """One image at a time (LoadGen's SingleStream) with so many threads.

    `queries`: the fewest of a round. `valid`: whether every round was. `busy_percent`: processor
    time over time. `speedup`: over float32 of the same framework in the same round. A figure is
    null where no round was valid.
    """

    threads: Count
    batch: Count
    queries: Count
    valid: bool
    busy_percent: Positive
    speedup: Spread | None
    p50_ms: Spread | None
    p90_ms: Spread | None
    p99_ms: Spread | None


class Throughput(_Part, frozen=True):
    """All images at once, in the best batch (LoadGen's Offline); else as :class:`Latency`."""

    threads: Count
    batch: Count
    queries: Count
    valid: bool
    busy_percent: Positive
    speedup: Spread | None
    images_per_second: Spread | None


class Answers(_Part, frozen=True):
    """The scores of LoadGen's accuracy mode held against the evaluation's.

    `images`: how many each timed session answered. `disagreements`: of all sessions together.
    """

    images: Count
    disagreements: Count
    largest_difference: Positive


class Timing(_Part, frozen=True):
    """How speed was measured, and what makes the figures doubtful (`told`, in words).

    `others_percent`: processor time of the machine that other processes took meanwhile.
    """

    processor: str
    loadgen: str
    rounds: Count
    min_queries: Count
    others_percent: Percent
    told: tuple[str, ...]


class ChangedImage(_Part, frozen=True):
    """A test image that is newly wrong; classes by number, scores from 0 to 1."""

    index: Count
    true: Count
    baseline_answer: Count
    baseline_score: float
    answer: Count
    score: float
    png_base64: str


class Tensor(_Part, frozen=True):
    """A quantized tensor as read back from the stored model; axis null: one scale for all of it."""

    name: str
    kind: Literal["activation", "weight"]
    dtype: str
    axis: int | None
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]


class LayerNoise(_Part, frozen=True):
    """Signal to quantization noise of a layer, in dB."""

    name: str
    sqnr_weights_db: float | None
    sqnr_output_db: float | None


class Files(_Part, frozen=True):
    """Where the run kept a configuration's model and scores."""

    model: str
    scores: str


class ConfigurationResult(_Part, frozen=True):
    """A row of the comparison; delta, lost, gained and agreement are against the baseline.

    Intervals cover the choice of test images, and not that of the calibration set. `mcnemar_p` is
    not corrected for the number of rows. The baseline has neither interval nor p.

    `recipe` and `census` are null for a float32 row. `confusion` has a row for each true class and
    a column for each answer. `quantized_ops` counts operators all of whose operands are 8-bit
    tensors or come out of one; what they compute in is `execution`. `kernels` are the operators of
    the graph as ONNX Runtime ran it, `default_kernels` those of a session opened without any
    setting. `optimizer_bytes` are what training left in a Keras file beside its `weights_bytes`.
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


class Tuning(_Part, frozen=True):
    """What tuning changed in one cell: the tuned row held against the stock one, image by image.

    `mcnemar_p` is not corrected for the number of cells.

    `lost` and `gained` are images that only the stock, or only the tuned, model gets right.
    """

    stock: str
    tuned: str
    delta_pp: Points
    delta_ci95_pp: Interval
    lost: Count
    gained: Count
    mcnemar_p: Probability
    agreement_percent: Percent


class OverSeeds(_Part, frozen=True):
    """A figure over calibration seeds: mean, sample standard deviation, and the worst."""

    mean: float
    deviation: Positive
    worst: float


class SeedsOfRow(_Part, frozen=True):
    """A row made with each calibration seed: counts in the order of the seeds, and their spread."""

    name: str
    correct: tuple[Count, ...]
    accuracy_percent: OverSeeds
    delta_pp: OverSeeds
    agreement_percent: OverSeeds


class Seeds(_Part, frozen=True):
    """The quantized rows over several calibration seeds (--seeds), on the same test images."""

    seeds: tuple[int, ...]
    total: Total
    rows: tuple[SeedsOfRow, ...]


class Agreement(_Part, frozen=True):
    """Share of test images that two rows class alike; rows and columns in the order of `rows`."""

    rows: tuple[str, ...]
    percent: tuple[tuple[Percent, ...], ...]


class Calibration(_Part, frozen=True):
    """The images that the quantized models were calibrated with."""

    source: Literal["train"]
    count: Count
    per_class: Annotated[tuple[Count, ...], Ten]
    indices_sha256: Sha256
    seed: int
    checks: tuple[Check, ...]


class LayerCost(_Part, frozen=True):
    """What a layer costs, each figure with its 95 % interval.

    `alone`: with it alone quantized, divergence from float32 and agreement with it. `recovered`:
    by how much the wholly quantized network comes nearer to float32 with it alone in float.
    """

    name: str
    divergence_alone_nats: float
    divergence_alone_ci95_nats: Interval
    agreement_alone_percent: Percent
    agreement_alone_ci95_percent: Interval
    divergence_recovered_nats: float
    divergence_recovered_ci95_nats: Interval
    agreement_recovered_pp: Points
    agreement_recovered_ci95_pp: Interval


class Sensitivity(_Part, frozen=True):
    """What each layer costs: one measurement for all rows of a recipe, whose integers they share.

    `calibrated` counts the images that also calibrated, `noise_images` those on which the noise of
    each layer was measured. Accuracies, divergence and agreement are of the wholly quantized
    network, the last two from float32.
    """

    recipe: str
    source: Literal["train"]
    images: Total
    calibrated: Count
    noise_images: Count
    arithmetic: str
    float_percent: Percent
    quantized_percent: Percent
    divergence_nats: float
    divergence_ci95_nats: Interval
    agreement_percent: Percent
    agreement_ci95_percent: Interval
    layers: tuple[LayerCost, ...]


class Step(_Part, frozen=True):
    """A step of the conversion."""

    step: str
    seconds: float


class Warned(_Part, frozen=True):
    """A warning that the conversion gave."""

    step: str
    source: str
    category: str
    message: str


class Conversion(_Part, frozen=True):
    """What the conversion to ONNX did."""

    opset: Count
    producer: str
    steps: tuple[Step, ...]
    warnings: tuple[Warned, ...]
    versions: dict[str, str]


class Stage(_Part, frozen=True):
    """A stage of the run; `started` and `ended` in seconds since the run started.

    Both are null for what came from the cache, whose `seconds` are those of when it was made, and
    where they are not known.
    """

    lane: str | None
    needs: tuple[str, ...]
    seconds: Positive
    cache: Literal["hit", "miss"]
    started: float | None
    ended: float | None


class Results(_Part, frozen=True):
    """What one run of the acceptance suite found.

    Percentages are in percent, deltas in percentage points. `selected`: the requirements that the
    run was asked for. `complete`: the run ended by itself, and its number settled each requirement
    of every milestone, as met or as not met. `expected`: the rows of a complete run, in the order
    of the comparison. `stopped`: what ended the run before its time, and what it was doing.
    `sensitivity` is null where it was not measured (--layers).
    """

    schema_version: Literal[2]
    created: str
    command: str
    selected: tuple[str, ...]
    complete: bool
    assets: Assets
    environment: Environment
    baseline: Baseline | None
    milestones: dict[str, Milestone]
    requirements: tuple[RequirementResult, ...]
    expected: tuple[ExpectedRow, ...]
    configurations: tuple[ConfigurationResult, ...]
    calibration: Calibration | None
    sensitivity: Sensitivity | None
    conversion: Conversion | None
    stages: dict[str, Stage]
    tuning: tuple[Tuning, ...] = ()
    agreement: Agreement | None = None
    stopped: str | None = None
    timing: Timing | None = None
    gate: Gate | None = None
    preprocessings: Preprocessings | None = None
    seeds: Seeds | None = None

    def __post_init__(self) -> None:
        names = [row.name for row in self.configurations]
        if len(set(names)) < len(names):
            raise ValueError("two configurations have one name")
        for entry in self.requirements:
            if entry.milestone not in self.milestones:
                raise ValueError(f"no milestone {entry.milestone}, which {entry.id} belongs to")
        TopologicalSorter({name: stage.needs for name, stage in self.stages.items()}).prepare()
