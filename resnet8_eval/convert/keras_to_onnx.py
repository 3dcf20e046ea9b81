"""Keras to ONNX with tf2onnx."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from resnet8_eval.convert import keras_file
from resnet8_eval.convert.log import ConversionLog
from resnet8_eval.errors import ModelError
from resnet8_eval.store import Record

OPSET: Final = 17
"""ONNX operator set of the converted model: new enough for per-channel quantization (13), old
enough for onnx2torch 1.5."""
INPUT_SHAPE: Final = (None, 32, 32, 3)
OUTPUT_SHAPE: Final = (None, 10)


def load(path: Path) -> Any:
    """Open a Keras model that can only compute, never run code of its own.

    Parameters
    ----------
    path
        ``.h5`` or ``.keras``.

    Returns
    -------
    keras.Model
        float32, (N, 32, 32, 3) in [0, 255] to (N, 10) probabilities.

    Raises
    ------
    ModelError
        If the file is no Keras model of known layers, or has another input or output.
    """
    keras_file.describe(path)
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the part that failed raised
        raise ModelError(
            f"Keras cannot load {path.name}.",
            expected="a whole model saved by Keras",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            next_step="load it with keras.saving.load_model and save it again",
        ) from error
    shapes = (tuple(model.input_shape), tuple(model.output_shape))
    if shapes != (INPUT_SHAPE, OUTPUT_SHAPE):
        raise ModelError(
            f"{path.name} has another input or output than a CIFAR-10 ResNet8.",
            expected=f"input {INPUT_SHAPE} of raw pixels in [0, 255], output {OUTPUT_SHAPE}",
            given=f"input {shapes[0]}, output {shapes[1]}",
            next_step="give a network for 32×32 RGB images and ten classes",
        )
    _demand_sound(model, path)
    return model


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
    """Convert a Keras model to ONNX, and log the conversion.

    Writes ``model.onnx`` (float32, dynamic batch, opset 17), ``conversion.log`` and
    ``keras_weights.npz`` (every Keras weight as float32, named ``layer/weight``).

    Parameters
    ----------
    model_path
        Keras model, ``.h5`` or ``.keras``.
    folder
        Where to write.

    Returns
    -------
    dict
        ``layers`` (name, class, weights and their shapes, strides), ``parameters``, ``opset``,
        ``producer``, ``steps``, ``warnings``, ``versions``.

    Raises
    ------
    ModelError
        If the model is refused or the converted one is not valid ONNX.
    """
    import numpy as np

    log = ConversionLog()
    versions = {name: version(name) for name in ("tensorflow", "keras", "tf2onnx", "onnx", "numpy")}
    log.lines.append(
        "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
    log.lines.append(f"model: {model_path.name}")
    try:
        with log.step("import tensorflow"):
            import tensorflow as tf
        with log.step("import tf2onnx"):
            import onnx
            import tf2onnx

            from resnet8_eval.convert.canonical import canonical
        with log.step("load the Keras model"):
            model = load(model_path)
        with log.step("convert to ONNX"):
            signature = [tf.TensorSpec(INPUT_SHAPE, tf.float32, name="images")]
            onnx_model, _ = tf2onnx.convert.from_keras(model, signature, opset=OPSET)
            onnx_model = canonical(onnx_model)
        with log.step("check the ONNX model"):
            check(onnx_model)
        with log.step("save"):
            onnx.save(onnx_model, folder / "model.onnx")
            weights: dict[str, Any] = {
                f"{layer.name}/{weight.name}": np.asarray(weight, dtype=np.float32)
                for layer in model.layers
                for weight in layer.weights
            }
            np.savez(folder / "keras_weights.npz", **weights)
    finally:
        (folder / "conversion.log").write_text(log.text(), encoding="utf-8")
    return {
        "layers": [_layer(layer) for layer in model.layers],
        "parameters": int(model.count_params()),
        "opset": OPSET,
        # tf2onnx appends the commit that it was built from, or None.
        "producer": f"{onnx_model.producer_name} {onnx_model.producer_version.split()[0]}",
        "steps": log.steps,
        "warnings": log.warnings,
        "versions": versions,
    }


def check(onnx_model: Any) -> None:
    """Run ``onnx.checker`` with full shape inference.

    Raises
    ------
    ModelError
        If the model is not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(onnx_model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            "The converted model is not valid ONNX.",
            expected="a model that onnx.checker accepts with full shape inference",
            given=str(error).splitlines()[0],
            next_step="read conversion.log, and compare the installed tf2onnx with constraints.txt",
        ) from error


def _layer(layer: Any) -> dict[str, Any]:
    config = layer.get_config()
    return {
        "name": layer.name,
        "class": type(layer).__name__,
        "weights": {weight.name: list(weight.shape) for weight in layer.weights},
        "parameters": int(layer.count_params()),
        "strides": list(config["strides"]) if "strides" in config else None,
        "epsilon": config.get("epsilon"),
    }
