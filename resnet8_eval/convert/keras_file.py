"""What a Keras file says of itself, read before any framework opens it.

A Keras file can name code to run (a Lambda layer, a custom object) anywhere in its description.
That is plain JSON, so it is read first, and only a network of a sensible size that names nothing
but what is listed below is opened at all.
"""

from __future__ import annotations

import io
import json
import reprlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from resnet8_eval.convert import keras_size
from resnet8_eval.errors import ModelError

MAX_FILE_BYTES: Final = 64 * 2**20
KNOWN_LAYERS: Final = frozenset(
    {
        "InputLayer",
        "Conv2D",
        "BatchNormalization",
        "Activation",
        "ReLU",
        "Add",
        "AveragePooling2D",
        "GlobalAveragePooling2D",
        "ZeroPadding2D",
        "Flatten",
        "Dropout",
        "Dense",
        "Softmax",
    }
)
KNOWN_ACTIVATIONS: Final = frozenset({"relu", "softmax", "linear"})
KNOWN_MODELS: Final = frozenset({"Functional", "Model", "Sequential"})
KNOWN_PARTS: Final = frozenset(
    {
        "__keras_tensor__",
        "DTypePolicy",
        "Constant",
        "GlorotNormal",
        "GlorotUniform",
        "HeNormal",
        "HeUniform",
        "LecunNormal",
        "LecunUniform",
        "Ones",
        "Orthogonal",
        "RandomNormal",
        "RandomUniform",
        "TruncatedNormal",
        "VarianceScaling",
        "Zeros",
        "L1",
        "L1L2",
        "L2",
        "MaxNorm",
        "MinMaxNorm",
        "NonNeg",
        "UnitNorm",
    }
)
"""What layers hold: types, initializers, regularizers, constraints, and their connections."""
KNOWN_MODULES: Final = frozenset(
    {
        None,
        "keras",
        "keras.constraints",
        "keras.initializers",
        "keras.layers",
        "keras.regularizers",
        "keras.src.models.functional",
        "keras.src.models.sequential",
    }
)
_NAMING: Final = frozenset({"class_name", "module", "registered_name"})
"""What Keras looks classes and functions up by."""
_MEMBERS: Final = frozenset({"config.json", "metadata.json", "model.weights.h5"})


def describe(path: Path) -> list[dict[str, Any]]:
    """Read the layer list of a Keras model without running anything in it.

    Parameters
    ----------
    path
        A whole model, ``.h5`` (Keras 2 or 3) or ``.keras``.

    Returns
    -------
    list of dict
        ``class_name`` and ``config`` of each layer, in the file's order.

    Raises
    ------
    ModelError
        If the file is not a Keras model, has anything that a ResNet8 does not have, or describes a
        network that is far too large.
    """
    if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
        raise _refusal(path, f"a file of {path.stat().st_size:,} bytes")
    try:
        # Keras goes by the name, and so must this: a file can be valid as both.
        model = _from_zip(path) if path.suffix == ".keras" else _from_hdf5(path)
        layers: list[dict[str, Any]] = [
            {"class_name": layer["class_name"], "config": dict(layer["config"])}
            for layer in model["config"]["layers"]
        ]
        given = next(_strange(model), None) or keras_size.excess(model)
    except ModelError:
        raise
    except Exception as error:  # h5py, json and zipfile raise a dozen kinds for a damaged file
        raise _refusal(path, f"{type(error).__name__}: {error!s:.200}") from error
    if given:
        raise _refusal(path, given)
    return layers


def _strange(model: dict[str, Any]) -> Iterator[str]:
    """What the description has Keras make or look up, and should not."""
    layers = model["config"]["layers"]
    for layer in layers:
        activation = layer["config"].get("activation", "linear")
        if not _among(layer["class_name"], KNOWN_LAYERS):
            yield f"a layer of class {reprlib.repr(layer['class_name'])}"
        if not _among(activation, KNOWN_ACTIVATIONS):
            yield f"the activation {reprlib.repr(activation)}"
    of_layers = {id(layer) for layer in layers}
    for entry in _objects(model):
        name, module = entry.get("class_name"), entry.get("module")
        known = KNOWN_LAYERS if id(entry) in of_layers else KNOWN_PARTS
        if not _among(name, KNOWN_MODELS if entry is model else known):
            yield f"an object of class {reprlib.repr(name)}"
        if not _among(module, KNOWN_MODULES):
            yield f"the module {reprlib.repr(module)}"
        if entry.get("registered_name") not in (None, name):
            yield f"the registered name {reprlib.repr(entry['registered_name'])}"


def _among(name: object, known: frozenset[str | None] | frozenset[str]) -> bool:
    return isinstance(name, str | None) and name in known


def _objects(model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every dictionary that names a class or where to find one, at whatever depth."""
    waiting: list[Any] = [model]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            if not _NAMING.isdisjoint(entry):
                yield entry
            waiting += entry.values()
        elif isinstance(entry, list):
            waiting += entry


def array_bytes(path: Path) -> dict[str, int]:
    """How much of a Keras file is weights, and how much what training left beside them.

    Parameters
    ----------
    path
        A whole model, ``.h5`` (Keras 2 or 3) or ``.keras``; nothing in it is run.

    Returns
    -------
    dict
        ``weights_bytes`` and ``optimizer_bytes``, as stored in arrays.
    """
    import h5py

    sizes = {"weights_bytes": 0, "optimizer_bytes": 0}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            kind = "optimizer" if name.startswith("optimizer") else "weights"
            sizes[f"{kind}_bytes"] += int(item.nbytes)

    content = path.read_bytes()
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            content = archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(add)
    return sizes


def _from_zip(path: Path) -> dict[str, Any]:
    import h5py

    with zipfile.ZipFile(path) as archive:
        description = archive.getinfo("config.json")
        for member in archive.infolist():
            if member.filename not in _MEMBERS:
                raise _refusal(path, f"a member {reprlib.repr(member.filename)}")
            if member.file_size > MAX_FILE_BYTES:
                raise _refusal(path, f"{member.filename} is too large")
            if member.filename.endswith(".h5"):
                with h5py.File(io.BytesIO(archive.read(member)), "r") as weights:
                    _demand_plain(weights, path)
        # Keras leaves this out, because it is told not to compile.
        return {**json.loads(archive.read(description)), "compile_config": None}


def _from_hdf5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        _demand_plain(file, path)
        return dict(json.loads(file.attrs["model_config"]))


def _demand_plain(file: Any, path: Path) -> None:
    """Refuse data that lies elsewhere, is reached twice, or is more than the file could hold."""
    import h5py

    reached = {h5py.h5o.get_info(file.id).addr}
    waiting, size = [file], 0
    while waiting:
        group = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _refusal(path, f"a link to elsewhere, {name!r}")
            item = group[name]
            # Two links a level make a file of some kilobytes a walk of 2^levels steps.
            address = h5py.h5o.get_info(item.id).addr
            if address in reached:
                raise _refusal(path, f"a second link to the same data, {name!r}")
            reached.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif item.external or item.is_virtual:
                raise _refusal(path, f"data kept in another file, {name!r}")
            else:
                size += item.nbytes
    if size > MAX_FILE_BYTES:
        raise _refusal(path, f"weights of {size:,} bytes")


def _refusal(path: Path, given: str) -> ModelError:
    return ModelError(
        f"{path.name} is not a Keras model that this suite can judge.",
        expected="a whole ResNet8 saved by Keras as .h5 or .keras, made of "
        + ", ".join(sorted(KNOWN_LAYERS))
        + " with Keras's own initializers, regularizers and constraints",
        given=f"{given}, in {path}",
        next_step="save the whole model with model.save('resnet8.h5') and without custom objects",
    )
