"""Read and check the files of CIFAR-10's Python version.

The files are Python 2 pickles, and unpickling is running a program. So no unpickler runs here: a
small machine of our own carries out the few instructions that these files consist of. It has no
instruction that imports, calls or sets anything, none that fetches a value a second time (nothing
can grow beyond the file, or contain itself), and the one thing it can make that Python's literals
cannot is a two-dimensional array of bytes.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import pickletools
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import standin
from resnet8_eval.errors import AssetError, changed_asset

CLASS_NAMES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""Names of CIFAR-10's ten classes; the index is the label."""

MAX_BYTES: Final = 64 * 2**20
"""No file larger than this is read; the largest official one has 31 MB."""

_SHAPE: Final = (3, 32, 32)  # of one image, in the files
_PIXELS: Final = 3 * 32 * 32
_TITLES: Final = {
    **{f"data_batch_{i}": f"training batch {i} of 5" for i in range(1, 6)},
    "test_batch": "testing batch 1 of 1",
}
_SPLITS: Final = {
    "train": tuple(name for name in _TITLES if name != "test_batch"),
    "test": ("test_batch",),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes
    ----------
    images : ndarray of uint8, shape (N, 32, 32, 3)
        RGB pixels, 0 to 255, in NHWC layout, C-contiguous.
    labels : ndarray of int64, shape (N,)
        Class indices, 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_split(
    folder: Path, split: Literal["train", "test"], sha256: Mapping[str, str] | None = None
) -> Split:
    """Read one split, in the files' own order.

    How many images a file holds is not checked here: its checksum says so.

    Parameters
    ----------
    folder : Path
        Holds `data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`.
    split : {"train", "test"}
        The five training batches, one after the other, or the test batch.
    sha256 : mapping of str to str, or None
        Checksum by file name, which the bytes that are read must have; by default, any will do.

    Returns
    -------
    Split
        Images (N, 32, 32, 3) uint8 and labels (N,) int64; N > 0. A single batch is read-only.

    Raises
    ------
    AssetError
        If a file is missing, is not what its name says or has another checksum, or if
        `batches.meta` numbers the classes otherwise than `CLASS_NAMES`.
    """
    read_class_names(folder, sha256)
    batches = [read_batch(folder / name, sha256) for name in _SPLITS[split]]
    if len(batches) == 1:
        return batches[0]
    return Split(
        images=np.concatenate([batch.images for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
    )


def read_batch(path: Path, sha256: Mapping[str, str] | None = None) -> Split:
    """Read one of the six files of images.

    Parameters
    ----------
    path : Path
        A file named `data_batch_1` to `data_batch_5` or `test_batch`.
    sha256 : mapping of str to str, or None
        As for `read_split`.

    Returns
    -------
    Split
        Images (N, 32, 32, 3) uint8 and labels (N,) int64; N > 0.

    Raises
    ------
    AssetError
        If the file cannot be read, is not the batch that its name says, or has another checksum.
    """
    return _read_batch(path, None if sha256 is None else sha256[path.name], _stamp(path))


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes whenever a file does."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=1)
def _read_batch(path: Path, sha256: str | None, stamp: tuple[int, ...]) -> Split:
    """Read it, or give back what was read last: a process asks for the test batch many times."""
    del stamp
    content = _read(path, {"batch_label", "labels", "data", "filenames"}, sha256)
    title, expected = content["batch_label"], _TITLES.get(path.name)
    if type(title) is not str or title != expected:
        wanted = f"the title {expected!r}" if expected else f"one of the files {', '.join(_TITLES)}"
        raise _not_cifar(path, wanted, f"the title {reprlib.repr(title)}")

    data = content["data"]
    if not isinstance(data, np.ndarray) or not len(data) or data.shape[1] != _PIXELS:
        given = f"shape {data.shape}" if isinstance(data, np.ndarray) else _kind(data)
        raise _not_cifar(path, f"images of shape (N, {_PIXELS}), N > 0", given)

    labels = content["labels"]
    if type(labels) is not list or len(labels) != len(data):
        given = f"{len(labels)} labels" if type(labels) is list else _kind(labels)
        raise _not_cifar(path, f"{len(data)} labels", given)
    strange = [label for label in labels if type(label) is not int or not 0 <= label <= 9]
    if strange:
        raise _not_cifar(path, "labels from 0 to 9", f"the label {reprlib.repr(strange[0])}")

    planes = data.reshape(len(data), *_SHAPE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    found = Split(images=images, labels=np.array(labels, dtype=np.int64))
    found.images.flags.writeable = found.labels.flags.writeable = False
    return found


def read_class_names(folder: Path, sha256: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Read the ten class names from `batches.meta`.

    Parameters
    ----------
    folder : Path
        Holds `batches.meta`.
    sha256 : mapping of str to str, or None
        As for `read_split`.

    Returns
    -------
    tuple of str
        `CLASS_NAMES` or, in the stand-in's folder, `standin.CLASSES`; the index is the label.

    Raises
    ------
    AssetError
        If the file cannot be read, has another checksum, or names other classes or another order.
    """
    path = folder / "batches.meta"
    keys = {"num_cases_per_batch", "label_names", "num_vis"}
    names = _read(path, keys, None if sha256 is None else sha256[path.name])["label_names"]
    if type(names) is list and all(type(name) is str for name in names):
        for known in (CLASS_NAMES, standin.CLASSES):
            if tuple(names) == known:
                return known
    raise _not_cifar(path, f"the classes {', '.join(CLASS_NAMES)}", reprlib.repr(names))


def _read(path: Path, keys: set[str], sha256: str | None) -> dict[str, Any]:
    """Read a pickled dictionary that has exactly these keys."""
    try:
        content = _unpickle(_bytes_of(path, sha256))
    except AssetError:
        raise
    except Exception as error:  # whatever the bytes bring about is the file's fault
        raise _not_cifar(
            path,
            "a pickle that holds numbers, text and one array of bytes",
            f"{type(error).__name__}: {error!s:.200}",
        ) from error
    if not isinstance(content, dict) or content.keys() != keys:
        given = str(sorted(content)) if isinstance(content, dict) else _kind(content)
        raise _not_cifar(path, f"a dictionary with the keys {sorted(keys)}", f"{given:.200}")
    return content


def _bytes_of(path: Path, sha256: str | None) -> bytes:
    if not path.is_file():  # opening a pipe would wait for ever
        given = "something else" if path.exists() else "no such file"
        raise _not_cifar(path, "a regular file", given)
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _not_cifar(path, f"at most {MAX_BYTES:,} bytes", "more")
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise changed_asset(path, f"sha256 {sha256}", f"sha256 {found}")
    return content


class _Name(enum.Enum):
    """The names that the files mention. They stand for themselves and are never looked up."""

    RECONSTRUCT = "numpy.core.multiarray _reconstruct"
    NDARRAY = "numpy ndarray"
    DTYPE = "numpy dtype"


class _Made(enum.Enum):
    """What the files make on the way to an array."""

    EMPTY_ARRAY = enum.auto()
    UINT8 = enum.auto()
    UINT8_LAID_OUT = enum.auto()


def _unpickle(pickled: bytes) -> object:
    """Carry out the instructions of a pickle, as far as the official files use them.

    Returns
    -------
    object
        Built of dict, list, tuple, str (one character per byte), int, bool, None, the members of
        `_Name` and `_Made`, and arrays of uint8 of shape (rows, columns).

    Raises
    ------
    Exception
        Of any kind, if `pickled` is anything else.
    """
    stack: list[Any] = []
    marks: list[int] = []

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    position: int | None = None
    for instruction, operand, position in pickletools.genops(pickled):  # noqa: B007
        match instruction.name:
            case "BINPUT" | "LONG_BINPUT":
                pass  # nothing is ever fetched again
            case "SHORT_BINSTRING" | "BINSTRING" | "BININT1" | "BININT2" | "BININT":
                stack.append(operand)
            case "NONE":
                stack.append(None)
            case "NEWFALSE":
                stack.append(False)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPENDS":
                items = since_mark()
                if type(stack[-1]) is not list:
                    raise TypeError("items for something that is not a list")
                stack[-1].extend(items)
            case "SETITEMS":
                items = since_mark()
                keys, values = items[::2], items[1::2]
                if type(stack[-1]) is not dict or not all(type(key) is str for key in keys):
                    raise TypeError("items for something that is not a dictionary of names")
                stack[-1].update(zip(keys, values, strict=True))
            case "GLOBAL":
                stack.append(_Name(operand))
            case "REDUCE" | "BUILD" as name:
                stack[-2:] = [_make(name, stack[-2:])]
            case "PROTO" if operand == 2:
                pass
            case "STOP":
                pass  # and `genops` ends
            case name:
                raise ValueError(f"the instruction {name} has no place in these files")
    if marks or len(stack) != 1 or position != len(pickled) - 1:
        raise ValueError("the pickle is not one whole value")
    return stack[0]


def _make(instruction: str, operands: list[Any]) -> object:
    """Make what the files make by calling and by setting a state: the array and its dtype."""
    match instruction, *operands:
        case "REDUCE", _Name.RECONSTRUCT, (_Name.NDARRAY, (0,), "b"):
            return _Made.EMPTY_ARRAY
        case "REDUCE", _Name.DTYPE, ("u1", 0, 1):
            return _Made.UINT8
        case "BUILD", _Made.UINT8, (3, "|", None, None, None, -1, -1, 0):
            return _Made.UINT8_LAID_OUT
        case "BUILD", _Made.EMPTY_ARRAY, (
            1,
            (int(rows), int(columns)),
            _Made.UINT8_LAID_OUT,
            False,
            str(text),
        ) if rows >= 0 and columns >= 0:
            return np.frombuffer(text.encode("latin-1"), np.uint8).reshape(rows, columns)
    raise ValueError(f"{instruction} of something other than an array of bytes")


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _not_cifar(path: Path, expected: str, given: str) -> AssetError:
    return AssetError(
        f"{path} is not the CIFAR-10 file that its name says.",
        expected=expected,
        given=given,
        next_step="Put the official file in its place, or delete the folder and run"
        " `python -m resnet8_eval assets fetch`.",
    )
