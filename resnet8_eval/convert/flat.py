"""A user's Keras model as one flat float32 network.

Models are saved nested, in half precision, for one size of batch, with layers that only training
uses. What computes is the same; here it is written alike, and held against the model as it was
loaded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.errors import ModelError

INERT: Final = frozenset(
    {
        *("Identity", "ActivityRegularization", "GaussianNoise"),
        *("Dropout", "AlphaDropout", "GaussianDropout", "SpatialDropout2D"),
        *("AugMix", "CutMix", "MixUp", "RandAugment"),
        *("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RandomPerspective"),
        *("RandomBrightness", "RandomContrast", "RandomSaturation", "RandomSharpness", "RandomHue"),
        *("RandomColorDegeneration", "RandomColorJitter", "RandomGrayscale", "RandomInvert"),
        *("RandomElasticTransform", "RandomErasing", "RandomGaussianBlur"),
    }
)
"""Layers that hand on what they take, except in training."""
OPERATORS: Final = frozenset({"Add", "Cast", "Divide", "Multiply", "Subtract", "TrueDivide"})
"""What Keras writes of ``+``, ``-``, ``*``, ``/`` and of their functions in ``keras.ops``."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
"""TensorFlow names its operations in these letters."""
_IMAGES: Final = 16
_TOLERANCE: Final = 1e-5
"""Of the largest score; both networks run the same operations on the same numbers."""


def flattened(model: Any, name: str) -> tuple[Any, list[str]]:
    """The same network, flat and in float32, if it is not so already.

    Parameters
    ----------
    model : keras.Model
        One input and one output; functional or sequential, nested or not.
    name
        What the user calls it.

    Returns
    -------
    model : keras.Model
        Of (N, 32, 32, 3) in [0, 255] to scores (N, 10) for any N; `model` itself where nothing had
        to be written anew.
    notes : list of str
        What was, in sentences for the conversion log.

    Raises
    ------
    ModelError
        If the network that was written computes something else.
    """
    notes = _notes(model)
    if not notes:
        return model, []
    _rename(model)
    _demand_same(model, _written(model, None), name)
    return _written(model, "float32"), notes


def _notes(model: Any) -> list[str]:
    import keras

    leaves = list(_leaves(model))
    own = [leaf for leaf in leaves if isinstance(leaf, keras.Layer)]
    dtypes = {layer.dtype_policy.name for layer in own} | {model.inputs[0].dtype}
    dtypes.discard("float32")
    names = [leaf.name for leaf in leaves if not isinstance(leaf, keras.layers.InputLayer)]
    kinds = sorted({type(leaf).__name__ for leaf in leaves} & INERT)
    batch, *size = model.inputs[0].shape
    operators = [
        leaf.name for leaf in leaves if _is_operator(leaf) and not isinstance(leaf, keras.Layer)
    ]
    again = [
        entry["name"]
        for entry in model.get_config()["layers"]
        if len(entry.get("inbound_nodes", ())) > 1 and not model.get_layer(entry["name"]).weights
    ]
    sides = [] if isinstance(model, keras.Sequential) else [model.input, model.output]
    said = {
        f"inert at inference, left out: {', '.join(kinds)}": kinds,
        "models inside the model were made part of it": _models_in(model),
        "a sequential model, written as a functional one": isinstance(model, keras.Sequential),
        f"{', '.join(sorted(dtypes))}: weights and arithmetic are float32 here": dtypes,
        f"saved for batches of {batch}; takes batches of any size here": batch,
        "saved for images of any size; takes 32×32 here": None in size,
        "its input or output lies in a dictionary; taken out of it here": any(
            isinstance(side, dict) for side in sides
        ),
        f"used more than once, written once for each use: {', '.join(again)}": again,
        f"operators, written as layers: {', '.join(operators)}": operators,
        "layers were renamed: letters that TensorFlow does not take, or a name twice": (
            any(_UNSAFE.search(name) for name in [model.name, *names])
            or len(set(names)) < len(names)
        ),
    }
    return [note for note, applies in said.items() if applies]


def _leaves(model: Any) -> Iterator[Any]:
    """Layers and other operations, of the models in the model as well."""
    inside = _models_in(model)
    for leaf in getattr(model, "operations", model.layers):
        if leaf in inside:
            yield from _leaves(leaf)
        else:
            yield leaf


def _rename(model: Any) -> None:
    """Give each layer a name of its own that TensorFlow takes."""
    taken: set[str] = set()
    for leaf in {id(leaf): leaf for leaf in _leaves(model)}.values():
        stem = _UNSAFE.sub("_", leaf.name)
        leaf.name = next(
            name for n in itertools.count() if (name := f"{stem}_{n}" if n else stem) not in taken
        )
        taken.add(leaf.name)


def _models_in(model: Any) -> list[Any]:
    import keras

    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def _written(model: Any, dtype: str | None) -> Any:
    """Write `model` flat, in `dtype` or in the types that it has."""
    import keras

    name = _UNSAFE.sub("_", model.name)
    functional = _in_one(keras.Model(model.inputs[0], model.outputs[0], name=name))
    copies: list[tuple[Any, Any]] = []

    def copy(layer: Any) -> Any:
        # Keras puts a conversion in the place of a model whose layers are called one by one.
        if type(layer).__name__ in INERT | {"ConvertToTensor"}:
            return lambda value, **_: value
        if not isinstance(layer, keras.Layer):  # it has neither weights nor a type
            return partial(_as_layer, layer) if _is_operator(layer) else layer
        if layer.weights:
            copies.append((layer, made(layer, layer.name)))
            return copies[-1][1]
        uses = itertools.count(1)

        def use(*given: Any, **settings: Any) -> Any:
            number = next(uses)
            name = layer.name if number == 1 else f"{layer.name}__{number}"
            return made(layer, name)(*given, **settings)

        return use

    def made(layer: Any, name: str) -> Any:
        return type(layer).from_config(
            layer.get_config() | {"name": name} | ({"dtype": dtype} if dtype else {})
        )

    image = keras.Input((32, 32, 3), dtype="float32")
    flat = keras.models.clone_model(functional, input_tensors=image, clone_function=copy)
    for source, target in copies:
        target.set_weights(source.get_weights())
        if hasattr(target, "finalize_state"):
            target.finalize_state()  # Normalization computes with what it derives from its weights
    return flat


def _is_operator(leaf: Any) -> bool:
    return type(leaf).__name__ in OPERATORS


def _as_layer(operator: Any, *given: Any, **settings: Any) -> Any:
    """The result of an operator, by the layer that computes it; by itself if none does."""
    from keras import KerasTensor, layers

    kind, name = type(operator).__name__, operator.name
    maps = [value for value in given if isinstance(value, KerasTensor)]
    if kind == "Cast" and "float" in operator.dtype:
        return maps[0]  # all is float32 here
    if kind == "Add" and len(maps) == 2:
        return layers.Add(name=name)(maps)
    reverse = not isinstance(given[0], KerasTensor)
    constants = [np.asarray(v) for v in given if not isinstance(v, KerasTensor)]
    if (
        len(maps) != len(constants)
        or constants[0].size not in (1, maps[0].shape[-1])
        or constants[0].shape[-1:] not in ((), (constants[0].size,))
        or not (found := rescaling(kind, constants[0].ravel(), reverse=reverse))
    ):
        return operator(*given, **settings)
    return layers.Rescaling(**found, name=name)(maps[0])


def rescaling(kind: str, constant: NDArray[Any], *, reverse: bool) -> dict[str, list[float]] | None:
    """Scale and offset that do what an operator of a map and a constant does; None if none do.

    `reverse` is whether the constant comes first.
    """
    value = constant.astype(np.float64)
    scale, offset = np.ones_like(value), np.zeros_like(value)
    match kind:
        case "Add":
            offset = value
        case "Subtract":
            scale, offset = (-scale, value) if reverse else (scale, -value)
        case "Multiply":
            scale = value
        case "Divide" | "TrueDivide" if value.all() and not reverse:
            scale = 1 / value
        case _:
            return None
    return {"scale": scale.tolist(), "offset": offset.tolist()}


def _in_one(model: Any) -> Any:
    """`model` with the layers of the models inside it, the same layers."""
    import keras

    while inside := _models_in(model):
        model = keras.models.clone_model(
            model, clone_function=lambda layer, of=inside: layer.call if layer in of else layer
        )
    return model


def _demand_same(model: Any, written: Any, name: str) -> None:
    import keras

    batch = model.inputs[0].shape[0] or _IMAGES
    batches = -(-_IMAGES // batch)
    images = np.random.default_rng(0).integers(0, 256, (batches * batch, 32, 32, 3))
    images[0], images[1] = 0, 255
    parts = np.split(images.astype(np.float32), batches)
    before, after = (
        np.concatenate([each(some, training=False) for some in parts]).astype(np.float64)
        for each in (keras.Model(model.inputs[0], model.outputs[0]), written)
    )
    difference = float(np.abs(before - after).max()) / max(1.0, float(np.abs(before).max()))
    if not difference <= _TOLERANCE:
        raise ModelError(
            f"{name} could not be written as one flat network.",
            expected=f"the same scores to {_TOLERANCE:g} of the largest",
            given=f"a difference of {difference:.2g}",
            next_step="save the network without nested models and without layers for training",
        )
