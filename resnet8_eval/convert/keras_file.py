"""What a Keras file says of itself, read before any framework opens it.

A Keras file can name code to run (a Lambda layer, a custom object). Its own description is plain
JSON, so it is read first, and only a network made of the layers below is opened at all.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, Final

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
        If the file is not a Keras model, or has a layer that a ResNet8 does not have.
    """
    if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
        raise _refusal(path, f"a file of {path.stat().st_size:,} bytes")
    try:
        # Keras goes by the name, and so must this: a file can be valid as both.
        config = _from_zip(path) if path.suffix == ".keras" else _from_hdf5(path)
        layers: list[dict[str, Any]] = [
            {"class_name": str(layer["class_name"]), "config": dict(layer["config"])}
            for layer in config["config"]["layers"]
        ]
    except ModelError:
        raise
    except Exception as error:  # h5py, json and zipfile raise a dozen kinds for a damaged file
        raise _refusal(path, f"{type(error).__name__}: {error}") from error
    for layer in layers:
        activation = layer["config"].get("activation", "linear")
        if layer["class_name"] not in KNOWN_LAYERS:
            raise _refusal(path, f"a layer of class {layer['class_name']!r}")
        if not isinstance(activation, str) or activation not in KNOWN_ACTIVATIONS:
            raise _refusal(path, f"the activation {activation!r}")
    return layers


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
        if archive.getinfo("config.json").file_size > MAX_FILE_BYTES:
            raise ValueError("config.json is too large")
        for member in archive.infolist():
            if member.filename.endswith(".h5"):
                if member.file_size > MAX_FILE_BYTES:
                    raise ValueError(f"{member.filename} is too large")
                with h5py.File(io.BytesIO(archive.read(member)), "r") as weights:
                    _refuse_links(weights, path)
        return dict(json.loads(archive.read("config.json")))


def _from_hdf5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        _refuse_links(file, path)
        return dict(json.loads(file.attrs["model_config"]))


def _refuse_links(group: Any, path: Path) -> None:
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise _refusal(path, f"a link to elsewhere, {name!r}")
        if isinstance(group[name], h5py.Group):
            _refuse_links(group[name], path)
        elif group[name].external or group[name].is_virtual:
            raise _refusal(path, f"data kept in another file, {name!r}")


def _refusal(path: Path, given: str) -> ModelError:
    return ModelError(
        f"{path.name} is not a Keras model that this suite can judge.",
        expected="a whole ResNet8 saved by Keras as .h5 or .keras, made of "
        + ", ".join(sorted(KNOWN_LAYERS)),
        given=f"{given}, in {path}",
        next_step="save the whole model with model.save('resnet8.h5') and without custom objects",
    )
