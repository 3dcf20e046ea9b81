"""The record of a run, typed: all that results.json holds.

Everything in ``report/`` reads this record, and nothing else. Its JSON Schema is published as
``results.schema.json``.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Annotated, Literal

from msgspec import Meta

from resnet8_eval.advanced_record import Advanced
from resnet8_eval.checks import Check
from resnet8_eval.requirements import Direction
from resnet8_eval.row_record import (
    ConfigurationResult,
    Count,
    Counts,
    ExpectedRow,
    Interval,
    Paired,
    Part,
    Percent,
    Points,
    Positive,
    Sha256,
    Status,
    Ten,
    Total,
    Value,
)


class Assets(Part, frozen=True):
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


class Preprocessing(Part, frozen=True):
    """What becomes of a pixel: (scale * pixel - mean) / std, in this order of channels."""

    name: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: Literal["RGB", "BGR"]


class Preprocessings(Part, frozen=True):
    """Accuracy of a user's model on training images by preprocessing, that of the run first.

    `hint`: what the run's own seems to lack, in words; null where nothing is clearly better.
    """

    images: Total
    percent: dict[str, Percent]
    hint: str | None


class Environment(Part, frozen=True):
    """Where the run took place."""

    python: str
    platform: str
    cpu: dict[str, Value]
    packages: dict[str, str]
    git_commit: str | None
    dirty: bool | None
    threads: Counts | None = None


class Baseline(Part, frozen=True):
    """What every delta is from, with its confusion matrix: true classes down, answers across."""

    configuration: str
    correct: Count
    total: Count
    accuracy_percent: Percent
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[Count, ...], ...] = ()


class Milestone(Part, frozen=True):
    """The verdict on a milestone."""

    verdict: Status
    met: Count
    total: Count
    reason: str | None


class RequirementResult(Part, frozen=True):
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


class Gate(Part, frozen=True):
    """What the run demanded of its rows beyond the requirements (--gate).

    `demand` is "equivalent" (to the baseline), or the largest drop in percentage points. `rows` are
    those that it judged, stock rows not among them; a row without a number fails, and so does one
    that fails with any of the calibration seeds.
    """

    demand: Literal["equivalent"] | Positive
    met: bool
    rows: tuple[str, ...]
    failing: tuple[str, ...]


class Timing(Part, frozen=True):
    """How speed was measured, and what makes the figures doubtful (`told`, in words).

    `others_percent`: processor time of the machine that other processes took meanwhile.
    """

    processor: str
    loadgen: str
    rounds: Count
    min_queries: Count
    others_percent: Percent
    told: tuple[str, ...]


class Tuning(Paired, frozen=True):
    """What tuning changed in one cell: the tuned row held against the stock one.

    `mcnemar_p` is not corrected for the number of cells.
    """

    stock: str
    tuned: str
    agreement_percent: Percent


class OverSeeds(Part, frozen=True):
    """A figure over calibration seeds: mean, sample standard deviation, and the worst."""

    mean: float
    deviation: Positive
    worst: float


class SeedsOfRow(Part, frozen=True):
    """A row made with each calibration seed: counts in the order of the seeds, and their spread."""

    name: str
    correct: tuple[Count, ...]
    accuracy_percent: OverSeeds
    delta_pp: OverSeeds
    agreement_percent: OverSeeds


class Seeds(Part, frozen=True):
    """The quantized rows over several calibration seeds (--seeds), on the same test images."""

    seeds: tuple[int, ...]
    total: Total
    rows: tuple[SeedsOfRow, ...]


class Agreement(Part, frozen=True):
    """Share of test images that two rows class alike; rows and columns in the order of `rows`."""

    rows: tuple[str, ...]
    percent: tuple[tuple[Percent, ...], ...]


class Calibration(Part, frozen=True):
    """The images that the quantized models were calibrated with."""

    source: Literal["train"]
    count: Count
    per_class: Annotated[tuple[Count, ...], Ten]
    indices_sha256: Sha256
    seed: int
    checks: tuple[Check, ...]


class LayerCost(Part, frozen=True):
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


class Sensitivity(Part, frozen=True):
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


Limits = Annotated[
    tuple[float, float, float, float],
    Meta(description="Smallest and largest value, lowest and highest of the 8-bit range."),
]


class Histogram(Part, frozen=True):
    """Values of a layer, in equally wide bins from `low` to `high`, and what 8 bits span of them.

    `clip`: the range of 8 bits; null for weights, each channel of which has its own. `channels`:
    limits of each output channel.
    """

    low: float
    high: float
    counts: tuple[Count, ...]
    clip: Interval | None
    clipped_percent: Percent
    channels: tuple[Limits, ...]


class NetworkLayer(Part, frozen=True):
    """A layer of the folded network, called as in Keras.

    `keras`: the Keras layers that became part of it, its own first. `reads`: the layers whose
    output it takes, or "images". `shape`: of its output, without the batch, channels last.
    """

    name: str
    kind: Literal["convolution", "addition", "pooling", "dense"]
    keras: tuple[str, ...]
    reads: tuple[str, ...]
    shape: tuple[Count, ...]
    weights: Histogram | None
    output: Histogram | None


class Drawn(Part, frozen=True):
    """The network as a recipe quantizes it, in float32; outputs on so many calibration images."""

    recipe: str
    images: Total
    layers: tuple[NetworkLayer, ...]


class Step(Part, frozen=True):
    """A step of the conversion."""

    step: str
    seconds: float


class Warned(Part, frozen=True):
    """A warning that the conversion gave."""

    step: str
    source: str
    category: str
    message: str


class Conversion(Part, frozen=True):
    """What the conversion to ONNX did."""

    opset: Count
    producer: str
    steps: tuple[Step, ...]
    warnings: tuple[Warned, ...]
    versions: dict[str, str]


class Stage(Part, frozen=True):
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


class Results(Part, frozen=True):
    """What one run of the acceptance suite found.

    Percentages are in percent, deltas in percentage points. `selected`: the requirements that the
    run was asked for. `complete`: the run ended by itself, and its number settled each requirement
    of every milestone, as met or as not met; one that is judged only on demand counts where it was
    asked for. `expected`: the rows of a complete run, in the order of the comparison. `stopped`:
    what ended the run before its time, and what it was doing. `sensitivity` is null where it was
    not measured (--layers). `advanced`: what milestone v1_4 measured, in this run or in an earlier
    one with the same code and settings. `network`: what the first recipe quantizes, to look at.
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
    advanced: Advanced | None = None
    network: Drawn | None = None

    def __post_init__(self) -> None:
        names = [row.name for row in self.configurations]
        if len(set(names)) < len(names):
            raise ValueError("two configurations have one name")
        for change in self.tuning:
            if not {change.stock, change.tuned} <= {*names}:
                raise ValueError(f"no configurations {change.stock} and {change.tuned}")
        alike = self.agreement
        if alike and [*map(len, alike.percent)] != [len(alike.rows)] * len(alike.rows):
            raise ValueError("agreement has not a line and a column for each of its rows")
        for entry in self.requirements:
            if entry.milestone not in self.milestones:
                raise ValueError(f"no milestone {entry.milestone}, which {entry.id} belongs to")
            if self.milestones[entry.milestone].verdict == "met" and entry.status != "met":
                raise ValueError(f"{entry.milestone} is met although {entry.id} is {entry.status}")
        TopologicalSorter({name: stage.needs for name, stage in self.stages.items()}).prepare()
