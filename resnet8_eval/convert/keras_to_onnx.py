"""Keras to ONNX with tf2onnx."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from resnet8_eval.convert import flat, keras2, keras_file, onnx_file
from resnet8_eval.convert.log import ConversionLog
from resnet8_eval.environment import packages
from resnet8_eval.errors import FULL, ModelError
from resnet8_eval.store import Record, file_sha256

OPSET: Final = 17
"""ONNX operator set of the converted model: new enough for per-channel quantization (13), old
enough for onnx2torch 1.5."""
INPUT_SHAPE: Final = (None, 32, 32, 3)
OUTPUT_SHAPE: Final = (None, 10)


def load(path: Path) -> Any:
    """Open a Keras model as :func:`load_noted` does, without the notes."""
    return load_noted(path)[0]


def load_noted(path: Path) -> tuple[Any, list[str]]:
    """Open a Keras model (.h5 or .keras) that can only compute, never run code of its own.

    The results are those of :func:`resnet8_eval.convert.flat.flattened`. ModelError if the file is
    no Keras model of known layers, or has another input or output.
    """
    keras_file.demand_known(path)
    import keras

    try:
        with TemporaryDirectory() as folder:
            readable = keras2.rewritten(path, Path(folder))
            model = keras.saving.load_model(readable, compile=False, safe_mode=True)
        _demand_interface(model, path)
        _demand_sound(model, path)
        flattened = flat.flattened(model, path.name)
        _demand_convertible(flattened[0], path)
    except ModelError:
        raise
    except Exception as error:  # Keras raises whatever the part that failed raised
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # no fault of the model
        said = " ".join(str(error).split()).rpartition("Exception encountered: ")[2]
        raise ModelError(
            f"Keras cannot load {path.name}.",
            expected="a whole model saved by Keras",
            given=f"{type(error).__name__}: {said[:300]}",
            next_step="save it again in the Keras that made it, as .keras",
        ) from error
    return flattened


def _demand_convertible(model: Any, path: Path) -> None:
    """Refuse by its Keras name what tf2onnx would garble, or a later stage could say less of."""
    layers = {layer["name"]: layer for layer in model.get_config()["layers"]}
    given = None
    made = {layer.name: layer for layer in model.layers}
    for name, layer in layers.items():
        kind, own, calls = layer["class_name"], layer["config"], layer["inbound_nodes"]
        if len(calls) > 1:
            given = f"a layer that is used {len(calls)} times ({name})"
        elif kind == "Conv2D" and own["groups"] != 1:
            given = f"a convolution in {own['groups']} groups ({name})"
        elif kind == "Dense" and len(made[name].input.shape) != 2:
            given = f"a dense layer on maps of {made[name].input.shape[1:]} ({name})"
        elif kind == "ReLU" and own["threshold"]:
            given = f"a ReLU with a threshold ({name})"
        elif kind in flat.OPERATORS and name not in made:
            given = f"{kind} of two maps, or in a way that is no scale and shift ({name})"
        elif kind in ("Rescaling", "Normalization"):
            before = _before(layer, layers)
            if before["class_name"] not in ("InputLayer", "Rescaling", "Normalization"):
                given = f"{kind} that does not follow the input ({name})"
        elif kind == "BatchNormalization":
            before = _before(layer, layers)
            linear = before["config"].get("activation", "linear") == "linear"
            if own["axis"] not in (-1, 3):
                given = f"a batch normalisation over axis {own['axis']} ({name})"
            elif before["class_name"] != "Conv2D" or not linear:
                given = (
                    f"a batch normalisation ({name}) that follows {before['class_name']}"
                    f"{'' if linear else ' with its activation'} ({before['config']['name']})"
                )
    if given:
        raise ModelError(
            f"{path.name} is a network that this suite cannot convert.",
            expected="layers used once, plain convolutions and ReLUs, scales and shifts of pixels"
            " alone, and batch normalisations of channels behind a convolution",
            given=given,
            next_step="change that part of the network; docs/own-models.md says what is accepted",
        )


def _before(layer: dict[str, Any], layers: dict[str, Any]) -> Any:
    """The layer that a layer reads."""
    return layers[layer["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0]]


def _demand_interface(model: Any, path: Path) -> None:
    if not model.built:
        raise ModelError(
            f"{path.name} does not say what it takes.",
            expected=f"a network of one input {INPUT_SHAPE}",
            given="a model that was never built or called, so it has neither input nor weights",
            next_step="call model.build((None, 32, 32, 3)), train it, and save it again",
        )
    taken, given = ([tuple(t.shape) for t in side] for side in (model.inputs, model.outputs))
    # The first size is the batch's.
    if all(
        len(side) == 1 and onnx_file.holds(side[0][1:], wanted[1:])
        for side, wanted in ((taken, INPUT_SHAPE), (given, OUTPUT_SHAPE))
    ):
        return
    said = [" and ".join(map(str, side)) for side in (taken, given)]
    raise ModelError(
        f"{path.name} has another input or output than a network for CIFAR-10.",
        expected=f"one input {INPUT_SHAPE} of raw pixels in [0, 255], one output {OUTPUT_SHAPE}",
        given=f"input {said[0]}, output {said[1]}",
        next_step="give a network for 32×32 RGB images and the ten classes of CIFAR-10; of several"
        " outputs, save the one with keras.Model(model.inputs[0], model.outputs[0])",
    )


def _demand_sound(model: Any, path: Path) -> None:
    """Refuse weights that are no numbers, and variances that have no square root."""
    import numpy as np

    for layer in model.layers:
        for weight in layer.weights:
            value = np.asarray(weight)
            negative = weight.name == "moving_variance" and (value < 0).any()
            if negative or not np.isfinite(value).all():
                raise ModelError(
                    f"{path.name} has weights that cannot be computed with.",
                    expected="finite weights, and variances of at least zero",
                    given=f"{'a negative one' if negative else 'NaN or infinity'} in"
                    f" {layer.name}/{weight.name}",
                    next_step="train the model again, or take an earlier checkpoint",
                )


def convert(model_path: Path, folder: Path) -> Record:
    """Convert a Keras model, ``.h5`` or ``.keras``, to ONNX, and log the conversion.

    Writes ``model.onnx`` (float32, dynamic batch, opset 17), ``conversion.log`` and
    ``keras_weights.npz`` (every Keras weight as float32, named ``layer/weight``) into `folder`.

    Returns
    -------
    dict
        ``layers`` (name, class, weights and their shapes, strides), ``parameters``, ``notes`` (what
        is written otherwise than in the file), ``opset``, ``producer``, ``steps``, ``warnings``,
        ``versions``.

    Raises
    ------
    ModelError
        If the model is refused.
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError
        If the converted one is not valid ONNX.
    """
    import numpy as np

    log = ConversionLog()
    found = packages()
    versions = {name: found[name] for name in ("tensorflow", "keras", "tf2onnx", "onnx", "numpy")}
    log.lines += [
        "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
        # Not its name: the same bytes by another name have the same artefact.
        f"model: SHA-256 {file_sha256(model_path)}",
    ]
    try:
        with log.step("import tensorflow"):
            import tensorflow as tf
        with log.step("import tf2onnx"):
            import onnx
            import tf2onnx

            from resnet8_eval.convert.batchnorm import as_scale_and_shift
            from resnet8_eval.convert.canonical import canonical
            from resnet8_eval.convert.names import as_in_keras
            from resnet8_eval.convert.structure import nodes
        with log.step("load the Keras model"):
            model, notes = load_noted(model_path)
            log.lines += [f"  {note}" for note in notes]
        with log.step("convert to ONNX"):
            signature = [tf.TensorSpec(INPUT_SHAPE, tf.float32, name="images")]
            onnx_model, _ = tf2onnx.convert.from_keras(
                as_scale_and_shift(model), signature, opset=OPSET
            )
            onnx_model = canonical(onnx_model)
            layers = [_layer(layer) for layer in model.layers]
            weights: dict[str, Any] = {
                f"{layer.name}/{weight.name}": np.asarray(weight, dtype=np.float32)
                for layer in model.layers
                for weight in layer.weights
            }
            names = {layer["name"] for layer in layers}
            as_in_keras(onnx_model, model.name, names, nodes(onnx_model.graph, layers, weights))
        with log.step("check the ONNX model"):
            onnx.checker.check_model(onnx_model, full_check=True)
        with log.step("save"):
            onnx.save(onnx_model, folder / "model.onnx")
            np.savez(folder / "keras_weights.npz", **weights)
    finally:
        (folder / "conversion.log").write_text(log.text(), encoding="utf-8")
    return {
        "layers": layers,
        "parameters": int(model.count_params()),
        "opset": OPSET,
        # tf2onnx appends the commit that it was built from, or None.
        "producer": f"{onnx_model.producer_name} {onnx_model.producer_version.split()[0]}",
        "notes": notes,
        "steps": log.steps,
        "warnings": log.warnings,
        "versions": versions,
    }


def _layer(layer: Any) -> dict[str, Any]:
    config = layer.get_config()
    return {
        "name": layer.name,
        "class": type(layer).__name__,
        "weights": {weight.name: list(weight.shape) for weight in layer.weights},
        "parameters": int(layer.count_params()),
        "strides": list(config["strides"]) if "strides" in config else None,
        "epsilon": config.get("epsilon"),
        **_pixels(layer),
    }


def _pixels(layer: Any) -> dict[str, list[float]]:
    """Scale and shift of a layer that changes pixels, for each channel."""
    import numpy as np

    match type(layer).__name__:
        case "Rescaling":
            scale, shift = layer.scale, layer.offset
        case "Normalization" if layer.invert:
            scale, shift = np.sqrt(layer.variance), layer.mean
        case "Normalization":
            # Keras divides by at least its epsilon.
            scale = 1 / np.maximum(np.sqrt(layer.variance), 1e-7)
            shift = -np.asarray(layer.mean) * scale
        case _:
            return {}
    values = {"scale": np.ravel(scale), "shift": np.ravel(shift)}
    if any(value.size not in (1, 3) for value in values.values()):
        return {}  # not at the front
    return {
        name: np.broadcast_to(value, (3,)).astype(float).tolist() for name, value in values.items()
    }
