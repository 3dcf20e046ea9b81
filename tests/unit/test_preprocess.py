"""What a model is fed: the pixels as they are, in float32."""

from __future__ import annotations

import numpy as np
import pytest

from resnet8_eval.preprocess import BATCH_SIZE, batches, preprocess

IMAGES = np.arange(3 * 32 * 32 * 3, dtype=np.uint32).reshape(3, 32, 32, 3).astype(np.uint8)


def test_pixels_stay_what_and_where_they_are() -> None:
    fed = preprocess(IMAGES)
    assert fed.dtype == np.float32
    assert fed.flags.c_contiguous
    assert np.array_equal(fed.astype(np.uint8), IMAGES)
    assert (fed.min(), fed.max()) == (0, 255)


def test_a_view_is_fed_as_the_image_that_it_shows() -> None:
    planes = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
    assert preprocess(planes.transpose(0, 2, 3, 1)).tobytes() == preprocess(IMAGES).tobytes()


@pytest.mark.parametrize(
    "images",
    [
        IMAGES.astype(np.float32),
        IMAGES / np.float32(255),
        IMAGES.transpose(0, 3, 1, 2),
        IMAGES[0],
        IMAGES[:, :, :, :1],
        IMAGES.astype(np.int8),
    ],
    ids=["float", "scaled", "channels first", "one image", "grey", "signed"],
)
def test_anything_else_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(N, 32, 32, 3\)"):
        preprocess(images)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(3, 2, [2, 1]), (3, 3, [3]), (3, 5, [3]), (0, 2, []), (250, BATCH_SIZE, [100, 100, 50])],
)
def test_batches_hold_every_image_once(count: int, size: int, sizes: list[int]) -> None:
    images = np.resize(IMAGES, (count, 32, 32, 3))
    found = list(batches(images, size))
    assert [len(batch) for batch in found] == sizes
    if found:
        assert np.concatenate(found).tobytes() == preprocess(images).tobytes()
