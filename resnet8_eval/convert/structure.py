"""Is the ONNX model the Keras model? Layer by layer, weight by weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import onnx_graph
from resnet8_eval.checks import Check, at_most, equal
from resnet8_eval.convert import pixels
from resnet8_eval.store import Record

Weights = Mapping[str, NDArray[np.float32]]

_FOLDING_RTOL: Final = 1e-5
"""Scale and shift of a batch normalisation are rounded to float32, by 6e-8, and so are products
with a kernel; all stay well within this."""


def verify_onnx(
    onnx_path: Path, layers: list[dict[str, Any]], weights: Weights
) -> tuple[list[Check], list[Record]]:
    """Hold a converted ONNX model against the Keras model that it was made from.

    `layers` and `weights` are as :func:`resnet8_eval.convert.keras_to_onnx.convert` records them;
    kernels are HWIO.

    Returns
    -------
    checks : list of Check
        Interface, operator counts, kernels and strides in order, parameters, and what the network
        does to pixels.
    accounts : list of dict
        For each Keras layer with weights: its parameters and the ONNX tensors that hold them.
    """
    import onnx

    graph = onnx.load(onnx_path).graph
    ledger = _Ledger(graph)
    convolutions, dense = list(ledger.convolutions), ledger.dense
    accounts = ledger.accounts(layers, weights)
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
        equal(
            "Keras parameters whose values are in ONNX",
            parameters,
            sum(a["found"] for a in accounts),
        ),
        equal(
            "layers whose weights are not in ONNX",
            [],
            [a["layer"] for a in accounts if a["found"] != a["parameters"]],
        ),
        *ledger.front([layer for layer in layers if "scale" in layer]),
        equal("float32 values in the ONNX file, from Keras", *ledger.counted()),
        equal("ONNX weights that are not from Keras", [], ledger.unclaimed()),
        equal("layers that are called otherwise in ONNX", [], _misnamed(convolutions, accounts)),
    ]
    return checks, accounts


def nodes(graph: Any, layers: list[dict[str, Any]], weights: Weights) -> dict[str, str]:
    """The layer whose weights each convolution holds, by the name of its node."""
    accounts = _Ledger(graph).accounts(layers, weights)
    return {account["node"]: account["layer"] for account in accounts if "node" in account}


def _misnamed(convolutions: list[Any], accounts: list[Record]) -> list[str]:
    """Layers whose weights another node holds than the one that is called by their name."""
    by_layer = {node.name.partition("/")[0]: list(node.input)[1:] for node in convolutions}
    return [
        a["layer"] for a in accounts if "node" in a and by_layer.get(a["layer"]) != a["tensors"]
    ]


class _Ledger:
    """Finds each Keras weight among the ONNX tensors, by value and by the operator that reads it.

    That each stands behind the right layer is held by the comparison of scores (`evaluate.parity`).
    tf2onnx merges a batch normalisation into its convolution where that has no bias or one of
    zeros, leaves out vectors that change nothing, and keeps equal constants once.
    """

    def __init__(self, graph: Any) -> None:
        by_type: dict[str, list[Any]] = {}
        for node in graph.node:
            by_type.setdefault(node.op_type, []).append(node)
        self.tensors = _flushed(onnx_graph.constants(graph))
        self.convolutions = by_type.get("Conv", [])
        self.dense = by_type.get("MatMul", []) + by_type.get("Gemm", [])
        self.scales = self._constants(by_type.get("Mul", []))
        self.shifts = self._constants(by_type.get("Add", []))
        self.pixels = pixels.front(graph)
        self.claimed: set[str] = set()
        self.silent: list[int] = []
        """Widths of convolutions that give zeros, a normalisation of which may leave no trace."""

    def accounts(self, layers: list[dict[str, Any]], weights: Weights) -> list[Record]:
        """Where the weights of each layer that has some are."""
        layers = [layer for layer in layers if layer["weights"]]
        own = {
            layer["name"]: _flushed(
                {name: weights[f"{layer['name']}/{name}"] for name in layer["weights"]}
            )
            for layer in layers
        }
        normalisations = [layer for layer in layers if layer["class"] == "BatchNormalization"]
        places: dict[str, Record] = {}
        for layer in layers:
            name = layer["name"]
            match layer["class"]:
                case "Conv2D":
                    places |= self._convolution(layer, own, normalisations, places)
                case "BatchNormalization" if name not in places:
                    places[name] = self._normalisation(*_affine(layer, own[name]))
                case "Dense":
                    places[name] = self._dense(own[name])
                case "Normalization":
                    places[name] = {"tensors": self.pixels.constants}
            self.claimed.update(places.get(name, {}).get("tensors", []))
        return [
            {
                "layer": layer["name"],
                "class": layer["class"],
                "parameters": layer["parameters"],
                "found": layer["parameters"] if places.get(layer["name"]) else 0,
                **places.get(layer["name"], {}),
            }
            for layer in layers
        ]

    def front(self, layers: list[dict[str, Any]]) -> list[Check]:
        """Hold what is done to pixels against the Keras layers that do it."""
        if not layers:
            return []
        scale, shift = np.ones(3), np.zeros(3)
        for layer in layers:
            factor = np.array(layer["scale"])
            scale, shift = scale * factor, shift * factor + layer["shift"]
        self.claimed.update(self.pixels.constants)
        difference = max(
            float(np.abs(here - wanted).max() / (np.abs(scale).max() or 1))
            / (255 if name == "shift" else 1)
            for name, here, wanted in (
                ("scale", self.pixels.scale, scale),
                ("shift", self.pixels.shift, shift),
            )
        )
        return [at_most("scale and shift of pixels, relative", _FOLDING_RTOL, difference)]

    def counted(self) -> tuple[int, int]:
        """How many float32 values the file holds, and how many of them are Keras's.

        Both may be fewer than the parameters of Keras: a batch normalisation's four vectors become
        two, or none.
        """
        sizes = {name: tensor.size for name, tensor in self._floats().items()}
        return sum(sizes.values()), sum(sizes[name] for name in sizes if name in self.claimed)

    def unclaimed(self) -> list[str]:
        return sorted(self._floats().keys() - self.claimed)

    def _floats(self) -> dict[str, NDArray[Any]]:
        return {name: value for name, value in self.tensors.items() if value.dtype == np.float32}

    def _constants(self, nodes: list[Any]) -> list[str]:
        return [name for node in nodes for name in node.input if name in self.tensors]

    def _convolution(
        self,
        layer: dict[str, Any],
        own: Mapping[str, Weights],
        normalisations: list[dict[str, Any]],
        places: dict[str, Record],
    ) -> dict[str, Record]:
        """The place of a convolution, and of the normalisation that is merged into it."""
        kernel = own[layer["name"]]["kernel"].transpose(3, 2, 0, 1)
        bias = own[layer["name"]].get("bias", np.zeros(len(kernel), np.float32))
        place = self._node(lambda w, b: np.array_equal(w, kernel) and np.array_equal(b, bias))
        if place:
            if not kernel.any() and not bias.any():
                self.silent.append(len(kernel))
            return {layer["name"]: place}
        for each in normalisations:
            if each["name"] in places:
                continue
            scale, shift = _affine(each, own[each["name"]])
            if len(scale) != len(kernel):
                continue
            merged = kernel * scale[:, None, None, None], bias * scale + shift
            place = self._node(
                lambda w, b, m=merged: _near(w, m[0]) and _near(b, m[1])  # type: ignore[misc]
            )
            if place:
                return {layer["name"]: place, each["name"]: {"tensors": place["tensors"]}}
        return {}

    def _node(self, matches: Callable[[NDArray[Any], NDArray[Any]], bool]) -> Record:
        """The first convolution that matches; it is no other layer's then."""
        for node in self.convolutions:
            names = list(node.input)[1:]
            here = [self.tensors[name] for name in names]
            bias = here[1] if len(here) > 1 else np.zeros(len(here[0]), np.float32)
            if matches(here[0], bias):
                self.convolutions.remove(node)
                strides = tuple(onnx_graph.settings(node).get("strides", (1, 1)))
                return {"node": node.name, "tensors": names, "strides": strides}
        return {}

    def _normalisation(self, scale: NDArray[Any], shift: NDArray[Any]) -> Record:
        """Four vectors of Keras become two of ONNX: a scale and a shift."""
        wanted = [(self.scales, scale, 1.0), (self.shifts, shift, 0.0)]
        names = [
            next((name for name in among if _near(self.tensors[name].ravel(), value)), None)
            for among, value, idle in wanted
            if (value != idle).any()
        ]
        if None in names and not shift.any() and len(shift) in self.silent:
            self.silent.remove(len(shift))
            return {"tensors": []}
        return {} if None in names else {"tensors": names}

    def _dense(self, weights: Weights) -> Record:
        matrices = [name for node in self.dense for name in node.input if name in self.tensors]
        bias = weights.get("bias", np.zeros(1, np.float32))
        wanted = [(matrices, weights["kernel"])]
        if bias.any():
            wanted.append(([*self.shifts, *matrices], bias))
        names = [
            next((name for name in among if np.array_equal(self.tensors[name], value)), None)
            for among, value in wanted
        ]
        return {} if None in names else {"tensors": names}


def _flushed(values: Weights) -> dict[str, NDArray[Any]]:
    """Tensors without numbers that are too small for all digits of float32.

    Weight decay makes them of weights that are not needed; TensorFlow writes them as zeros.
    """
    least = np.finfo(np.float32).tiny
    return {name: np.where(np.abs(value) < least, 0, value) for name, value in values.items()}


def _near(here: NDArray[Any], wanted: NDArray[Any]) -> bool:
    tolerance = _FOLDING_RTOL * float(np.abs(wanted).max())
    return here.shape == wanted.shape and np.allclose(
        here, wanted, rtol=_FOLDING_RTOL, atol=tolerance
    )


def _affine(layer: dict[str, Any], weights: Weights) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scale and shift of a batch normalisation, each of shape (channels,)."""
    own = {name: value.astype(np.float64) for name, value in weights.items()}
    scale = own.get("gamma", 1.0) / np.sqrt(own["moving_variance"] + layer["epsilon"])
    shift = own.get("beta", 0.0) - own["moving_mean"] * scale
    return scale.astype(np.float32), shift.astype(np.float32)


def _interface(values: Any) -> str:
    """Input or output in words, such as ``(N, 32, 32, 3) float32``."""
    import onnx

    if len(values) != 1:
        return f"{len(values)} tensors"
    tensor = values[0].type.tensor_type
    sizes = [str(d.dim_value) if d.dim_value else "N" for d in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return f"({', '.join(sizes)}) {dtype}"
