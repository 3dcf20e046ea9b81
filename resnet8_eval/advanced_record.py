"""What there is of v1_4 in the record of a run: granularity, bits per layer, fine-tuning."""

from __future__ import annotations

from typing import Literal

import msgspec

from resnet8_eval.row_record import (
    Count,
    Divergence,
    Interval,
    Paired,
    Part,
    Percent,
    Points,
    Sha256,
    Total,
    Word,
)


class Cell(Part, frozen=True):
    """A cell of the exploration of weight scales, as it was stored and scored.

    `scales`: fewest and most distinct weight scales of a layer in the stored model.
    """

    name: str
    granularity: Literal["per-tensor", "per-channel"]
    model_sha256: Sha256
    correct: Count
    total: Total
    scales: tuple[Count, Count]
    weights: tuple[str, ...]
    activations: tuple[str, ...]


class FromBaseline(Part, frozen=True):
    """How alike a model's answers and probabilities are to the baseline's."""

    agreement_percent: Percent
    kl_nats: float


class Granularity(Paired, frozen=True):
    """Per-channel weight scales held against per-tensor ones, for one seed."""

    seed: int
    cells: tuple[Cell, Cell]
    agreement_percent: Percent
    word: Word
    from_baseline: dict[str, FromBaseline]


class ChannelRanges(Part, frozen=True):
    """The largest magnitude of the weights of each channel of a layer, ascending."""

    name: str
    largest: tuple[float, ...]


class Width(Part, frozen=True):
    """What a part costs at some bits: divergence with it alone at those bits, and bytes."""

    kl_nats: float
    bytes: Count


class Which(Part, frozen=True):
    """A part of a front, by its names."""

    layer: str
    kind: Literal["weights", "activations"]


class BitPart(Which, frozen=True):
    """The weights of a layer, or its maps, and what they cost at each width."""

    widths: dict[str, Width]


class FrontPoint(Part, frozen=True):
    """A choice that no other beats in size and predicted divergence; `bits` of each part."""

    bits: tuple[Count, ...]
    bytes: Count
    predicted: float
    measured: float | None


class HeldPoint(Part, frozen=True):
    """A choice held against float32 on training images."""

    point: Count
    images: Total
    kl_nats: float
    agreement_percent: Percent
    lost: Count
    gained: Count
    delta_ci95_pp: Interval
    passes: bool


class Front(Part, frozen=True):
    """Size against divergence, the smallest first; `chosen`, the smallest point that passes."""

    parts: tuple[Which, ...]
    points: tuple[FrontPoint, ...]
    held: tuple[HeldPoint, ...]
    chosen: Count | None


class Bits(Part, frozen=True):
    """Bits of each weight and of each map, by name."""

    weights: dict[str, Count]
    activations: dict[str, Count]


class LowBit(Paired, frozen=True):
    """A network of few bits, as it was stored and scored by a plain session of ONNX Runtime."""

    name: str
    correct: Count
    total: Total
    accuracy_percent: Percent
    accuracy_ci95_percent: Interval
    agreement_percent: Percent
    divergence: Divergence
    word: Word
    size_bytes: Total
    weights_bytes: Total
    model_sha256: Sha256
    disagreements: Count
    largest_difference: float


class Mixed(Part, frozen=True):
    """Bits per layer: costs, fronts, choices, and what became of them.

    `measured_on` training images measured costs, `held_on` others held choices.
    """

    measured_on: Total
    held_on: Total
    parts: tuple[BitPart, ...]
    fronts: dict[str, Front]
    bits: dict[str, Bits]
    rows: tuple[LowBit, ...]


class Epoch(Part, frozen=True):
    """What a network in training was on validation images after an epoch; at first, before any.

    `loss`, the mean cross-entropy with the float network on the images that trained.
    """

    kl_nats: float
    agreement_percent: Percent
    loss: float | None = None


class Training(Part, frozen=True):
    """How a network was fine-tuned. `moved_percent` of its weights' integers changed."""

    seed: Count
    trained_on: Total
    validated_on: Total
    moved_percent: Percent
    history: tuple[Epoch, ...]


class InTorch(Part, frozen=True):
    """The same network in PyTorch's integer kernels, which hold few bits in 8.

    `said`: what PyTorch said to a convolution with 4-bit weights. `other_than_onnx`: test images of
    another class than in ONNX Runtime.
    """

    correct: Count
    total: Total
    weights_bytes: Total
    model_sha256: Sha256
    disagreements: Count
    other_than_onnx: Count
    said: str


class FineTuned(LowBit, frozen=True, kw_only=True):
    """A fine-tuned network, as it was stored and scored; `name`, its bits and place of its seed.

    `beside`: held against the same bits without training, on the test images.
    """

    training: Training
    beside: Paired
    torch: InTorch | None = None


class MeanOfSeeds(Part, frozen=True):
    """Mean of the trainings of the same bits, and its gain over those bits without training.

    `gain_ci95_pp`, over the test images.
    """

    bits: str
    seeds: Count
    accuracy_percent: Percent
    delta_pp: Points
    gain_pp: Points
    gain_ci95_pp: Interval


class Advanced(Part, frozen=True):
    """What milestone v1_4 measured, as far as it was asked for or made before."""

    granularity: tuple[Granularity, ...] = ()
    ranges: dict[str, tuple[ChannelRanges, ...]] = msgspec.field(default_factory=dict)
    mixed: Mixed | None = None
    fine_tuned: tuple[FineTuned, ...] = ()
    means: tuple[MeanOfSeeds, ...] = ()
