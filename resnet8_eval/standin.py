"""The stand-in for CIFAR-10: ten drawn shapes, laid out exactly like the official files.

Every image is drawn from a seed, so the whole suite runs offline and the files' checksums can be
pinned. Byte equality across platforms and NumPy versions rests on two restraints: randomness is
PCG64's raw output only (the `Generator` methods may change between NumPy releases), and pixels go
through nothing but exactly rounded arithmetic (``+ - * /``, ``sqrt``), never through libm.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = (
    *("disc", "ring", "crescent", "square", "frame"),
    *("triangle", "star", "cross", "bars", "checker"),
)
"""Names of the ten classes; the index is the label."""

SIDE = 32
TRAIN_BATCHES = 5
TRAIN_PER_BATCH = 600
TEST_COUNT = 2000

TEST_SEED = 0
TRAIN_SEEDS = tuple(range(1, TRAIN_BATCHES + 1))
"""Seeds of `data_batch_1` to `data_batch_5`; any other seed but `TEST_SEED` is free to use."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_TURNS = 64
_GRID = 5
# The trigonometry is rounded to twelve bits, which hides how a platform's libm rounds.
_ANGLES = np.arange(_TURNS) * (2 * np.pi / _TURNS)
_COS = (np.rint(np.cos(_ANGLES) * 4096) / 4096).astype(np.float32)
_SIN = (np.rint(np.sin(_ANGLES) * 4096) / 4096).astype(np.float32)
# Tent weights in multiples of 1/16: sums of their products with small integers are exact in
# float32, so the order in which a BLAS adds them does not matter.
_TENT = np.clip(
    1 - np.abs((np.arange(SIDE)[:, None] + 0.5) * (_GRID - 1) / SIDE - np.arange(_GRID)), 0, 1
).astype(np.float32)


def draw(count_per_class: int, seed: int) -> tuple[Bytes, Bytes]:
    """Draw a balanced, shuffled set of N = 10 x `count_per_class` labelled images.

    Returns
    -------
    images : ndarray of uint8, shape (N, 32, 32, 3)
        RGB pixels in NHWC layout, 0 to 255; equal arguments give equal bytes on every platform.
    labels : ndarray of uint8, shape (N,)
        Indices into `CLASSES`.
    """
    dice = _Dice(seed)
    images = np.concatenate([_paint(shape, count_per_class, dice) for shape in _SHAPES])
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.uint8), count_per_class)
    order = np.argsort(dice.raw(len(labels)), kind="stable")
    return images[order], labels[order]


def materialise(folder: Path) -> None:
    """Write the stand-in into a new folder, in the layout of the official CIFAR-10 Python version.

    It holds `data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`, with the same bytes
    on every run and platform.
    """
    files: dict[str, dict[str, Any]] = {
        f"data_batch_{i}": _batch(f"training batch {i} of {TRAIN_BATCHES}", TRAIN_PER_BATCH, seed)
        for i, seed in enumerate(TRAIN_SEEDS, start=1)
    }
    files["test_batch"] = _batch("testing batch 1 of 1", TEST_COUNT, TEST_SEED)
    files["batches.meta"] = {
        "num_cases_per_batch": TRAIN_PER_BATCH,
        "label_names": list(CLASSES),
        "num_vis": 3 * SIDE * SIDE,
    }
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(pickle.PROTO + b"\x02" + _opcodes(content) + pickle.STOP)


def _batch(title: str, count: int, seed: int) -> dict[str, Any]:
    images, labels = draw(count // len(CLASSES), seed)
    return {
        "batch_label": title,
        "labels": labels.tolist(),
        "data": images.transpose(0, 3, 1, 2).reshape(count, -1),
        "filenames": [f"{CLASSES[k]}_s{seed}_{i:06d}.png" for i, k in enumerate(labels)],
    }


def _opcodes(value: object) -> bytes:
    """`value` as Python 2 pickled it: with its strings, and the names that NumPy had before 2."""
    match value:
        case int() if 0 <= value < 1 << 8:
            return pickle.BININT1 + struct.pack("<B", value)
        case int() if 0 <= value < 1 << 16:
            return pickle.BININT2 + struct.pack("<H", value)
        case str():
            return _opcodes(value.encode("ascii"))
        case bytes() if len(value) < 1 << 8:
            return pickle.SHORT_BINSTRING + struct.pack("<B", len(value)) + value
        case bytes():
            return pickle.BINSTRING + struct.pack("<i", len(value)) + value
        case list():
            items = b"".join(map(_opcodes, value))
            return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
        case dict():
            items = b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case np.ndarray() if value.ndim == 2 and value.dtype == np.uint8:
            return _array_opcodes(value)
    raise TypeError(f"the official files hold no such value: {value!r}")


def _array_opcodes(array: Bytes) -> bytes:
    rows, columns = map(_opcodes, array.shape)
    zero, one, minus_one = _opcodes(0), _opcodes(1), pickle.BININT + struct.pack("<i", -1)
    empty = (
        pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n"
        + pickle.GLOBAL + b"numpy\nndarray\n"
        + zero + pickle.TUPLE1 + _opcodes("b") + pickle.TUPLE3 + pickle.REDUCE
    )  # fmt: skip
    dtype = (
        pickle.GLOBAL + b"numpy\ndtype\n"
        + _opcodes("u1") + zero + one + pickle.TUPLE3 + pickle.REDUCE
        + pickle.MARK + _opcodes(3) + _opcodes("|") + 3 * pickle.NONE + 2 * minus_one + zero
        + pickle.TUPLE + pickle.BUILD
    )  # fmt: skip
    return (
        empty + pickle.MARK + one + rows + columns + pickle.TUPLE2 + dtype
        + pickle.NEWFALSE + _opcodes(array.tobytes()) + pickle.TUPLE + pickle.BUILD
    )  # fmt: skip


class _Dice:
    """Random numbers from the raw output of PCG64."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def raw(self, count: int) -> NDArray[np.uint64]:
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def octets(self, *shape: int) -> Bytes:
        count = int(np.prod(shape))
        raw = self.raw(-(-count // 8)).astype("<u8", copy=False)
        return raw.view(np.uint8)[:count].reshape(shape)

    def uniform(self, low: float, high: float, *shape: int) -> Floats:
        raw = self.raw(int(np.prod(shape))).reshape(shape)
        unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
        return low + np.float32(high - low) * unit


def _paint(shape: Callable[..., Floats], count: int, dice: _Dice) -> Bytes:
    """Paint `count` images of one shape: uint8, (count, 32, 32, 3)."""
    base = dice.uniform(50, 205, count, 1, 1, 1) + dice.uniform(-40, 40, count, 3, 1, 1)
    waves = _TENT @ dice.octets(count, 3, _GRID, _GRID).astype(np.float32) @ _TENT.T
    canvas = base + (waves - 127.5) * dice.uniform(0.05, 0.4, count, 1, 1, 1)

    for _ in range(2):  # clutter behind
        u, v, size = _placed(dice, count, turns=_TURNS, reach=16, smallest=2, largest=5)
        patch = _boxy(u, v * dice.uniform(1, 4, count, 1, 1)) - 1
        _cover(canvas, patch * size, 1, base + dice.uniform(-80, 80, count, 3, 1, 1))

    u, v, size = _placed(dice, count, turns=9, reach=4, smallest=6, largest=12)
    distance = shape(u, v, dice.uniform(0, 1, count, 1, 1)) * size
    contrast = dice.uniform(20, 110, count, 1, 1, 1)
    colour = base + np.where(base < 128, contrast, -contrast)
    colour += dice.uniform(-40, 40, count, 3, 1, 1)
    _cover(canvas, distance, dice.uniform(1, 2.5, count, 1, 1), colour)

    u, _, size = _placed(dice, count, turns=_TURNS, reach=12, smallest=0.5, largest=3)
    strip = (np.abs(u) - 1) * size  # in front
    _cover(canvas, strip, 1, base + dice.uniform(-80, 80, count, 3, 1, 1))

    grain = dice.octets(4, count, 3, SIDE, SIDE).sum(axis=0, dtype=np.int32) - 510
    canvas += grain.astype(np.float32) * dice.uniform(0.01, 0.14, count, 1, 1, 1)
    return np.ascontiguousarray(
        np.rint(np.clip(canvas, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
    )


def _placed(
    dice: _Dice, count: int, turns: int, reach: float, smallest: float, largest: float
) -> tuple[Floats, Floats, Floats]:
    """Place shapes at random: coordinates in frames where their radius is 1, and their sizes."""
    turn = dice.octets(count, 1, 1).astype(np.intp) % turns - turns // 2
    axis = np.arange(SIDE, dtype=np.float32) - np.float32((SIDE - 1) / 2)
    x = axis - dice.uniform(-reach, reach, count, 1, 1)
    y = axis[:, None] - dice.uniform(-reach, reach, count, 1, 1)
    size = dice.uniform(smallest, largest, count, 1, 1)
    cos, sin = _COS[turn] / size, _SIN[turn] / size
    return cos * x + sin * y, cos * y - sin * x, size


def _cover(canvas: Floats, distance: Floats, softness: Floats | float, colour: Floats) -> None:
    """Paint `colour` in place where the signed distance, in pixels, is negative."""
    alpha = np.clip(0.5 - distance / softness, 0, 1)[:, None]
    canvas += alpha * (colour - canvas)


def _round(u: Floats, v: Floats) -> Floats:
    return np.sqrt(u * u + v * v)


def _boxy(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u), np.abs(v))


# Each shape is a signed distance, negative inside, in a frame where its radius is about 1. The
# last argument, 0 to 1 per image, varies it: at one end it comes close to another class.


def _disc(u: Floats, v: Floats, p: Floats) -> Floats:
    return _round(u, v) - (1 - 0.15 * p)


def _ring(u: Floats, v: Floats, p: Floats) -> Floats:
    radius = _round(u, v)
    return np.maximum(radius - 1, 0.75 - 0.5 * p - radius)


def _crescent(u: Floats, v: Floats, p: Floats) -> Floats:
    return np.maximum(_round(u, v) - 1, 1 - _round(u - (0.4 + 0.5 * p), v))


def _square(u: Floats, v: Floats, p: Floats) -> Floats:
    return _boxy(u, v) - (0.9 - 0.1 * p)


def _frame(u: Floats, v: Floats, p: Floats) -> Floats:
    radius = _boxy(u, v)
    return np.maximum(radius - 0.9, 0.7 - 0.4 * p - radius)


def _triangle(u: Floats, v: Floats, p: Floats) -> Floats:
    return np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - (0.6 - 0.1 * p)


def _star(u: Floats, v: Floats, p: Floats) -> Floats:
    # A pentagram is what lies inside at least four of five half planes.
    fifths = np.stack([u * s - v * c for c, s in _FIFTHS])
    return np.asarray(np.partition(fifths, 3, axis=0)[3] - (0.33 + 0.1 * p))


def _cross(u: Floats, v: Floats, p: Floats) -> Floats:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1, np.minimum(u, v) - (0.2 + 0.25 * p))


def _bars(u: Floats, v: Floats, p: Floats) -> Floats:
    step = 0.55 + 0.15 * p
    return np.maximum(_boxy(u, v) - 0.9, np.abs(v - step * np.rint(v / step)) - 0.28 * step)


def _checker(u: Floats, v: Floats, p: Floats) -> Floats:
    step = 0.9 + 0.3 * p
    column = np.abs(u - step * np.rint(u / step)) - step / 4
    row = np.abs(v - step * np.rint(v / step)) - step / 4
    apart = np.minimum(np.abs(column), np.abs(row))
    return np.maximum(_boxy(u, v) - 0.9, np.where((column < 0) == (row < 0), -apart, apart))


_FIFTHS = ((1.0, 0.0), (0.309, 0.951), (-0.809, 0.588), (-0.809, -0.588), (0.309, -0.951))
_SHAPES = (_disc, _ring, _crescent, _square, _frame, _triangle, _star, _cross, _bars, _checker)
