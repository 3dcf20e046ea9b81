"""A convolution in NumPy, as products of large matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.network import Convolution

Array = NDArray[Any]


def by_line(weight: Array) -> Array:
    """A convolution's weight, OIHW, as (height, width x channels, O)."""
    lines = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
    return lines.reshape(len(lines), -1, len(weight))


def convolve(x: Array, weight: Array, layer: Convolution) -> Array:
    """Sums of products, without bias, (n, height, width, O).

    The inputs of an output lie in as many lines of the map as the kernel has, and side by side in
    each. So one product is taken for each line of the kernel, of windows that are copied once for
    all of them.

    Parameters
    ----------
    x
        (n, height, width, channels).
    weight
        From :func:`by_line`; its type is that of the sums.
    layer
        Its strides and pads.
    """
    down, across = layer.strides
    top, left, bottom, right = layer.pads
    count, height, width, channels = x.shape
    high, window, channels_out = weight.shape
    shape = (count, height + top + bottom, width + left + right, channels)
    if any(layer.pads):
        padded = np.zeros(shape, weight.dtype)
        padded[:, top : top + height, left : left + width] = x
    else:
        padded = np.ascontiguousarray(x, weight.dtype)
    lines = (shape[1] - high) // down + 1
    wide = (shape[2] - window // channels) // across + 1
    image, row, column, value = padded.strides
    # A window is one run of memory, and is copied as one element.
    run = np.dtype((np.void, window * value))
    runs = np.ndarray((count, shape[1], wide), run, padded, 0, (image, row, across * column))
    if down == 1:  # each line of the map is read by every line of the kernel
        runs = runs.copy()
    total = np.zeros(0, weight.dtype)
    for i, line in enumerate(weight):
        part = runs[:, i : i + down * (lines - 1) + 1 : down].reshape(count, lines * wide)
        product = part.view(weight.dtype).reshape(count, lines * wide, window) @ line
        total = np.add(total, product, out=total) if i else product
    return total.reshape(count, lines, wide, channels_out)
