"""The one definition of what a model is fed.

The network was trained on raw pixel values: float32 in [0, 255], RGB, channels last. Calibration
and evaluation both come through here, and CAL-02 compares their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 100
"""Images in one batch. Larger ones fall out of the processor's cache: 10,000 at once take two to
three times as long (``docs/performance.md``)."""


def preprocess(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn stored images into network input.

    Parameters
    ----------
    images
        uint8, shape (N, 32, 32, 3), RGB, NHWC, in [0, 255].

    Returns
    -------
    ndarray
        float32, shape (N, 32, 32, 3), RGB, NHWC, in [0, 255], C-contiguous.

    Raises
    ------
    ValueError
        If shape or dtype are others.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise ValueError(
            f"images must be uint8 of shape (N, 32, 32, 3), not {images.dtype} of {images.shape}; "
            "read them with resnet8_eval.cifar10.read_split"
        )
    return np.ascontiguousarray(images, dtype=np.float32)


def batches(
    images: NDArray[np.uint8], batch_size: int = BATCH_SIZE
) -> Iterator[NDArray[np.float32]]:
    """Preprocess `images` batch by batch, so that uint8 stays uint8 until it is needed.

    Parameters
    ----------
    images
        As in :func:`preprocess`.
    batch_size
        Images per batch; the last may be smaller.

    Yields
    ------
    ndarray
        float32, shape (n, 32, 32, 3), as :func:`preprocess` returns it.
    """
    for start in range(0, len(images), batch_size):
        yield preprocess(images[start : start + batch_size])
