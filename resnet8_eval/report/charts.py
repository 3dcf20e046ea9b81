"""Where things stand in the drawings; the templates put the ink there.

Horizontal places are in percent of the drawing's width, so that a drawing fits a phone and a desk
without shrinking its letters; vertical places are in pixels.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report import table
from resnet8_eval.requirements import EQUIVALENCE_MARGIN_PP, FLAGGED_DROP_PP
from resnet8_eval.row_record import Reliability

Drawing = dict[str, Any]
Room = tuple[float, float, float, float]
"""Left, top, right and bottom."""

MARKS: Final = {
    "float32": "circle",
    "int8": "square",
    "uint8": "diamond",
    "uint8/int8": "triangle",
}
MARGIN: Final = EQUIVALENCE_MARGIN_PP
DELTAS: Final = {
    sign * size: kind
    for kind, sizes in (("", (0.5, 5.0, 20.0, 80.0)), ("minor", (0.0, 2.0, 10.0)))
    for size in sizes
    for sign in (-1, 1)
}
"""Deltas in percentage points that the scale names; minor ones only where there is room."""
_NARROW: Final = 260
"""Width in pixels of the plane on a narrow phone."""


class Axis:
    """A scale with a margin at both ends.

    Parameters
    ----------
    values
        What must fit.
    margin
        Share of the range left free at each end.
    start
        Where the scale begins, if not at the smallest value.
    scale
        What is drawn in proportion: the value itself, its root or its logarithm.
    """

    def __init__(
        self,
        values: Iterable[float],
        *,
        margin: float,
        start: float | None = None,
        scale: Callable[[float], float] = float,
    ) -> None:
        found = [scale(value) for value in values]
        low, high = min(found) if start is None else start, max(found)
        room = (high - low or 1.0) * margin
        self.low = low - room if start is None else start
        self.high = high + room
        self._scale = scale

    def share(self, value: float) -> float:
        """Where a value stands, from 0 to 1."""
        return (self._scale(value) - self.low) / (self.high - self.low or 1.0)

    def percent(self, value: float) -> str:
        """Where a value stands, for an SVG attribute."""
        return f"{100 * self.share(value):.2f}%"

    def height(self, value: float, top: float, bottom: float) -> float:
        """Where a value stands between two heights in pixels."""
        return round(bottom - self.share(value) * (bottom - top), 2)

    def ticks(self, most: int = 8) -> list[float]:
        """Round values on a scale of the values themselves."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * k for k in (1, 2, 5, 10, 20) if span / (power * k) <= most)
        first = math.ceil(self.low / step)
        return [round(step * k, 9) for k in range(first, math.floor(self.high / step) + 1)]

    def log_ticks(self) -> list[float]:
        """Round values on a logarithmic scale; more of them where it is short."""
        powers = range(math.floor(self.low), math.ceil(self.high))
        for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            ticks = [
                k * 10.0**n
                for n in powers
                for k in steps
                if self.low <= math.log10(k) + n <= self.high
            ]
            if len(ticks) > 2:
                break
        return ticks


def deltas(results: Results) -> Axis | None:
    """The scale of every delta from the baseline and its paired 95 % interval, in points.

    It is that of square roots, so that what is within the margin of equivalence can be told apart
    beside what is flagged. None where no delta was measured.
    """
    limits = [
        limit
        for row, found in table.measured(results)
        if not row.is_baseline
        for limit in found.delta_ci95_pp or ()
    ]
    ends = (-FLAGGED_DROP_PP, EQUIVALENCE_MARGIN_PP, *limits)
    return Axis((min(ends), max(ends)), margin=0.04, scale=_root) if limits else None


def _root(value: float) -> float:
    """The square root of a size, with the value's sign."""
    return math.copysign(math.sqrt(abs(value)), value)


def plane(results: Results) -> Drawing | None:
    """Every configuration by the bytes of its weights, in powers of ten, and its accuracy."""
    points = [
        (row, table.weights_bytes(c) / 1000, c.accuracy_percent, c.accuracy_ci95_percent)
        for row, c in table.measured(results)
    ]
    if not points:
        return None
    sizes = Axis([size for _, size, *_ in points], margin=0.07, scale=math.log10)
    return _scatter(points, sizes, sizes.log_ticks(), ("weights", "accuracy"))


def tradeoff(results: Results) -> Drawing | None:
    """Every quantized configuration by its speed beside float32, and its delta from the baseline.

    None where no speed was measured.
    """
    points = [
        (row, speedup.median, found.delta_pp, found.delta_ci95_pp)
        for row, found in table.measured(results)
        if found.recipe and found.delta_ci95_pp
        for speedup in [found.latency[0].speedup if found.latency else None]
        if speedup
    ]
    if not points:
        return None
    across = Axis([1.0, *(speedup for _, speedup, *_ in points)], margin=0.06, start=0.0)
    return _scatter(points, across, across.ticks(), ("speedup", "delta"))


def percentiles(results: Results) -> Drawing | None:
    """The 50th, 90th and 99th percentile of one image's latency in ms, with one thread, by row.

    None where no latency was measured.
    """
    rows = [
        (row, [spread.median for spread in spreads if spread])
        for row, found in table.measured(results)
        for one in found.latency[:1]
        if any(spreads := (one.p50_ms, one.p90_ms, one.p99_ms))
    ]
    if not rows:
        return None
    every = [ms for _, values in rows for ms in values]
    return {"rows": rows, "axis": Axis(every, margin=0.04, scale=math.log10)}


def _scatter(
    found: Iterable[tuple[table.Row, float, float, tuple[float, float]]],
    across: Axis,
    ticks: list[float],
    columns: Iterable[str],
) -> Drawing:
    """Configurations on a plane: place across, height and its interval, a letter, the table."""
    rows, ends = list(found), (16, 262)
    up = Axis([limit for *_, limits in rows for limit in limits], margin=0.06)
    points = [
        {
            "letter": letter,
            "row": row,
            "share": across.share(x),
            "x": across.percent(x),
            "y": up.height(height, *ends),
            "low": up.height(low, *ends),
            "high": up.height(high, *ends),
        }
        for letter, (row, x, height, (low, high)) in zip(_letters(), rows, strict=False)
    ]
    _nest(points)
    _name(points)
    return {
        "bottom": ends[1],
        "columns": [table.BY_KEY[key] for key in columns],
        "points": points,
        "x_ticks": [(across.percent(value), value) for value in ticks],
        "y_ticks": [(up.height(value, *ends), value) for value in up.ticks(6)],
    }


def _letters() -> Iterator[str]:
    """A to Z, and on with A1."""
    return (f"{letter}{n or ''}" for n in itertools.count() for letter in string.ascii_uppercase)


def _nest(points: list[Drawing]) -> None:
    """Where marks coincide, draw the earlier ones larger, around the others, so that all show."""
    for i, point in enumerate(points):
        point["around"] = sum(
            math.hypot(_NARROW * (point["share"] - other["share"]), point["y"] - other["y"]) < 5
            for other in points[i + 1 :]
        )


def _name(points: list[Drawing]) -> None:
    """Put every point's letter beside it, clear of marks, of other letters and of their leaders."""
    # What is clear on the narrowest drawing is clear on any, for only the gaps grow.
    marks = [_room(point, 0, 0, 7 + 4 * point["around"]) for point in points]
    letters: list[Room] = []
    for point in sorted(points, key=lambda point: (point["share"], point["letter"])):
        near = 14 + 4 * point["around"]
        elsewhere = [mark for mark in marks if not _overlap(mark, _room(point, 0, 0, 1))]
        dx, dy = _place(point, near, [*marks, *letters], [*elsewhere, *letters])
        point.update(dx=round(dx, 1), dy=round(dy, 1), leads=math.hypot(dx, dy) > 1.2 * near)
        letters.append(_room(point, dx, dy, 7))


def _place(
    point: Drawing, near: float, taken: list[Room], not_crossed: list[Room]
) -> tuple[float, float]:
    """The nearest of the clearest places for a letter."""

    def cost(place: tuple[float, float]) -> float:
        letter = _room(point, *place, 7)
        leader = [_room(point, k * place[0], k * place[1], 2) for k in (0.25, 0.5, 0.75)]
        return sum(_overlap(letter, other) for other in taken) + sum(
            _overlap(part, other) for part in leader for other in not_crossed
        )

    sides = ((1, 0), (-1, 0), (0.75, -0.9), (-0.75, -0.9), (0.75, 0.9), (-0.75, 0.9))
    reaches = (near, near + 12, near + 24)
    return min(((dx * reach, dy * reach) for reach in reaches for dx, dy in sides), key=cost)


def _room(point: Drawing, dx: float, dy: float, half: float) -> Room:
    """What a square around a place beside a point takes of the narrowest drawing."""
    x, y = _NARROW * point["share"] + dx, point["y"] + dy
    return x - half, y - half, x + half, y + half


def _overlap(one: Room, other: Room) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def curves(results: Results) -> list[tuple[table.Row, Reliability, Reliability]]:
    """Each row held against the Keras model, with how far confidence can be believed in both.

    The baseline's comes first of the two.
    """
    return [
        (row, found.baseline_reliability, found.reliability)
        for row, found in table.measured(results)
        if found.recipe and found.reliability and found.baseline_reliability
    ]
