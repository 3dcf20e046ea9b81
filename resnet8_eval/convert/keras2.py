"""What Keras 2 wrote, as Keras 3 reads it.

The two describe the same layers. Keras 2 has other modules and types for some of them, and names
the operators ``+``, ``-``, ``*`` and ``/`` after TensorFlow's functions.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval.convert.flat import INERT, rescaling

_ENGINE: Final = re.compile(r"(?:tf_)?keras\.(?:src\.)?engine\.(functional|sequential)")
_KINDS: Final = {
    "__operators__.add": "Add",
    "math.add": "Add",
    "math.subtract": "Subtract",
    "math.multiply": "Multiply",
    "math.truediv": "Divide",
    "math.divide": "Divide",
    "nn.relu": "ReLU",
    "nn.softmax": "Softmax",
}
"""TensorFlow's functions, and what Keras 3 calls the same."""
_DROPPED: Final = frozenset({"noise_shape", "rng_type", "trainable"})
"""Settings of layers without weights that Keras 3 does not know."""
_CONSTANT: Final = "_CONSTANT_VALUE"
"""Where a constant comes first, it stands in the place of the layer's name."""


def modern(part: Any) -> Any:
    """A model's description of itself, or a part of it, as Keras 3 would have written it."""
    match part:
        case {"class_name": "Policy", "config": {"name": name}}:
            return name
        case {"class_name": "TFOpLambda", "config": dict(), "inbound_nodes": [[*_, dict()]]}:
            return _layer(part) or part
        case dict():
            found = {key: modern(value) for key, value in part.items()}
            settings = found.get("config")
            if str(found.get("class_name")) in INERT and isinstance(settings, dict):
                found["config"] = {k: v for k, v in settings.items() if k not in _DROPPED}
            if isinstance(axes := found.get("axis"), list) and len(axes) == 1:
                found["axis"] = axes[0]
            if isinstance(found.get("layers"), list):
                _renumber(found)
            if engine := _ENGINE.fullmatch(str(found.get("module"))):
                found["module"] = f"keras.src.models.{engine[1]}"
            return found
        case list():
            return [modern(entry) for entry in part]
    return part


def _renumber(network: dict[str, Any]) -> None:
    """Count the uses of a model in the model from 0; to Keras 2, its making was the first."""
    inside = {layer["config"]["name"] for layer in network["layers"] if "layers" in layer["config"]}
    nodes = [node for layer in network["layers"] for node in layer.get("inbound_nodes", ())]
    ends = network.get("output_layers", [])
    uses = [use for node in [*nodes, ends] if isinstance(node, list) for use in node]
    uses = [use for use in uses if isinstance(use, list) and use[0] in inside]
    for name in inside:
        own = [use for use in uses if use[0] == name]
        first = min((use[1] for use in own), default=0)
        for use in own:
            use[1] -= first


def _layer(operator: dict[str, Any]) -> dict[str, Any] | None:
    """The layer that computes what an operator does; None if none does."""
    (*source, also) = operator["inbound_nodes"][0]
    settings, other = dict(operator["config"]), also.get("y")
    kind = _KINDS.get(str(settings.pop("function", None)), "")
    first = source[0] == _CONSTANT
    if first:
        source, other = other, source[-1]
    taken = [[*source, {}]]
    if kind in ("ReLU", "Softmax"):
        if also.get("axis") not in (None, -1, 1):
            return None
    elif isinstance(other, list) and other and isinstance(other[0], str):
        if kind != "Add":
            return None
        taken.append([*other, {}])
    elif isinstance(other, int | float | list) and (
        found := rescaling(kind, np.ravel(np.asarray(other)), reverse=first)
    ):
        kind, settings = "Rescaling", settings | found
    else:
        return None
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": settings,
        "registered_name": None,
        "name": operator.get("name"),
        "inbound_nodes": [taken],
    }


def read(path: Path) -> tuple[Any, Any]:
    """A model's description of itself, as its file has it, and as Keras is given it."""
    import h5py

    if path.suffix.lower() == ".keras":
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read("config.json"))
            named = "metadata.json" in archive.namelist()
            about = json.loads(archive.read("metadata.json")) if named else {}
            version = about.get("keras_version")
    else:
        with h5py.File(path, "r") as file:
            found = json.loads(file.attrs["model_config"])
            version = file.attrs.get("keras_version")
    return found, found if str(version).startswith("3.") else modern(found)


def rewritten(path: Path, folder: Path) -> Path:
    """The file itself, or a copy in `folder` whose description is that of Keras 3.

    The copy is called as Keras wants it: it knows its formats by suffixes in small letters.
    """
    import h5py

    copy = folder / f"model{path.suffix.lower()}"
    found, given = read(path)
    if given == found and path.suffix == copy.suffix:
        return path
    if copy.suffix == ".keras":
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as written:
            for name in archive.namelist():
                is_description = name == "config.json"
                written.writestr(name, json.dumps(given) if is_description else archive.read(name))
    else:
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(given)
    return copy
