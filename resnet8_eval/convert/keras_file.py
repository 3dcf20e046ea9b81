"""What a Keras file says of itself, read before any framework opens it.

A Keras file can name code to run (a Lambda layer, a custom object) anywhere in its description.
That is plain JSON, so it is read first, and only a network of a sensible size that names nothing
but what is listed below is opened at all.
"""

from __future__ import annotations

import io
import math
import reprlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from resnet8_eval.convert import keras2, keras_size
from resnet8_eval.convert.flat import INERT, OPERATORS
from resnet8_eval.errors import ModelError

MAX_FILE_BYTES: Final = 64 * 2**20
KNOWN_LAYERS: Final = INERT | {
    *("InputLayer", "Rescaling", "Normalization", "Reshape", "Flatten"),
    *("Conv2D", "ZeroPadding2D", "BatchNormalization", "Dense", "Add"),
    *("Activation", "ReLU", "Softmax", "AveragePooling2D", "GlobalAveragePooling2D"),
}
KNOWN_OPERATIONS: Final = frozenset(
    {
        ("keras.src.activations.activations", "ReLU"),
        ("keras.src.ops.nn", "Relu"),
        ("keras.src.ops.nn", "Softmax"),
        ("keras.src.ops.core", "Cast"),
        *(("keras.src.ops.numpy", name) for name in OPERATORS - {"Cast"}),
    }
)
"""What Keras writes of operators and functions of ``keras.ops`` and ``keras.activations``."""
KNOWN_ACTIVATIONS: Final = frozenset({"relu", "softmax", "linear"})
KNOWN_MODELS: Final = frozenset({"Functional", "Model", "Sequential"})
KNOWN_PARTS: Final = frozenset(
    {
        *("__keras_tensor__", "__numpy__", "DTypePolicy"),
        *("Zeros", "Ones", "Constant", "Orthogonal", "VarianceScaling", "TruncatedNormal"),
        *("GlorotNormal", "HeNormal", "LecunNormal", "RandomNormal"),
        *("GlorotUniform", "HeUniform", "LecunUniform", "RandomUniform"),
        *("L1", "L2", "L1L2", "OrthogonalRegularizer"),
        *("MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"),
    }
)
"""What layers hold: types, initializers, regularizers, constraints, and their connections."""
KNOWN_MODULES: Final = frozenset(
    {
        *(None, "keras", "keras.layers"),
        *("keras.initializers", "keras.regularizers", "keras.constraints"),
        *("keras.src.models.functional", "keras.src.models.sequential"),
    }
)
_NAMING: Final = frozenset({"class_name", "module", "registered_name"})
"""What Keras looks classes and functions up by."""
_MOST_NAMES: Final = 64 * keras_size.MOST["layers"]
"""Of weights; batch normalisation has 4, and an optimizer may keep some of each beside them."""
_MEMBERS: Final = frozenset({"config.json", "metadata.json", "model.weights.h5"})


def demand_known(path: Path) -> None:
    """Refuse what is not a whole Keras model of known layers, ``.h5`` or ``.keras``; run nothing.

    ModelError if it is damaged, has anything that a residual network does not have, or describes a
    network that is far too large.
    """
    if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
        raise _refusal(path, f"a file of {path.stat().st_size:,} bytes")
    try:
        # Keras goes by the name, and so must this: a file can be valid as both.
        named_zip = path.suffix.lower() == ".keras"
        _demand_its_name(path, named_zip)
        (_demand_plain_zip if named_zip else _demand_plain_hdf5)(path)
        # Keras leaves compile_config out, because it is told not to compile.
        model = {**keras2.read(path)[1], "compile_config": None}
        given = next(_strange(model), None) or keras_size.excess(model)
    except ModelError:
        raise
    except Exception as error:  # h5py, json and zipfile raise a dozen kinds for a damaged file
        raise _refusal(path, f"{type(error).__name__}: {error!s:.200}") from error
    if given:
        own_code = "'Lambda'" in given or given.startswith("a model of class")
        raise _refusal(path, given, _OWN_CODE if own_code else _ANOTHER)


def _demand_its_name(path: Path, named_zip: bool) -> None:
    """Refuse a sound file that is called as the other format."""
    import h5py

    zipped, hdf5 = zipfile.is_zipfile(path), h5py.is_hdf5(path)
    if zipped != hdf5 and zipped != named_zip:
        given, suffix = ("a zip archive", ".keras") if zipped else ("an HDF5 file", ".h5")
        raise _refusal(path, f"{given} by another name", f"rename it to {path.stem}{suffix}")


def _strange(model: dict[str, Any]) -> Iterator[str]:
    """What the description has Keras make or look up, and should not."""
    if not _among(model["class_name"], KNOWN_MODELS):
        yield f"a model of class {reprlib.repr(model['class_name'])}"
    layers = {id(layer) for layer in keras_size.layers_of(model)}
    for layer in model["config"]["layers"]:
        shape = layer["config"].get("batch_shape", layer["config"].get("batch_input_shape"))
        if isinstance(shape, list) and len(shape) != 4:
            yield f"an input of shape {reprlib.repr(shape)}"
    for entry in _objects(model):
        name, module = entry.get("class_name"), entry.get("module")
        kind, known = "an object", KNOWN_MODELS if entry is model else KNOWN_PARTS
        if id(entry) in layers:
            kind, known = "a layer", KNOWN_MODELS if "layers" in entry["config"] else KNOWN_LAYERS
        if kind != "a layer" or (str(module), str(name)) not in KNOWN_OPERATIONS:
            if not _among(name, known):
                yield f"{kind} of class {reprlib.repr(name)}"
            if not _among(module, KNOWN_MODULES):
                yield f"the module {reprlib.repr(module)}"
        if entry.get("registered_name") not in (None, name):
            yield f"the registered name {reprlib.repr(entry['registered_name'])}"
        if kind == "a layer" and not _among(
            activation := entry["config"].get("activation", "linear"), KNOWN_ACTIVATIONS
        ):
            yield f"the activation {reprlib.repr(activation)}"


def _among(name: object, known: frozenset[str | None] | frozenset[str]) -> bool:
    return isinstance(name, str | None) and name in known


def _objects(model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every dictionary that names a class or where to find one, at whatever depth, in order."""
    waiting: list[Any] = [model]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            if not _NAMING.isdisjoint(entry):
                yield entry
            waiting += reversed(entry.values())
        elif isinstance(entry, list):
            waiting += reversed(entry)


def array_bytes(path: Path) -> dict[str, int]:
    """How much of a Keras file is weights, and how much what training left beside them.

    Nothing in it is run. The result has ``weights_bytes`` and ``optimizer_bytes``, of arrays.
    """
    import h5py

    sizes = {"weights_bytes": 0, "optimizer_bytes": 0}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            kind = "optimizer" if name.startswith("optimizer") else "weights"
            sizes[f"{kind}_bytes"] += int(item.nbytes)

    content = path.read_bytes()
    if path.suffix.lower() == ".keras":
        with zipfile.ZipFile(path) as archive:
            content = archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(add)
    return sizes


def _demand_plain_zip(path: Path) -> None:
    import h5py

    with zipfile.ZipFile(path) as archive:
        archive.getinfo("config.json")  # KeyError without it
        for member in archive.infolist():
            if member.filename not in _MEMBERS:
                raise _refusal(path, f"a member {reprlib.repr(member.filename)}")
            if member.file_size > MAX_FILE_BYTES:
                raise _refusal(path, f"{member.filename} is too large")
            if member.filename.endswith(".h5"):
                with h5py.File(io.BytesIO(archive.read(member)), "r") as weights:
                    _demand_plain(weights, path)


def _demand_plain_hdf5(path: Path) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        _demand_plain(file, path)
        if "model_config" not in file.attrs:
            raise _refusal(
                path,
                "weights without a network (KeyError: 'model_config')",
                "build the network, load_weights() into it, and save the whole, not its weights"
                " alone: model.save('own.keras')",
            )


def _demand_plain(file: Any, path: Path) -> None:
    """Refuse data that lies elsewhere, is reached twice, or is more than the file could hold."""
    import h5py

    reached = {h5py.h5o.get_info(file.id).addr}
    groups, size = [file], 0
    for group in groups:
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
                groups.append(item)
            elif item.external or item.is_virtual:
                raise _refusal(path, f"data kept in another file, {name!r}")
            else:
                size += item.nbytes
    # Keras reads a weight once for each time that its name is listed, were it of no bytes.
    lists = [(group, key) for group in groups for key in group.attrs if "weight_names" in key]
    listed = sum(math.prod(group.attrs.get_id(key).shape) for group, key in lists)
    if listed > _MOST_NAMES:
        raise _refusal(path, f"{listed:,} names of weights")
    named = sum(group[name].nbytes for group, key in lists for name in group.attrs[key])
    if (most := max(size, named)) > MAX_FILE_BYTES:
        raise _refusal(path, f"weights of {most:,} bytes")


_WHOLE: Final = "save the whole model again with model.save('own.keras')"
_OWN_CODE: Final = (
    "build it with keras.Model or Sequential from Keras's own layers, without Lambda and classes of"
    " your own, load its weights, and save it with model.save('own.keras')"
)
_ANOTHER: Final = (
    "build the network without that part; docs/own-models.md says what takes its place, and what is"
    " accepted"
)


def _refusal(path: Path, given: str, next_step: str = _WHOLE) -> ModelError:
    return ModelError(
        f"{path.name} is not a Keras model that this suite can judge.",
        expected="a whole residual network saved by Keras as .h5 or .keras, made of "
        + ", ".join(sorted(KNOWN_LAYERS - INERT))
        + " and layers that only training uses, with Keras's own initializers, regularizers and"
        " constraints",
        given=f"{given}, in {path}",
        next_step=next_step,
    )
