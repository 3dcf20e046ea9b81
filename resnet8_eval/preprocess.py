"""The one definition of what a model is fed.

The pretrained network was trained on raw pixel values: float32 in [0, 255], RGB, channels last. A
user's own may want others. Calibration and evaluation both come through here, and CAL-02 compares
their bytes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet8_eval.assets import expanded
from resnet8_eval.errors import AssetError

BATCH_SIZE = 100
"""Images in one batch. Larger ones fall out of the processor's cache: 10,000 at once take two to
three times as long (``docs/performance.md``)."""
Channels = tuple[float, float, float]


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of a pixel: ``(scale * pixel - mean) / std``, in float64, rounded to float32.

    Attributes
    ----------
    name
        What the user calls it.
    scale
        Factor for all channels, above zero.
    mean, std
        One for each channel, in the order of `channels`; std is above zero.
    channels
        The order that the network takes them in; files have RGB.
    """

    name: str
    scale: float = 1.0
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    channels: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        with np.errstate(all="ignore"):
            finite = np.isfinite(self.table()).all()
        if not (self.scale > 0 and min(self.std) > 0 and finite):
            raise ValueError("scale and std must be above zero, and all numbers finite")

    def table(self) -> NDArray[np.float32]:
        """What each pixel value becomes, float32 (3, 256), in the order of `channels`."""
        pixels = self.scale * np.arange(256.0)
        mean, std = (np.array(values)[:, None] for values in (self.mean, self.std))
        return ((pixels - mean) / std).astype(np.float32)

    @property
    def span(self) -> tuple[float, float]:
        """Smallest (at most 0) and largest (at least 0) value that a network can be fed."""
        table = self.table()
        return min(float(table.min()), 0.0), max(float(table.max()), 0.0)

    def describe(self) -> dict[str, Any]:
        """What decides the values that are fed, as JSON has it. The name does not."""
        told = ("scale", "mean", "std", "channels")
        found = {name: getattr(self, name) for name in told}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}

    def toml(self) -> str:
        """The lines of a file that :func:`chosen` reads."""
        return "\n".join(f"{k} = {json.dumps(v)}" for k, v in self.describe().items())

    def writing(self) -> str:
        """The shell command that writes such a file, for text that is shown as one line."""
        lines = " ".join(map(shlex.quote, self.toml().splitlines()))
        return f"printf '%s\\n' {lines} > pixels.toml"


RAW: Final = Preprocessing("raw")
_UNIT: Final = 1 / 255
USUAL: Final = {
    entry.name: entry
    for entry in (
        RAW,
        Preprocessing("unit", _UNIT),
        # CIFAR-10's training images, as PyTorch's and Keras's examples have them.
        Preprocessing("standard", _UNIT, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        # ImageNet's, subtracted from raw BGR: keras.applications' mode "caffe".
        Preprocessing("caffe", 1.0, (103.939, 116.779, 123.68), channels="BGR"),
    )
}
"""By the names that ``--preprocessing`` takes."""
_EXAMPLE: Final = Preprocessing(
    "own", 0.0039215686, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), channels="BGR"
)


@dataclass(frozen=True, eq=False)
class Feed:
    """Stored images, and the preprocessing that a network takes them through.

    `pixels` are uint8, shape (N, 32, 32, 3), RGB, NHWC, in [0, 255].
    """

    pixels: NDArray[np.uint8]
    preprocessing: Preprocessing = RAW

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, which: Any) -> Feed:
        """Some of the images, by slice or indices."""
        return Feed(self.pixels[which], self.preprocessing)


Images = NDArray[np.uint8] | Feed
"""Stored images; bare pixels, uint8 (N, 32, 32, 3), RGB, NHWC, are fed raw."""
Labels = NDArray[np.integer[Any]]
"""Of N images, (N,): whole numbers from 0 to 9."""
Scores = NDArray[np.float32]
"""Of N images, (N, 10): probabilities, or logits."""


def fed(images: Images) -> Feed:
    """Images with the preprocessing that they are fed through."""
    return images if isinstance(images, Feed) else Feed(images)


def chosen(given: str) -> Preprocessing:
    """The preprocessing that a user names; AssetError if there is none.

    That is a name of :data:`USUAL`, or a TOML file with any of ``scale``, ``mean``, ``std`` and
    ``channels`` (see :class:`Preprocessing`).
    """
    if given in USUAL:
        return USUAL[given]
    import tomllib

    path = expanded(given)
    name = f"./{path.name}" if path.name in USUAL else path.name  # a report tells them apart
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert({**content, "name": name}, Preprocessing)
    except (OSError, ValueError) as error:
        raise AssetError(
            f"--preprocessing {given} cannot be used.",
            expected=f"{', '.join(USUAL)}, or a TOML file, such as by: {_EXAMPLE.writing()}",
            given=f"{type(error).__name__}: {error}",
            next_step="give a name or such a file; docs/own-models.md says what each entry does",
        ) from error


def preprocess(images: Images) -> NDArray[np.float32]:
    """Turn stored images, uint8 (N, 32, 32, 3), into network input; ValueError if they are others.

    It is float32, shape (N, 32, 32, 3), NHWC, C-contiguous; raw: RGB in [0, 255].
    """
    pixels, how = fed(images).pixels, fed(images).preprocessing
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (32, 32, 3):
        raise ValueError(
            f"images must be uint8 of shape (N, 32, 32, 3), not {pixels.dtype} of {pixels.shape}; "
            "read them with resnet8_eval.cifar10.read_split"
        )
    if how == RAW:
        return np.ascontiguousarray(pixels, dtype=np.float32)
    ordered = pixels if how.channels == "RGB" else pixels[..., ::-1]
    made = np.empty(pixels.shape, np.float32)
    for channel, values in enumerate(how.table()):
        made[..., channel] = values[ordered[..., channel]]
    return made


def batches(images: Images, batch_size: int = BATCH_SIZE) -> Iterator[NDArray[np.float32]]:
    """Preprocess `images` batch by batch, so that uint8 stays uint8 until it is needed.

    Each is float32, shape (n, 32, 32, 3), as :func:`preprocess` gives it; the last may be smaller.
    """
    for start in range(0, len(images), batch_size):
        yield preprocess(images[start : start + batch_size])
