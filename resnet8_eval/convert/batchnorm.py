"""Batch normalisations as the scale and the shift that they are, the same on every processor.

TensorFlow divides by a square root with the processor's approximate instruction, whose last bits
differ from maker to maker. tf2onnx has it compute the constants of a batch normalisation, so the
same file would be converted into other numbers on another processor, and quantized into others.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def as_scale_and_shift(model: Any) -> Any:
    """A Keras model with each BatchNormalization as a Rescaling of the same name.

    Scale and shift, of shape (channels,), are computed in float64 and used in float32. The other
    layers are those of `model`, not copies.
    """
    import keras

    def written(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer
        values = {weight.name: np.asarray(weight, np.float64) for weight in layer.weights}
        mean, variance = values["moving_mean"], values["moving_variance"]
        # NumPy's division and square root are rounded as IEEE 754 asks.
        scale = values.get("gamma", 1.0) / np.sqrt(variance + layer.epsilon)
        shift = values.get("beta", 0.0) - mean * scale
        made = keras.layers.Rescaling(scale.tolist(), shift.tolist(), name=layer.name)
        return lambda value, **_: made(value)  # without the mask that a normalisation takes

    return keras.models.clone_model(model, clone_function=written)
