"""How large a network a Keras file describes, reckoned before any framework makes it.

A description of some kilobytes can ask for terabytes. What is reckoned here is no less than what
the network has, and close enough to it to tell a residual network from a bomb.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

MOST: Final = {"layers": 256, "values of one image in a layer": 2**22, "weights": 2**26}
"""A ResNet8 has 30 layers, 16,384 values of one image in its widest, and 78,666 weights; a
ResNet56 some 250 layers."""


def excess(model: dict[str, Any]) -> str | None:
    """What of the network that a description asks for is far too much, in words; None: nothing."""
    counts = dict(zip(MOST, _counts(model), strict=True))
    # Not `n > limit`: NaN is larger than nothing, and is refused as well.
    large = (f"{n:,.0f} {what}, or so" for what, n in counts.items() if not n <= MOST[what])
    return next(large, None)


def layers_of(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of a description; a model in the model is followed by its own layers."""
    found: list[dict[str, Any]] = []
    waiting = list(reversed(model["config"]["layers"]))
    while waiting:
        layer = waiting.pop()
        found.append(layer)
        waiting += reversed(layer["config"].get("layers", []))
    return found


def _counts(model: dict[str, Any]) -> tuple[float, float, float]:
    layers = layers_of(model)
    settings = [layer["config"] for layer in layers]
    shapes = [entry.get("build_input_shape") for entry in (model["config"], *settings)]
    for entry in settings:  # a batch of any size costs nothing until it is there
        shapes += [(entry.get(name) or [])[1:] for name in ("batch_shape", "batch_input_shape")]
    taken = max([1, *_numbers([model.get("build_config"), *shapes])])
    channels = [_most(entry, "filters", "units") for entry in settings]
    width = max([taken, *channels])
    # A dilated kernel has its image padded as well.
    side = taken + sum(
        sum(_numbers(entry.get("padding")))
        + _most(entry, "kernel_size") * (_most(entry, "dilation_rate") - 1)
        for entry in settings
    )
    flat = any(layer["class_name"] == "Flatten" for layer in layers)
    weights = 0.0
    for layer, own in zip(layers, channels, strict=True):
        entry = layer["config"]
        dense = layer["class_name"] == "Dense"
        # Keras builds a layer for the shape that the file says it was built for.
        map_size = side**2 if flat and dense else 1
        fed = max([width * map_size, *_numbers(layer.get("build_config"))])
        weights += fed * (own * _most(entry, "kernel_size") ** 2 + _most(entry, "lora_rank"))
    return len(layers), side**2 * width, weights


def _most(settings: dict[str, Any], *names: str) -> float:
    return max([1, *_numbers([settings.get(name) for name in names])])


def _numbers(value: object) -> Iterator[float]:
    """The numbers in lists of lists and dictionaries, whatever else there is."""
    if isinstance(value, int | float):
        yield math.inf if math.isnan(value) else abs(value)
    elif isinstance(value, list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _numbers(entry)
