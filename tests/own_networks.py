"""Small residual networks as users build and save them, each with weights of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Maker = Callable[[], Any]


def residual(
    *,
    first: Any = (),
    relu: Callable[[], Any] | None = None,
    add: Callable[[Any, Any], Any] | None = None,
    bias: bool = True,
    norm: dict[str, Any] | None = None,
    padding: str = "same",
    kernel: int = 3,
    last: Any = None,
    head: Any = None,
    name: str | None = None,
    strides: tuple[int, int] = (2, 2),
    between: Any = (),
    **given: Any,
) -> Any:
    """A convolution, two blocks of which the second narrows the map, an average and ten scores."""
    import keras
    from keras import layers

    number = iter(range(99))
    relu = relu or (lambda: layers.Activation("relu"))
    add = add or (lambda one, other: layers.Add()([one, other]))

    def convolution(x: Any, filters: int, size: int, stride: int) -> Any:
        called = {"name": name.format(next(number))} if name else {}
        how = padding
        if padding == "layer" and size > 1:
            x, how = layers.ZeroPadding2D(1)(x), "valid"
        if padding == "valid" and size > 1 and stride == 1 and filters > 3:
            how = "same"  # a block's two paths must fit
        how = "same" if how == "layer" else how
        return layers.Conv2D(filters, size, stride, padding=how, use_bias=bias, **called)(x)

    def normalised(x: Any) -> Any:
        return x if norm is None else layers.BatchNormalization(**norm)(x)

    taken = x = keras.Input((32, 32, 3), **given)
    for make in first:
        x = make(x)
    x = relu()(normalised(convolution(x, 4, kernel, strides[0])))
    for filters, stride in ((4, 1), (6, strides[1])):
        y = relu()(normalised(convolution(x, filters, kernel, stride)))
        for make in between:
            y = make(y)
        y = normalised(convolution(y, filters, kernel, 1))
        if filters == 6:
            x = normalised(convolution(x, filters, 1, stride))
        x = relu()(add(x, y))
    size = x.shape[1]
    x = last(x) if last else layers.Flatten()(layers.AveragePooling2D(size)(x))
    x = head(x) if head else layers.Dense(10, activation="softmax")(x)
    return trained(keras.Model(taken, x))


def trained(model: Any, seed: int = 0) -> Any:
    """Give a network weights such as training leaves; scores of all images differ."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if hasattr(layer, "layers"):
            trained(layer, seed + 1)
            continue
        if not layer.trainable:
            continue
        values = []
        for weight in layer.weights:
            shape = tuple(weight.shape)
            match weight.name:
                case "kernel":
                    value = random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
                case "moving_variance" | "gamma":
                    value = random.uniform(0.5, 2, shape)
                case "moving_mean" | "beta" | "bias":
                    value = random.normal(size=shape) / 10
                case _:
                    value = np.asarray(weight)
            values.append(value)
        layer.set_weights(values)
    return model
