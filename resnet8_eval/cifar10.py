"""Read the files of CIFAR-10's Python version.

The files are pickles, and unpickling can run code. Two guards stand before it: bytes whose checksum
is not the expected one are never unpickled, and the unpickler refuses every name but the three that
a NumPy array is made of.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import standin
from resnet8_eval.errors import AssetError, changed_asset
from resnet8_eval.store import signature

CLASS_NAMES: Final = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
"""Names of CIFAR-10's ten classes; the index is the label."""

_SPLITS: Final = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_GLOBALS: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
"""The module and name of everything that the official files refer to."""


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: uint8 (N, 32, 32, 3), C-contiguous, RGB pixels, 0 to 255, NHWC.

    `labels` are class indices, int64 (N,), 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_split(
    folder: Path, split: Literal["train", "test"], sha256: Mapping[str, str] | None = None
) -> Split:
    """Read one split, in the files' own order.

    The folder holds `data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`. `sha256` is
    the expected checksum by file name, which says all of a file; None is for files that the caller
    wrote or verified. AssetError if a file cannot be read or has another checksum, or if
    `batches.meta` numbers the classes otherwise than `CLASS_NAMES`.
    """
    read_class_names(folder, sha256)
    paths = [folder / name for name in _SPLITS[split]]
    batches = [_read_batch(path, _expected(path, sha256), signature(path)) for path in paths]
    if len(batches) == 1:
        return batches[0]
    return Split(
        images=np.concatenate([batch.images for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
    )


def _expected(path: Path, sha256: Mapping[str, str] | None) -> str | None:
    return None if sha256 is None else sha256[path.name]


@functools.lru_cache(maxsize=1)
def _read_batch(path: Path, sha256: str | None, stamp: tuple[int, ...]) -> Split:
    """Read a batch, or return the last one again: a process asks for the test batch many times."""
    content = _read(path, sha256)
    planes, labels = content["data"].reshape(-1, 3, 32, 32), content["labels"]
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    found = Split(images=images, labels=np.array(labels, dtype=np.int64))
    found.images.flags.writeable = found.labels.flags.writeable = False
    return found


def read_class_names(folder: Path, sha256: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The names in `batches.meta`, CIFAR-10's or the stand-in's; the index is the label.

    AssetError if the file cannot be read, has another checksum, or names other classes or another
    order.
    """
    path = folder / "batches.meta"
    names = _read(path, _expected(path, sha256)).get("label_names")
    for known in (CLASS_NAMES, standin.CLASSES):
        if isinstance(names, list) and tuple(names) == known:
            return known
    raise _not_cifar(path, f"the classes {', '.join(CLASS_NAMES)}", reprlib.repr(names))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Look up what a pickle names; nothing is imported before the name was compared."""
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def _read(path: Path, sha256: str | None) -> dict[str, Any]:
    """Read a pickled dictionary, once the bytes in hand have the expected checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _not_cifar(path, "a file that can be read", str(error.strerror)) from error
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise changed_asset(path, f"sha256 {sha256}", f"sha256 {found}")
    try:
        return dict(_Unpickler(io.BytesIO(content), encoding="latin-1").load())
    except Exception as error:  # damaged pickles raise errors of many kinds
        raise _not_cifar(
            path,
            "a pickle of numbers, text and one NumPy array",
            f"{type(error).__name__}: {error!s:.200}",
        ) from error


def _not_cifar(path: Path, expected: str, given: str) -> AssetError:
    return AssetError(
        f"{path} is not the CIFAR-10 file that its name says.",
        expected=expected,
        given=given,
        next_step="Put the official file in its place, or delete the folder and run"
        " `python -m resnet8_eval assets fetch`.",
    )
