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
        own = {weight.name: np.asarray(weight, np.float64) for weight in layer.weights}
        # NumPy's division and square root are rounded as IEEE 754 asks.
        scale = own.get("gamma", 1.0) / np.sqrt(own["moving_variance"] + layer.epsilon)
        shift = own.get("beta", 0.0) - own["moving_mean"] * scale
        values = scale.tolist(), shift.tolist()
        made = keras.layers.Rescaling(*values, name=layer.name, dtype="float32")
        return lambda value, **_: made(value)  # without the mask that a normalisation takes

    return keras.models.clone_model(model, clone_function=written)
