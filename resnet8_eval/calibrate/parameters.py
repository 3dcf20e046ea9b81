"""Quantization parameters: what calibration decided, for any framework to write."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import network
from resnet8_eval.network import Network, Pooling

EXACT: Final = "equalized.onnx"
"""The float32 network that the rounded one stands for, channel by channel."""
ROUNDED: Final = "rounded.onnx"
ACTIVATIONS, WEIGHTS = "activations.json", "weights.npz"
Range = tuple[float, float]
Ranges = dict[str, Range]


@dataclass(frozen=True)
class Parameters:
    """Everything that turns a float32 network into a quantized one.

    Attributes
    ----------
    exact
        The equalized float32 network.
    rounded
        The same with weights that lie on their grid, and corrected biases.
    activations
        Tensor to the range (lowest, highest) of real values that its 8 bits span; it always holds
        zero. The network's input and the output of every map have one.
    scales
        Weight to float32 scales, one for each output channel. A layer left in float has none.
    integers
        Weight to int8 values in [-127, 127], output channel first; times its scale, each gives the
        weight in `rounded`.
    """

    exact: Network
    rounded: Network
    activations: Ranges
    scales: dict[str, NDArray[np.float32]]
    integers: dict[str, NDArray[np.int8]]

    def every_range(self) -> Ranges:
        """`activations`, also by the names of tensors that share the range of another.

        Those are tensors that are only moved, and those that go straight into a ReLU.
        """
        shared = dict(self.rounded.moved)
        for layer in self.rounded.maps:
            if not isinstance(layer, Pooling) and layer.before_relu:
                shared[layer.before_relu] = layer.output
        named = {name: self.activations[whose] for name, whose in shared.items()}
        return {**self.activations, **named}

    @classmethod
    def load(cls, folder: Path, prefix: str = "") -> Parameters:
        """Read what :meth:`save` wrote."""
        ranges = json.loads((folder / f"{prefix}{ACTIVATIONS}").read_text())
        kinds = load_arrays(folder / f"{prefix}{WEIGHTS}")
        return cls(
            network.read(folder / f"{prefix}{EXACT}"),
            network.read(folder / f"{prefix}{ROUNDED}"),
            {name: (low, high) for name, (low, high) in ranges.items()},
            kinds["scale"],
            kinds["integers"],
        )

    def save(self, folder: Path, prefix: str = "") -> None:
        """Write them into `folder`; where it holds several, each has a `prefix` of its own."""
        self.exact.save(folder / f"{prefix}{EXACT}")
        self.rounded.save(folder / f"{prefix}{ROUNDED}")
        (folder / f"{prefix}{ACTIVATIONS}").write_text(json.dumps(self.activations, indent=1))
        save_arrays(folder / f"{prefix}{WEIGHTS}", scale=self.scales, integers=self.integers)


def save_arrays(path: Path, **kinds: Mapping[str, Any]) -> None:
    """Write arrays of several kinds, each by its tensor's name, into one ``.npz``."""
    named = {
        f"{kind} {name}": part for kind, parts in kinds.items() for name, part in parts.items()
    }
    np.savez(path, allow_pickle=False, **named)


def load_arrays(path: Path) -> dict[str, dict[str, Any]]:
    """Read what :func:`save_arrays` wrote, by kind and name."""
    kinds: dict[str, dict[str, Any]] = defaultdict(dict)
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, _, name = key.partition(" ")
            kinds[kind][name] = arrays[key]
    return kinds


class Grid(NamedTuple):
    """Scale and zero point of a tensor of unsigned integers."""

    scale: float
    zero_point: int


def grid(low: float, high: float, levels: int = 255) -> Grid:
    """Scale (of float32) and zero point (0 to `levels`) of an affine grid of unsigned integers.

    Parameters
    ----------
    low, high
        The real values to span; widened to hold zero, which must be exact because convolutions
        pad with it (Jacob et al. 2018, section 2.1).
    levels
        The largest integer.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / levels)) or 1.0
    # Like ONNX Runtime's quantizer, use the scale before it is rounded to float32: for a range
    # that is symmetric around zero, the zero point lies halfway between two integers.
    exact = (float(np.float32(high)) - float(np.float32(low))) / levels or 1.0
    return Grid(scale, round(float(-np.float32(low)) / exact))
