"""How many bits each layer has."""

from __future__ import annotations

from dataclasses import dataclass

from resnet8_eval.environment import REDUCED_LIMIT
from resnet8_eval.network import Network


@dataclass(frozen=True)
class Bits:
    """Bits of each weight and of each map, by name; the input has 8, and scores are float32."""

    weights: dict[str, int]
    activations: dict[str, int]

    @classmethod
    def all(cls, network: Network, weights: int, activations: int) -> Bits:
        """The same bits everywhere."""
        return cls(
            {layer.weight: weights for layer in network.weighted},
            {layer.output: activations for layer in network.maps},
        )

    def levels(self) -> dict[str, int]:
        """Map name to the largest integer of its grid."""
        return {name: largest(bits) for name, bits in self.activations.items()}


def limit(bits: int) -> int:
    """Largest magnitude of a weight of so many bits.

    Of 8, seven are used, so that no x86 kernel can saturate on any processor.
    """
    return min(2 ** (bits - 1) - 1, REDUCED_LIMIT)


def largest(bits: int) -> int:
    """Largest integer of an activation of so many bits."""
    return int(2**bits - 1)
