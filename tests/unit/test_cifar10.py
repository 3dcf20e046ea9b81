"""Reading good CIFAR-10 files. What is refused is in tests/faults/test_asset_faults.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resnet8_eval import standin
from resnet8_eval.cifar10 import CLASS_NAMES, read_class_names, read_split
from resnet8_eval.errors import AssetError
from tests.small_assets import batch, dataset_files, meta, put_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put_files(tmp_path / "cifar-10-batches-py", dataset_files())


def test_class_names_are_in_label_order() -> None:
    assert len(CLASS_NAMES) == 10
    assert list(CLASS_NAMES) == sorted(CLASS_NAMES)  # CIFAR-10's labels are alphabetical


@pytest.mark.parametrize(("split", "labels"), [
    ("train", [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]),
    ("test", [0, 5, 9]),
])  # fmt: skip
def test_split(folder: Path, split: str, labels: list[int]) -> None:
    read = read_split(folder, split)  # type: ignore[arg-type]
    assert read.labels.tolist() == labels
    assert read.labels.dtype == np.int64
    assert read.images.shape == (len(labels), 32, 32, 3)
    assert read.images.dtype == np.uint8
    assert read.images.flags.c_contiguous
    # The test batch is kept for who asks next; nobody may change it for the others.
    assert read.images.flags.writeable == read.labels.flags.writeable == (split == "train")


def test_pixels_are_planes_of_red_green_and_blue(folder: Path) -> None:
    image = read_split(folder, "test").images[2]  # in the file: pixel p is (2 + p) mod 251
    for row, column, channel in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (31, 30, 2)):
        assert image[row, column, channel] == (2 + 1024 * channel + 32 * row + column) % 251


def test_batch_of_any_size(folder: Path) -> None:
    (folder / "test_batch").write_bytes(batch("test_batch", [label % 10 for label in range(40)]))
    assert np.bincount(read_split(folder, "test").labels).tolist() == [4] * 10


def test_a_file_that_changes_is_read_again(folder: Path) -> None:
    read_split(folder, "test")
    (folder / "test_batch").write_bytes(batch("test_batch", [1, 2]))
    assert read_split(folder, "test").labels.tolist() == [1, 2]


def test_class_names_of_the_stand_in(tmp_path: Path) -> None:
    (tmp_path / "batches.meta").write_bytes(meta(standin.CLASSES))
    assert read_class_names(tmp_path) == standin.CLASSES


def test_class_names_of_cifar10(folder: Path) -> None:
    assert read_class_names(folder) == CLASS_NAMES


def test_the_stand_in_can_be_read(tmp_path: Path) -> None:
    standin.materialise(tmp_path / "standin")
    for split, per_class in (("train", 300), ("test", 200)):
        read = read_split(tmp_path / "standin", split)  # type: ignore[arg-type]
        assert np.bincount(read.labels).tolist() == [per_class] * 10


def test_errors_say_four_things(folder: Path) -> None:
    (folder / "test_batch").unlink()
    with pytest.raises(AssetError) as caught:
        read_split(folder, "test")
    error = caught.value
    assert str(folder / "test_batch") in error.what
    assert error.given == "No such file or directory"
    assert error.expected
    assert error.next_step
