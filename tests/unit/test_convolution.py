"""The convolution in NumPy, held against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

from resnet8_eval.convolution import by_line, convolve
from resnet8_eval.network import Convolution

IMAGES, HEIGHT, WIDTH, FILTERS = 2, 9, 12, 5


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3), (2, 1)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 4)])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_its_sums_are_those_of_pytorch(
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> None:
    import torch

    rng = np.random.default_rng(0)
    maps = rng.integers(-99, 99, (IMAGES, HEIGHT, WIDTH, channels)).astype(np.float64)
    weight = rng.integers(-99, 99, (FILTERS, channels, *kernel)).astype(np.float64)
    layer = Convolution("it", ("in",), "out", None, "weight", "bias", strides, pads)
    top, left, bottom, right = pads
    padded = np.pad(maps, ((0, 0), (top, bottom), (left, right), (0, 0))).transpose(0, 3, 1, 2)
    expected = torch.conv2d(torch.from_numpy(padded), torch.from_numpy(weight), stride=strides)
    for dtype in (np.float32, np.float64):
        found = convolve(maps.astype(dtype), by_line(weight.astype(dtype)), layer)
        assert found.dtype == dtype
        assert np.array_equal(found, expected.numpy().transpose(0, 2, 3, 1))
