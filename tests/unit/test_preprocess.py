"""What a model is fed: the pixels as they are, in float32."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from resnet8_eval.errors import AssetError
from resnet8_eval.preprocess import (
    BATCH_SIZE,
    RAW,
    USUAL,
    Feed,
    Preprocessing,
    batches,
    chosen,
    preprocess,
)

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


CAFFE_MEAN = np.array([103.939, 116.779, 123.68])
MEAN, STD = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
WRITTEN_OUT = {
    "raw": lambda x: x,
    "unit": lambda x: x / 255,
    "standard": lambda x: (x / 255 - MEAN) / STD,
    "caffe": lambda x: x[..., ::-1] - CAFFE_MEAN,
}
"""In the words of those who train with them."""


@pytest.mark.parametrize("name", USUAL)
def test_each_usual_preprocessing_is_what_its_users_write(name: str) -> None:
    fed = preprocess(Feed(IMAGES, USUAL[name]))
    assert fed.dtype == np.float32
    assert fed.flags.c_contiguous
    np.testing.assert_allclose(fed, WRITTEN_OUT[name](IMAGES.astype(float)), rtol=0, atol=3e-5)
    assert np.concatenate(list(batches(Feed(IMAGES, USUAL[name]), 2))).tobytes() == fed.tobytes()


def test_bare_pixels_are_fed_raw() -> None:
    assert preprocess(Feed(IMAGES)).tobytes() == preprocess(IMAGES).tobytes()


def test_the_span_of_pixels_that_are_never_zero_holds_zero() -> None:
    assert Preprocessing("above", mean=(-10.0,) * 3).span == (0, 265)
    assert Preprocessing("below", mean=(300.0,) * 3).span == (-300, 0)


@pytest.mark.parametrize("name", USUAL)
def test_the_span_holds_zero_and_all_that_can_be_fed(name: str) -> None:
    every = np.repeat(np.arange(256, dtype=np.uint8), 12).reshape(1, 32, 32, 3)
    fed = preprocess(Feed(every, USUAL[name]))
    low, high = USUAL[name].span
    assert (low, high) == (min(fed.min(), 0), max(fed.max(), 0))


def test_a_file_says_scale_mean_std_and_order(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('scale = 0.5\nmean = [1, 2, 3]\nstd = [4.0, 5.0, 6.0]\nchannels = "BGR"\n')
    found = chosen(str(path))
    assert found == Preprocessing("own.toml", 0.5, (1, 2, 3), (4, 5, 6), "BGR")
    expected = (IMAGES[..., ::-1] * 0.5 - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(preprocess(Feed(IMAGES, found)), expected, rtol=1e-6)
    path.write_text(found.toml())
    assert chosen(str(path)) == found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sclae = 1.0", "unknown field `sclae`"),
        ("scale = 0.0", "must be above zero"),
        ("std = [1.0, 0.0, 1.0]", "must be above zero"),
        ("mean = [1.0, nan, 1.0]", "all numbers finite"),
        ("mean = [1.0]", "length 3"),
        ('channels = "GBR"', "GBR"),
        ("scale: 1", "Expected '=' after a key"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(AssetError, match=r"--preprocessing .* cannot be used") as refused:
        chosen(str(path))
    assert said in str(refused.value)


def test_a_file_by_the_name_of_a_preprocessing_does_not_pass_for_it(tmp_path: Path) -> None:
    """Reports and hints go by the name of what a network was fed."""
    (tmp_path / "raw").write_text("scale = 0.5")
    found = chosen(str(tmp_path / "raw"))
    assert (found.name, found.scale) == ("./raw", 0.5)


def test_the_example_of_a_file_can_be_written_as_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssetError) as refused:
        chosen("imagenet")
    command = refused.value.expected.partition(", such as by: ")[2]
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)  # noqa: S603, S607
    found = chosen(str(tmp_path / "pixels.toml"))
    assert tomllib.loads((tmp_path / "pixels.toml").read_text()) == found.describe()
    assert (found.std, found.channels) == ((0.25, 0.24, 0.26), "BGR")


def test_a_name_that_is_neither_is_refused() -> None:
    with pytest.raises(AssetError, match="raw, unit, standard, caffe, or a TOML file"):
        chosen("imagenet")
    with pytest.raises(AssetError, match="~nobody-of-that-name"):
        chosen("~nobody-of-that-name/pixels.toml")
    assert chosen("raw") is RAW
