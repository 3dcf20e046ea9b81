"""Golden vectors: what every layer of a quantized model reads and gives, integer by integer.

For people who build hardware, or a port to a microcontroller, and compare bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.integers import ExactNetwork, Grid
from resnet8_eval.network import Addition, Convolution, Dense, Layer, Pooling
from resnet8_eval.preprocess import Images

INDEX: Final = "index.json"
_FORMULAS: Final = {
    Convolution: "output = clip(round((sum(input - input_zero_point) * weight + bias) * multiplier)"
    " + output_zero_point)",
    Addition: "output = clip(round(input_scale / output_scale * (input - input_zero_point) + "
    "other_scale / output_scale * (other - other_zero_point)) + output_zero_point)",
    Pooling: "output = clip(round(sum(input - input_zero_point) * multiplier) + output_zero_point)",
    Dense: "output = (sum(input - input_zero_point) * weight + bias) * multiplier",
}
"""A dense layer whose output is quantized computes as a convolution does."""


def write(
    exact: ExactNetwork, images: Images, positions: Sequence[int], folder: Path
) -> dict[str, Any]:
    """Write one ``.npz`` for each layer, and an index; return that.

    `positions` say where each image stands among the test images; the index tells them.
    """
    network = exact.network
    (values,) = exact.tensors(images, len(images))
    makers = {network.input: "images"} | {layer.output: layer.name for layer in network.layers}
    layers = []
    for place, layer in enumerate(network.layers):
        arrays = _arrays(exact, layer, values)
        file = f"{place:02}-{layer.name.replace('/', '.')}.npz"
        np.savez_compressed(folder / file, allow_pickle=False, **arrays)
        layers.append(
            {
                "name": layer.name,
                "kind": type(layer).__name__.lower(),
                "file": file,
                "reads": [makers[network.moved.get(name, name)] for name in layer.inputs],
                **_settings(layer),
                **_result(exact, layer),
                "arrays": {
                    key: {"dtype": str(value.dtype), "shape": list(value.shape)}
                    for key, value in arrays.items()
                },
            }
        )
    index = {
        "images": list(positions),
        "layout": "maps NHWC; weights, less their zero point, OIHW or (out, in)",
        "rounding": f"halves to even, in float32 as the kernels of {exact.rounding} do",
        "layers": layers,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def earlier(folder: Path) -> set[str] | None:
    """The files that the index in a folder names; None where :func:`write` did not write it."""
    index = folder / INDEX
    if not index.exists():
        return set()
    try:
        found = json.loads(index.read_bytes())
        files = {layer["file"] for layer in found["layers"]}
    except (ValueError, LookupError, TypeError):
        return None
    return files if found.keys() == {"images", "layout", "rounding", "layers"} else None


def forget(folder: Path, files: set[str]) -> None:
    """Take these vectors out of a folder: no index would name them."""
    for path in folder.glob("*.npz"):
        if path.name in files:
            path.unlink()


def _settings(layer: Layer) -> dict[str, Any]:
    sizes = [key for key in ("strides", "pads", "window") if hasattr(layer, key)]
    found: dict[str, Any] = {key: list(getattr(layer, key)) for key in sizes}
    if isinstance(layer, Convolution | Addition):
        found["relu"] = layer.before_relu is not None
    return found


def _result(exact: ExactNetwork, layer: Layer) -> dict[str, Any]:
    """How the output is computed, and the integers that it is held to, if it is quantized."""
    if layer.output not in exact.grids:
        return {"formula": _FORMULAS[type(layer)]}
    grid, relu = exact.grids[layer.output], _settings(layer).get("relu")
    ends = grid.zero_point if relu else 0, grid.levels
    kind = Convolution if isinstance(layer, Dense) else type(layer)
    return {"formula": _FORMULAS[kind], "clip": [grid.lowest + end for end in ends]}


def _arrays(exact: ExactNetwork, layer: Layer, values: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """What a layer reads, holds and gives."""
    arrays: dict[str, NDArray[Any]] = {}
    for role, name in zip(("input", "other"), layer.inputs, strict=False):
        arrays |= _quantized(role, exact.grid(name), values[name])
    if isinstance(layer, Convolution | Dense):
        arrays |= _weights(exact, layer)
    if isinstance(layer, Pooling):
        before, after = exact.grid(layer.inputs[0]), exact.grid(layer.output)
        arrays["multiplier"] = np.asarray(before.scale / (after.scale * np.float32(layer.area)))
    if layer.output in exact.grids:
        arrays |= _quantized("output", exact.grid(layer.output), values[layer.output])
    else:
        arrays["output"] = values[layer.output]
    return arrays


def _quantized(role: str, grid: Grid, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    stored = grid.stored(values)
    zero_point = np.asarray(grid.zero_point + grid.lowest, stored.dtype)
    return {role: stored, f"{role}_scale": np.asarray(grid.scale), f"{role}_zero_point": zero_point}


def _weights(exact: ExactNetwork, layer: Convolution | Dense) -> dict[str, NDArray[Any]]:
    weights = exact.weights[layer.name]
    integers, multipliers = weights.integers, exact.multipliers(layer)
    if isinstance(layer, Convolution):
        high, window, channels_out = integers.shape
        channels = exact.network.constants()[layer.weight].shape[1]
        integers = integers.reshape(high, window // channels, channels, channels_out)
        integers = integers.transpose(3, 2, 0, 1)
    else:
        integers = integers.T
    return {
        "weight": integers.astype(np.int8 if np.abs(integers).max() < 128 else np.int16),
        "weight_scale": np.asarray(weights.scales),
        "bias": weights.bias.astype(np.int32),
        "multiplier": multipliers,
    }
