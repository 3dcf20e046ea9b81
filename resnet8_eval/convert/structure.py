"""Is the ONNX model the Keras model? Layer by layer, weight by weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.checks import Check, equal
from resnet8_eval.store import Record

Weights = Mapping[str, NDArray[np.float32]]

_FOLDING_RTOL: Final = 1e-5
"""tf2onnx precomputes gamma / sqrt(variance + epsilon) in float32, whose rounding is 6e-8 a step;
the products that follow stay well within this."""


def verify_onnx(
    onnx_path: Path, layers: list[dict[str, Any]], weights: Weights
) -> tuple[list[Check], list[Record]]:
    """Hold an ONNX model against the Keras model that it was made from.

    Parameters
    ----------
    onnx_path
        The converted model.
    layers
        The Keras layers, as :func:`resnet8_eval.convert.keras_to_onnx.convert` records them.
    weights
        Every Keras weight, float32, named ``layer/weight``; kernels are HWIO.

    Returns
    -------
    checks : list of Check
        Interface, operator counts, kernels and strides in order, parameters.
    accounts : list of dict
        For each Keras layer with weights: its parameters and the ONNX tensors that hold them.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_path).graph
    tensors = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    by_type: dict[str, list[Any]] = {}
    for node in graph.node:
        by_type.setdefault(node.op_type, []).append(node)
    convolutions = by_type.get("Conv", [])
    dense = by_type.get("MatMul", []) + by_type.get("Gemm", [])

    ledger = _Ledger(tensors, convolutions, by_type.get("Mul", []), by_type.get("Add", []), dense)
    accounts = [
        ledger.account(layer, _weights_of(layer, weights)) for layer in layers if layer["weights"]
    ]
    found = {account["layer"]: account for account in accounts}
    keras_convolutions = [layer for layer in layers if layer["class"] == "Conv2D"]
    kernels = [
        (tuple(layer["weights"]["kernel"]), found[layer["name"]].get("strides"))
        for layer in keras_convolutions
    ]
    expected_kernels = [
        (tuple(layer["weights"]["kernel"]), tuple(layer["strides"])) for layer in keras_convolutions
    ]
    parameters = sum(layer["parameters"] for layer in layers)
    checks = [
        equal("input", "(N, 32, 32, 3) float32", _interface(graph.input)),
        equal("output", "(N, 10) float32", _interface(graph.output)),
        equal("convolutions", len(keras_convolutions), len(convolutions)),
        equal("dense layers", sum(layer["class"] == "Dense" for layer in layers), len(dense)),
        equal("kernels (HWIO) and strides, in order", expected_kernels, kernels),
        equal("parameters found in ONNX", parameters, sum(a["found"] for a in accounts)),
        equal(
            "layers whose weights are not in ONNX",
            [],
            [a["layer"] for a in accounts if a["found"] != a["parameters"]],
        ),
        equal("ONNX weights that are not from Keras", [], ledger.unclaimed()),
    ]
    return checks, accounts


class _Ledger:
    """Finds each Keras weight among the ONNX tensors, by value and at its place in the graph."""

    def __init__(
        self,
        tensors: dict[str, NDArray[Any]],
        convolutions: list[Any],
        multiplications: list[Any],
        additions: list[Any],
        dense: list[Any],
    ) -> None:
        self.tensors = tensors
        self.convolutions = convolutions
        self.dense = dense
        self.scales = self._constants(multiplications)
        self.shifts = self._constants(additions)
        self.claimed: set[str] = set()

    def account(self, layer: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> Record:
        find = {
            "Conv2D": self._convolution,
            "BatchNormalization": self._normalisation,
            "Dense": self._dense,
        }[layer["class"]]
        place = find(weights, layer)
        self.claimed.update(place.get("tensors", []))
        return {
            "layer": layer["name"],
            "class": layer["class"],
            "parameters": layer["parameters"],
            "found": layer["parameters"] if place else 0,
            **place,
        }

    def unclaimed(self) -> list[str]:
        return sorted(
            name
            for name, tensor in self.tensors.items()
            if tensor.dtype == np.float32 and name not in self.claimed
        )

    def _constants(self, nodes: list[Any]) -> list[str]:
        return [name for node in nodes for name in node.input if name in self.tensors]

    def _convolution(
        self, weights: dict[str, NDArray[np.float32]], layer: dict[str, Any]
    ) -> Record:
        kernel = weights["kernel"].transpose(3, 2, 0, 1)
        bias = weights.get("bias", np.zeros(kernel.shape[0], np.float32))
        for node in self.convolutions:
            names = list(node.input)[1:]
            here = [self.tensors[name] for name in names]
            bias_here = here[1] if len(here) > 1 else np.zeros_like(bias)
            if np.array_equal(here[0], kernel) and np.array_equal(bias_here, bias):
                strides = next(tuple(a.ints) for a in node.attribute if a.name == "strides")
                return {"node": node.name, "tensors": names, "strides": strides}
        return {}

    def _normalisation(
        self, weights: dict[str, NDArray[np.float32]], layer: dict[str, Any]
    ) -> Record:
        """Four vectors of Keras become two of ONNX: a scale and a shift."""
        scale = weights["gamma"] / np.sqrt(weights["moving_variance"] + layer["epsilon"])
        shift = weights["beta"] - weights["moving_mean"] * scale
        names = [self._close(self.scales, scale), self._close(self.shifts, shift)]
        return {} if None in names else {"tensors": names}

    def _dense(self, weights: dict[str, NDArray[np.float32]], layer: dict[str, Any]) -> Record:
        matrices = [name for node in self.dense for name in node.input if name in self.tensors]
        kernel = next(
            (name for name in matrices if np.array_equal(self.tensors[name], weights["kernel"])),
            None,
        )
        bias = next(
            (
                name
                for name in [*self.shifts, *matrices]
                if np.array_equal(self.tensors[name], weights["bias"])
            ),
            None,
        )
        return {} if None in (kernel, bias) else {"tensors": [kernel, bias]}

    def _close(self, candidates: list[str], wanted: NDArray[np.float32]) -> str | None:
        tolerance = _FOLDING_RTOL * float(np.abs(wanted).max())
        for name in candidates:
            here = self.tensors[name].ravel()
            if here.shape == wanted.shape and np.allclose(
                here, wanted, rtol=_FOLDING_RTOL, atol=tolerance
            ):
                return name
        return None


def _weights_of(layer: dict[str, Any], weights: Weights) -> dict[str, NDArray[np.float32]]:
    return {name: weights[f"{layer['name']}/{name}"] for name in layer["weights"]}


def _interface(values: Any) -> str:
    """Input or output in words, such as ``(N, 32, 32, 3) float32``."""
    import onnx

    if len(values) != 1:
        return f"{len(values)} tensors"
    tensor = values[0].type.tensor_type
    sizes = [str(d.dim_value) if d.dim_value else "N" for d in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return f"({', '.join(sizes)}) {dtype}"
