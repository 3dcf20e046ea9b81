"""What may be wrong with a user's model: told, never corrected in silence.

A network that was trained on other pixels, on BGR, or on classes in another order runs without an
error and is wrong on most images. A few hundred training images show which it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from resnet8_eval.preprocess import USUAL, Feed, Labels, Preprocessing, Scores

IMAGES: Final = 400
BETTER_PP: Final = 10.0
"""So much better is another preprocessing worth a hint: three standard deviations of the
difference of two shares of 400 images."""
REORDERED_PP: Final = 20.0
"""The same for classes in another order: the best of all orders is 8 pp better by chance alone."""
_SIGNED: Final = Preprocessing("[-1, 1]", 1 / 127.5, (1.0, 1.0, 1.0))
_TRIED: Final = (
    *USUAL.values(),
    _SIGNED,
    *(
        Preprocessing(f"{how.name} in BGR", how.scale, how.mean[::-1], how.std[::-1], "BGR")
        for how in (*USUAL.values(), _SIGNED)
        if how.channels == "RGB"
    ),
)


def tried(
    score: Callable[[Feed], Scores], images: Feed, labels: Labels, names: tuple[str, ...]
) -> dict[str, Any]:
    """Run a model on training images through each of the usual preprocessings, the run's own first.

    The result is as :class:`resnet8_eval.record.Preprocessings`; its hint may also be that the same
    with classes in another order than `names` would be better.
    """
    from scipy.optimize import linear_sum_assignment

    used = images.preprocessing
    ways = {used.name: used} | {
        how.name: how
        for how in _TRIED
        if how.channels != used.channels or (how.table() != used.table()).any()
    }
    percent, reordered, orders = {}, {}, {}
    for name, how in ways.items():
        scores = score(Feed(images.pixels, how))
        counts = np.zeros((len(names), len(names)), int)
        np.add.at(counts, (labels, scores.argmax(axis=1)), 1)
        orders[name] = linear_sum_assignment(-counts)[1]
        percent[name] = 100 * float(np.trace(counts)) / len(labels)
        reordered[name] = 100 * float(counts[range(len(names)), orders[name]].sum()) / len(labels)
    best, nearest = max(percent, key=percent.__getitem__), max(reordered, key=reordered.__getitem__)
    said = None
    if reordered[nearest] > percent[best] + REORDERED_PP:
        answers = ", ".join(names[true] for true in np.argsort(orders[nearest]))
        said = (
            f"were its classes in this order: {answers}, it would be right on "
            f"{reordered[nearest]:.4g} % of {nearest} pixels. The data set's order is "
            f"{', '.join(names)}; reorder the columns of its last layer"
        )
    elif percent[best] > percent[used.name] + BETTER_PP:
        said = (
            f"it is right on {percent[best]:.4g} % of {best} pixels. If it was trained so, "
            f"{_remedy(ways[best])}"
        )
    if said:
        said = (
            f"On {len(labels)} training images this network is right on {percent[used.name]:.4g} % "
            f"of {used.name} pixels, which is what it is fed; {said}."
        )
    return {"images": len(labels), "percent": percent, "hint": said}


def _remedy(how: Preprocessing) -> str:
    """What to give; where no name says it, a file, and the command that writes its lines."""
    if how.name in USUAL:
        return f"give --preprocessing {how.name}"
    return f"write a file ({how.writing()}) and give --preprocessing pixels.toml"
