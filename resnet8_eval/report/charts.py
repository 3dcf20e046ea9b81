"""Where everything stands in the drawings; the templates put the ink there.

Horizontal places are in percent of the drawing's width, so that a drawing fits a phone and a desk
without shrinking its letters; vertical places are in pixels.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable, Iterator
from typing import Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
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
_LINE: Final = 16
"""Height of a line of text in pixels."""
_DELTAS: Final = {0.5: "", 5.0: "", 20.0: "", 80.0: "", 0.0: "minor", 2.0: "minor", 10.0: "minor"}
"""Deltas in percentage points that the scale names; minor ones only where there is room."""
_NARROW: Final = 260
"""Width in pixels of the plane on a narrow phone."""


class Axis:
    """A linear scale with a margin at both ends.

    Parameters
    ----------
    values
        What must fit.
    margin
        Share of the range left free at each end.
    start
        Where the scale begins, if not at the smallest value.
    """

    def __init__(self, values: Iterable[float], *, margin: float, start: float | None = None):
        found = list(values)
        low, high = min(found) if start is None else start, max(found)
        room = (high - low or 1.0) * margin
        self.low = low - room if start is None else start
        self.high = high + room

    def share(self, value: float) -> float:
        """Where a value stands, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> str:
        """Where a value stands, for an SVG attribute."""
        return f"{100 * self.share(value):.2f}%"

    def ticks(self, most: int = 8) -> list[float]:
        """Round values on the scale."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * k for k in (1, 2, 5, 10, 20) if span / (power * k) <= most)
        first = math.ceil(self.low / step)
        return [round(step * k, 9) for k in range(first, math.floor(self.high / step) + 1)]


def delta_plot(results: Results) -> Drawing | None:
    """Every delta from the baseline as a dot on its paired 95 % interval, in percentage points.

    The scale is that of square roots, so that what is within the margin of equivalence can be told
    apart beside what is flagged. None where no delta was measured.
    """
    rows = [(row, found) for row, found in table.measured(results) if not row.is_baseline]
    limits = [limit for _, found in rows for limit in found.delta_ci95_pp or ()]
    if not limits:
        return None
    accuracy = f" {words.percent(results.baseline.accuracy_percent)} %" if results.baseline else ""
    lines = [
        ("baseline", 0.0, f"baseline{accuracy}"),
        ("flagged", -FLAGGED_DROP_PP, f"flag: {words.MINUS}{FLAGGED_DROP_PP:g} pp"),
    ]
    margin = EQUIVALENCE_MARGIN_PP
    ends = (-FLAGGED_DROP_PP, margin, *limits)
    axis = Axis(map(_root, (min(ends), max(ends))), margin=0.04)
    top, step = _LINE * len(lines) + 8, 38
    dots = [
        {
            "row": row,
            "found": found,
            "y": top + step // 2 + step * i,
            "x": axis.percent(_root(found.delta_pp)),
            "low": axis.percent(_root(low)),
            "high": axis.percent(_root(high)),
        }
        for i, (row, found) in enumerate(rows)
        for low, high in [found.delta_ci95_pp or (found.delta_pp, found.delta_pp)]
    ]
    bottom = top + step * len(rows)
    return {
        "height": bottom + 40,
        "top": top,
        "bottom": bottom,
        "dots": dots,
        "margin": f"±{margin:g} pp",
        "band": (
            axis.percent(_root(-margin)),
            f"{100 * (axis.share(_root(margin)) - axis.share(_root(-margin))):.2f}%",
        ),
        # Every label stands left of its line, above the lines that begin there.
        "lines": [
            {"kind": kind, "label": label, "x": axis.percent(_root(value)), "y": _LINE * i + 12}
            for i, (kind, value, label) in enumerate(lines)
        ],
        "ticks": [
            {
                "x": axis.percent(_root(value)),
                "label": words.signed(value, 1 if value % 1 else 0),
                "kind": kind,
            }
            for size, kind in _DELTAS.items()
            for value in sorted({-size, size})
            if axis.low <= _root(value) <= axis.high
        ],
    }


def _root(value: float) -> float:
    """The square root of a size, with the value's sign."""
    return math.copysign(math.sqrt(abs(value)), value)


def plane(results: Results) -> Drawing | None:
    """Every configuration by the bytes of its weights, in powers of ten, and its accuracy."""
    rows = table.measured(results)
    if not rows:
        return None
    places = [math.log10(table.weights_bytes(found) / 1000) for _, found in rows]
    sizes = Axis(places, margin=0.07)
    points = [
        (row, place, found.accuracy_percent, found.accuracy_ci95_percent)
        for (row, found), place in zip(rows, places, strict=True)
    ]
    ticks = [
        {"x": sizes.percent(math.log10(v)), "label": f"{v:g}"}
        for v in _log_ticks(sizes.low, sizes.high)
    ]
    return _scatter(points, sizes, ticks, ("weights", "accuracy"))


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
    ticks = [{"x": across.percent(v), "label": f"{v:g}"} for v in across.ticks()]
    return _scatter(points, across, ticks, ("speedup", "delta"))


def percentiles(results: Results) -> Drawing | None:
    """The 50th, 90th and 99th percentile of one image's latency, with one thread, row by row.

    None where no latency was measured.
    """
    timed = [
        (row, [spread.median for spread in spreads if spread])
        for row, found in table.measured(results)
        for one in found.latency[:1]
        if any(spreads := (one.p50_ms, one.p90_ms, one.p99_ms))
    ]
    if not timed:
        return None
    axis = Axis([math.log10(ms) for _, values in timed for ms in values], margin=0.04)
    step = 38
    return {
        "bottom": step * len(timed),
        "height": step * len(timed) + 40,
        "rows": [
            {
                "row": row,
                "half": f"{values[0]:.3g} ms",
                "y": step * i + step // 2,
                "places": [axis.percent(math.log10(ms)) for ms in values],
            }
            for i, (row, values) in enumerate(timed)
        ],
        "ticks": [
            {"x": axis.percent(math.log10(v)), "label": f"{v:g}"}
            for v in _log_ticks(axis.low, axis.high)
        ],
    }


def _scatter(
    found: Iterable[tuple[table.Row, float, float, tuple[float, float]]],
    across: Axis,
    ticks: list[Drawing],
    columns: Iterable[str],
) -> Drawing:
    """Configurations on a plane, each with a letter that a table beside it explains.

    Each has its place across and its height, with the interval of that height; `ticks` are written
    below, and the table has the `columns` of the comparison.
    """
    rows, top, bottom = list(found), 16, 262
    up = Axis([limit for *_, limits in rows for limit in limits], margin=0.06)

    def y(value: float) -> float:
        return round(bottom - up.share(value) * (bottom - top), 2)

    points = [
        {
            "letter": letter,
            "row": row,
            "share": across.share(x),
            "x": across.percent(x),
            "y": y(height),
            "low": y(low),
            "high": y(high),
        }
        for letter, (row, x, height, (low, high)) in zip(_letters(), rows, strict=False)
    ]
    _nest(points)
    _name(points)
    return {
        "height": bottom + 38,
        "bottom": bottom,
        "columns": [table.BY_KEY[key] for key in columns],
        "points": points,
        "x_ticks": ticks,
        "y_ticks": [{"y": y(v), "label": f"{v:g}".replace("-", words.MINUS)} for v in up.ticks(6)],
    }


def _letters() -> Iterator[str]:
    """A to Z, and on with A1."""
    return (f"{letter}{n or ''}" for n in itertools.count() for letter in string.ascii_uppercase)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between two powers of ten; more of them where the scale is short."""
    powers = range(math.floor(low), math.ceil(high))
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [k * 10.0**n for n in powers for k in steps if low <= math.log10(k) + n <= high]
        if len(ticks) > 2:
            break
    return ticks


def _nest(points: list[Drawing]) -> None:
    """Where marks coincide, draw the earlier ones larger, around the others, so that all show."""
    for i, point in enumerate(points):
        point["around"] = sum(
            math.hypot(_NARROW * (point["share"] - other["share"]), point["y"] - other["y"]) < 5
            for other in points[i + 1 :]
        )


def _name(points: list[Drawing]) -> None:
    """Put every point's letter beside it, clear of marks, of other letters and of their leaders.

    What is clear on the narrowest drawing is clear on any, for only the gaps grow.
    """
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


def curves(results: Results) -> list[dict[str, Any]]:
    """How far confidence can be believed: a curve for each row held against the Keras model.

    Returns
    -------
    list of dict
        Its ``title``, the expected calibration errors ``before`` and ``after`` in words, and the
        points of ``baseline`` and ``model`` for an SVG polyline in a square of side 100, whose
        lower left corner is confidence 0 and accuracy 0.
    """
    return [
        {
            "title": row.title,
            "before": words.percent(found.baseline_reliability.error_percent),
            "after": words.percent(found.reliability.error_percent),
            "baseline": _points(found.baseline_reliability),
            "model": _points(found.reliability),
        }
        for row, found in table.measured(results)
        if found.recipe and found.reliability and found.baseline_reliability
    ]


def _points(found: Reliability) -> str:
    return " ".join(
        f"{part.confidence_percent:.1f},{100 - part.accuracy_percent:.1f}"
        for part in found.bins
        if part.confidence_percent is not None and part.accuracy_percent is not None
    )
