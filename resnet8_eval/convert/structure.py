"""Is the ONNX model the Keras model? Layer by layer, weight by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import onnx_graph
from resnet8_eval.checks import Check, at_most, equal
from resnet8_eval.convert import pixels
from resnet8_eval.store import Record

Array = NDArray[Any]
Weights = Mapping[str, NDArray[np.float32]]

_FOLDING_RTOL: Final = 1e-5
"""Scale and shift of a batch normalisation are rounded to float32, by 6e-8, and so are products
with a kernel; all stay well within this."""


def verify_onnx(
    onnx_path: Path, layers: list[dict[str, Any]], weights: Weights
) -> tuple[list[Check], int]:
    """Hold a converted ONNX model against the Keras model that it was made from.

    `layers` and `weights` are as :func:`resnet8_eval.convert.keras_to_onnx.convert` records them;
    kernels are HWIO.

    Returns
    -------
    checks : list of Check
        Interface, operator counts, kernels and strides in order, parameters, and what the network
        does to pixels.
    found : int
        Parameters of Keras whose values are in the ONNX model.
    """
    import onnx

    graph = onnx.load(onnx_path).graph
    ledger = _Ledger(graph, layers, weights)
    lost = [layer["name"] for layer in ledger.layers if layer["name"] not in ledger.places]
    found = sum(layer["parameters"] for layer in ledger.layers if layer["name"] not in lost)
    expected, kernels = [], []
    for layer in layers:
        if layer["class"] == "Conv2D":
            kernel = tuple(layer["weights"]["kernel"])
            expected.append((kernel, tuple(layer["strides"])))
            kernels.append((kernel, ledger.places.get(layer["name"], {}).get("strides")))
    floats = {n: value.size for n, value in ledger.tensors.items() if value.dtype == np.float32}
    front = ledger.front([layer for layer in layers if "scale" in layer])
    checks = [
        equal("input", "(N, 32, 32, 3) float32", _interface(graph.input)),
        equal("output", "(N, 10) float32", _interface(graph.output)),
        equal("convolutions", len(expected), len(ledger.convolutions)),
        equal(
            "dense layers", sum(layer["class"] == "Dense" for layer in layers), len(ledger.dense)
        ),
        equal("kernels (HWIO) and strides, in order", expected, kernels),
        equal(
            "Keras parameters whose values are in ONNX",
            sum(layer["parameters"] for layer in layers),
            found,
        ),
        equal("layers whose weights are not in ONNX", [], lost),
        *front,
        # Fewer than Keras's parameters: a normalisation's four vectors become two, or none.
        equal(
            "float32 values in the ONNX file, from Keras",
            sum(floats.values()),
            sum(floats[name] for name in floats if name in ledger.claimed),
        ),
        equal("ONNX weights that are not from Keras", [], sorted(floats.keys() - ledger.claimed)),
        equal("layers that are called otherwise in ONNX", [], ledger.misnamed()),
    ]
    return checks, found


def nodes(graph: Any, layers: list[dict[str, Any]], weights: Weights) -> dict[str, str]:
    """The layer whose weights each convolution holds, by the name of its node."""
    places = _Ledger(graph, layers, weights).places
    return {place["node"]: layer for layer, place in places.items() if "node" in place}


class _Ledger:
    """Finds each Keras weight among the ONNX tensors, by value and by the operator that reads it.

    That each stands behind the right layer is held by the comparison of scores (`evaluate.parity`).
    tf2onnx merges a batch normalisation into its convolution where that has no bias or one of
    zeros, leaves out vectors that change nothing, and keeps equal constants once.
    """

    def __init__(self, graph: Any, layers: list[dict[str, Any]], weights: Weights) -> None:
        self.tensors = _flushed(onnx_graph.constants(graph))
        self.convolutions = [node for node in graph.node if node.op_type == "Conv"]
        self.dense = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        self.scales, self.shifts = (
            self._constants(node for node in graph.node if node.op_type == kind)
            for kind in ("Mul", "Add")
        )
        self.pixels = pixels.front(graph)
        self.layers = [layer for layer in layers if layer["weights"]]
        self.own = {
            layer["name"]: _flushed(
                {name: weights[f"{layer['name']}/{name}"] for name in layer["weights"]}
            )
            for layer in self.layers
        }
        self.free = list(self.convolutions)
        """Those that are no layer's yet."""
        self.silent: list[int] = []
        """Widths of convolutions that give zeros, a normalisation of which may leave no trace."""
        self.places: dict[str, Record] = {}
        """Where the weights of each layer are that were found."""
        for layer in self.layers:
            match layer["class"]:
                case "Conv2D":
                    self._convolution(layer["name"])
                case "BatchNormalization" if layer["name"] not in self.places:
                    self._normalisation(layer)
                case "Dense":
                    self._dense(layer["name"])
                case "Normalization":
                    self.places[layer["name"]] = {"tensors": self.pixels.constants}
        self.claimed = {name for place in self.places.values() for name in place["tensors"]}

    def front(self, layers: list[dict[str, Any]]) -> list[Check]:
        """Hold what is done to pixels against the Keras layers that do it."""
        if not layers:
            return []
        scale, shift = np.ones(3), np.zeros(3)
        for layer in layers:
            factor = np.array(layer["scale"])
            scale, shift = scale * factor, shift * factor + layer["shift"]
        self.claimed.update(self.pixels.constants)
        apart = (
            np.abs(self.pixels.scale - scale).max(),
            np.abs(self.pixels.shift - shift).max() / 255,
        )
        difference = float(np.max(apart) / (np.abs(scale).max() or 1))
        return [at_most("scale and shift of pixels, relative", _FOLDING_RTOL, difference)]

    def misnamed(self) -> list[str]:
        """Layers whose weights another node holds than the one that is called by their name."""
        held = {node.name.partition("/")[0]: list(node.input)[1:] for node in self.convolutions}
        return [
            layer
            for layer, place in self.places.items()
            if "node" in place and held.get(layer) != place["tensors"]
        ]

    def _constants(self, nodes: Iterable[Any]) -> list[str]:
        return [name for node in nodes for name in node.input if name in self.tensors]

    def _convolution(self, layer: str) -> None:
        """Place a convolution, and the normalisation that is merged into it."""
        kernel = self.own[layer]["kernel"].transpose(3, 2, 0, 1)
        bias = self.own[layer].get("bias", np.zeros(len(kernel), np.float32))
        if place := self._node(np.array_equal, kernel, bias):
            self.places[layer] = place
            if not kernel.any() and not bias.any():
                self.silent.append(len(kernel))
            return
        for each in self.layers:
            if each["class"] != "BatchNormalization" or each["name"] in self.places:
                continue
            scale, shift = _affine(each, self.own[each["name"]])
            if len(scale) == len(kernel) and (
                place := self._node(
                    _near, kernel * scale[:, None, None, None], bias * scale + shift
                )
            ):
                self.places |= {layer: place, each["name"]: {"tensors": place["tensors"]}}
                return

    def _node(self, same: Callable[..., bool], kernel: Array, bias: Array) -> Record | None:
        """The first convolution with such weights; it is no other layer's then."""
        for node in self.free:
            names = list(node.input)[1:]
            weight, *own = (self.tensors[name] for name in names)
            if same(weight, kernel) and same(own[0] if own else np.zeros_like(bias), bias):
                self.free.remove(node)
                strides = tuple(onnx_graph.settings(node).get("strides", (1, 1)))
                return {"node": node.name, "tensors": names, "strides": strides}
        return None

    def _normalisation(self, layer: dict[str, Any]) -> None:
        """Four vectors of Keras become two of ONNX: a scale and a shift."""
        scale, shift = _affine(layer, self.own[layer["name"]])
        wanted = [
            (among, value)
            for among, value, idle in ((self.scales, scale, 1), (self.shifts, shift, 0))
            if (value != idle).any()
        ]
        self._place(layer["name"], wanted, lambda here, value: _near(here.ravel(), value))
        if layer["name"] not in self.places and not shift.any() and len(shift) in self.silent:
            self.silent.remove(len(shift))
            self.places[layer["name"]] = {"tensors": []}

    def _dense(self, layer: str) -> None:
        matrices = self._constants(self.dense)
        wanted = [(matrices, self.own[layer]["kernel"])]
        if "bias" in self.own[layer] and self.own[layer]["bias"].any():
            wanted.append(([*self.shifts, *matrices], self.own[layer]["bias"]))
        self._place(layer, wanted, np.array_equal)

    def _place(self, layer: str, wanted: list[Any], same: Callable[..., bool]) -> None:
        """Place a layer if each of its values is among the tensors where it may be."""
        names = [
            next((name for name in among if same(self.tensors[name], value)), None)
            for among, value in wanted
        ]
        if None not in names:
            self.places[layer] = {"tensors": names}


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
