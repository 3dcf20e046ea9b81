"""The quantized network in simulated arithmetic: any number of bits, in any choice of layers.

Every tensor is float32 and lies on its grid: rounded, clipped, and scaled back after each layer.
It computes what the reference executions do, so that one function serves the accuracy map, the
sensitivity of single layers, and the choice of recipes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn import functional

from resnet8_eval.preprocess import batches
from resnet8_eval.quantize.graph import ints
from resnet8_eval.quantize.parameters import grid

Ranges = Mapping[str, tuple[float, float]]


class Simulation:
    """A network whose layers can be quantized one by one.

    Parameters
    ----------
    model
        The equalized float32 network.
    rounded
        The same network with rounded weights and corrected biases.
    ranges
        Tensor name to the range of its grid.
    levels
        Largest integer of an activation's grid: 255 for 8 bits. The input keeps its 8 bits.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        rounded: onnx.ModelProto,
        ranges: Ranges,
        levels: int = 255,
    ) -> None:
        self._nodes = list(model.graph.node)
        self._input = model.graph.input[0].name
        self._float, self._rounded = _constants(model), _constants(rounded)
        relu = {node.input[0] for node in self._nodes if node.op_type == "Relu"}
        self._grids = {
            node.output[0]: (*grid(*ranges[node.output[0]], levels), levels)
            for node in self._nodes
            if node.op_type in ("Conv", "Add", "Relu", "GlobalAveragePool")
            and node.output[0] not in relu
        }
        self.layers = [node.name for node in self._nodes if node.op_type in ("Conv", "Gemm")]
        self._owner = self._owners()

    def logits(
        self, images: NDArray[np.uint8], layers: Collection[str] | None = None
    ) -> NDArray[np.float32]:
        """The scores before softmax.

        Parameters
        ----------
        images
            uint8 (N, 32, 32, 3).
        layers
            Names of the layers (:attr:`layers`) to quantize, weights and outputs; by default all.
            The sum that a layer's output enters, and the pooled map, count with the layer before.

        Returns
        -------
        ndarray
            float32 (N, 10).
        """
        chosen = set(self.layers if layers is None else layers)
        with torch.inference_mode():
            parts = [
                self._score(self._run(torch.from_numpy(batch), chosen)) for batch in batches(images)
            ]
            return torch.cat(parts).numpy()

    def logits_by_layer(
        self, images: NDArray[np.uint8], layers: Collection[str]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """The scores before softmax, and those with one layer changed, for each layer.

        What comes before the changed layer is computed once for all.

        Parameters
        ----------
        images
            uint8 (N, 32, 32, 3).
        layers
            Names of the layers to quantize. A changed layer is left in float if it is one of them,
            and quantized if not.

        Returns
        -------
        unchanged : ndarray
            float32 (N, 10).
        changed : dict
            Layer name to float32 (N, 10).
        """
        chosen = set(layers)
        first = {node.name: place for place, node in enumerate(self._nodes)}
        unchanged: list[torch.Tensor] = []
        changed: dict[str, list[torch.Tensor]] = {name: [] for name in self.layers}
        with torch.inference_mode():
            for batch in batches(images):
                values = self._run(torch.from_numpy(batch), chosen)
                unchanged.append(self._score(values))
                for name, parts in changed.items():
                    rest = self._run(values[self._input], chosen ^ {name}, values, first[name])
                    parts.append(self._score(rest))
            return torch.cat(unchanged).numpy(), {
                name: torch.cat(parts).numpy() for name, parts in changed.items()
            }

    def _owners(self) -> dict[str, str]:
        """Each tensor's layer: the weighted one that last shaped it."""
        owner: dict[str, str] = {}
        for node in self._nodes:
            if node.op_type in ("Conv", "Gemm"):
                owner[node.output[0]] = node.name
            else:
                before = [owner[name] for name in node.input if name in owner]
                if before:
                    owner[node.output[0]] = max(before, key=self.layers.index)
        return owner

    def _run(
        self,
        images: torch.Tensor,
        chosen: set[str],
        known: Mapping[str, torch.Tensor] = {},
        first: int = 0,
    ) -> dict[str, torch.Tensor]:
        """Every tensor; those of the nodes before `first` are known."""
        values = {**known, self._input: images}
        for node in self._nodes[first:]:
            if node.op_type == "Softmax":
                continue
            constants = self._rounded if node.name in chosen else self._float
            y = _compute(node, [values.get(n, constants.get(n)) for n in node.input])
            name = node.output[0]
            if name in self._grids and self._owner[name] in chosen:
                scale, zero_point, levels = self._grids[name]
                y = torch.fake_quantize_per_tensor_affine(y, scale, zero_point, 0, levels)
            values[name] = y
        return values

    def _score(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return next(values[n.input[0]] for n in self._nodes if n.op_type == "Softmax")


def _constants(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    return {
        entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
        for entry in model.graph.initializer
    }


def _compute(node: onnx.NodeProto, inputs: list[Any]) -> torch.Tensor:
    """One operator of a ResNet8 in float32."""
    x = inputs[0]
    match node.op_type:
        case "Transpose":
            return x.permute(*ints(node, "perm", []))
        case "Conv":
            top, left, bottom, right = ints(node, "pads", [0, 0, 0, 0])
            padded = functional.pad(x, (left, right, top, bottom)) if top + bottom else x
            return functional.conv2d(padded, inputs[1], inputs[2], ints(node, "strides", [1, 1]))
        case "Gemm":
            return x @ inputs[1] + inputs[2]
        case "Add":
            return x + inputs[1]
        case "Relu":
            return x.relu()
        case "GlobalAveragePool":
            return x.mean(dim=(2, 3), keepdim=True)
        case "Reshape" | "Flatten":
            return x.flatten(1)
        case other:
            raise NotImplementedError(f"no simulated form of {other}")


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax of float32 scores (N, 10)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
