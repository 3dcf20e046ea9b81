"""Where everything stands in the drawings; the templates put the ink there.

Horizontal places are in percent of the drawing's width, so that a drawing fits a phone and a desk
without shrinking its letters; vertical places are in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from resnet8_eval.report import table, words
from resnet8_eval.report.words import Results
from resnet8_eval.requirements import FLAGGED_DROP_PP, MIN_ACCURACY_PERCENT

Drawing = dict[str, Any]

_MARKS: Final = {"float32": "circle", "int8": "square", "uint8": "diamond"}
_LINE: Final = 16
"""Height of a line of text in pixels."""


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


def accuracy_plot(results: Results) -> Drawing | None:
    """Every accuracy as a dot on its 95 % interval, with the lines that it is held against.

    Parameters
    ----------
    results
        What ``results.json`` holds.

    Returns
    -------
    dict or None
        Places of dots, intervals, lines and ticks; None where nothing was measured.
    """
    rows = _measured(results)
    baseline = results["baseline"]
    if not rows or baseline is None:
        return None
    best = baseline["accuracy_percent"]
    lines = [
        ("required", MIN_ACCURACY_PERCENT, f"required: more than {MIN_ACCURACY_PERCENT:g} %"),
        (
            "flagged",
            best - FLAGGED_DROP_PP,
            f"flagged below {words.percent(best - FLAGGED_DROP_PP)} % "
            f"({words.MINUS}{FLAGGED_DROP_PP:g} pp)",
        ),
        ("baseline", best, f"baseline {words.percent(best)} %"),
    ]
    limits = [limit for found in rows for limit in found["accuracy_ci95_percent"]]
    axis = Axis([*limits, *(value for _, value, _ in lines)], margin=0.05)
    top, step = _LINE * len(lines) + 8, 30
    dots = [
        {
            "label": words.configuration(found),
            "value": f"{words.percent(found['accuracy_percent'])} %",
            "interval": words.accuracy_interval(found["accuracy_ci95_percent"]),
            "mark": _MARKS.get(found["dtype"], "circle"),
            "flagged": found["flagged"],
            "y": top + step // 2 + step * i,
            "x": axis.percent(found["accuracy_percent"]),
            "low": axis.percent(found["accuracy_ci95_percent"][0]),
            "high": axis.percent(found["accuracy_ci95_percent"][1]),
            "to_left": axis.share(found["accuracy_percent"]) > 0.5,
        }
        for i, found in enumerate(rows)
    ]
    bottom = top + step * len(rows)
    return {
        "height": bottom + 40,
        "top": top,
        "bottom": bottom,
        "dots": dots,
        "lines": [
            {
                "kind": kind,
                "label": label,
                "x": axis.percent(value),
                "to_left": axis.share(value) > 0.5,
                "y": _LINE * i + 12,
            }
            for i, (kind, value, label) in enumerate(sorted(lines, key=lambda line: line[1]))
        ],
        "ticks": [{"x": axis.percent(value), "label": f"{value:g}"} for value in axis.ticks(7)],
    }


def plane(results: Results) -> Drawing | None:
    """Every configuration by the size of its model and its accuracy.

    Parameters
    ----------
    results
        What ``results.json`` holds.

    Returns
    -------
    dict or None
        Places of points, labels, intervals and ticks; None where nothing was measured.
    """
    rows = _measured(results)
    if not rows:
        return None
    height, bottom = 300, 262
    sizes = Axis([found["size_bytes"] / 1000 for found in rows], margin=0.1, start=0)
    accuracies = Axis(
        [limit for found in rows for limit in found["accuracy_ci95_percent"]], margin=0.06
    )

    def y(value: float) -> float:
        return round(bottom - accuracies.share(value) * (bottom - 8), 2)

    points = [
        {
            "label": words.configuration(found),
            "mark": _MARKS.get(found["dtype"], "circle"),
            "flagged": found["flagged"],
            "share": sizes.share(found["size_bytes"] / 1000),
            "y": y(found["accuracy_percent"]),
            "low": y(found["accuracy_ci95_percent"][0]),
            "high": y(found["accuracy_ci95_percent"][1]),
        }
        for found in rows
    ]
    _stand_beside(points)
    _spread(points, _LINE, _LINE, bottom - _LINE)
    return {
        "height": height,
        "bottom": bottom,
        "points": points,
        "x_ticks": [{"x": sizes.percent(v), "label": f"{v:g}"} for v in sizes.ticks(5)[1:]],
        "y_ticks": [{"y": y(v), "label": f"{v:g}"} for v in accuracies.ticks(6)],
    }


def _measured(results: Results) -> list[Mapping[str, Any]]:
    return [row.configuration for row in table.rows(results) if row.configuration is not None]


def _stand_beside(points: list[Drawing]) -> None:
    """Give every point a place for its label beside the group that it stands in."""
    order = sorted(points, key=lambda point: point["share"])
    groups = [order[:1]]
    for point in order[1:]:
        if point["share"] - groups[-1][-1]["share"] < 0.15:
            groups[-1].append(point)
        else:
            groups.append([point])
    for group in groups:
        to_left = group[0]["share"] > 0.4
        for point in group:
            point["to_left"] = to_left
            point["x"] = f"{100 * point['share']:.2f}%"
            point["label_x"] = f"{100 * group[0 if to_left else -1]['share']:.2f}%"


def _spread(points: list[Drawing], gap: float, low: float, high: float) -> None:
    """Give every point a height for its label, no two of them closer than `gap`."""
    # Where heights are about the same, the labels of one side stay together.
    order = sorted(
        points, key=lambda p: (p["y"] // (3 * gap), p["to_left"], p["y"], -p["share"], p["label"])
    )
    heights = [point["y"] for point in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    # They were only pushed down; move them up by half of it, and keep them on the drawing.
    shift = sum(h - p["y"] for h, p in zip(heights, order, strict=True)) / len(order)
    shift = min(max(shift, heights[-1] - high), heights[0] - low)
    for point, h in zip(order, heights, strict=True):
        point["label_y"] = round(h - shift, 2)


BOX: Final = (150, 38)
"""Width and height of a box of the pipeline, in pixels."""
_COLUMN: Final = 170
_ROW: Final = 50
_TOP: Final = 30
_PLACES: Final = {
    "onnx": (1, 1, "Keras to ONNX"),
    "folded": (2, 2, "fold batch norm"),
    "torch": (3, 2, "ONNX to PyTorch"),
    "calibration": (1, 4.5, "calibration set"),
    "ranges": (3, 4.5, "activation ranges"),
}
_VERIFICATIONS: Final = {
    "verify/onnx": (1, "verify ONNX"),
    "verify/torch": (3, "verify PyTorch"),
    "verify/preprocessing": (4, "verify preprocessing"),
}
_HEADINGS: Final = (
    "assets",
    "convert",
    "fold",
    "prepare",
    "quantize",
    "evaluate on test",
    "compare",
)


def pipeline(results: Results) -> Drawing | None:
    """The stages of the run as boxes, with their durations and whether the cache had them.

    Parameters
    ----------
    results
        What ``results.json`` holds.

    Returns
    -------
    dict or None
        Boxes, arrows, and `stages`: every stage with its seconds and cache word, in the order of
        the flow. None where no stage was made.
    """
    timing = results["timing"]
    if not timing:
        return None
    names = _configuration_names(results)
    places = dict(_PLACES)
    for row, (name, title, quantized) in enumerate(names):
        if quantized:
            places[f"model/{name}"] = (4, row, title)
        places[f"scores/{name}"] = (5, row, title)
        places[f"compare/{name}"] = (6, row, title)
    last = len(names) + 0.2
    places |= {stage: (column, last, title) for stage, (column, title) in _VERIFICATIONS.items()}
    longest = max(timing.values()) or 1.0
    boxes = [
        {**_at(column, row), "title": _short(title), **_state(results, stage, longest)}
        for stage, (column, row, title) in places.items()
    ]
    assets = [
        {**_at(0, 0), "title": "Keras model"},
        {**_at(0, 4.5), "title": "training images"},
    ]
    order = {stage: i for i, stage in enumerate(places)}
    stages = sorted(timing, key=lambda stage: (order.get(stage, len(order)), stage))
    made = [stage for stage in timing if results["cache"].get(stage) == "miss"]
    return {
        "width": 7 * _COLUMN - (_COLUMN - BOX[0]) + 2,
        "height": round(_TOP + last * _ROW + BOX[1] + 2, 1),
        "box": BOX,
        "boxes": boxes,
        "assets": assets,
        "arrows": _arrows(names),
        "headings": [{"x": 1 + _COLUMN * i, "text": text} for i, text in enumerate(_HEADINGS)],
        "stages": [(stage, timing[stage], results["cache"].get(stage)) for stage in stages],
        "made": len(made),
        "made_seconds": sum(timing[stage] for stage in made),
        "hits": len(timing) - len(made),
    }


def _configuration_names(results: Results) -> list[tuple[str, str, bool]]:
    """Name, title and whether it is quantized: first the usual seven, then any other."""
    found = {f"{framework}-{dtype}": (framework, dtype) for framework, dtype in table.CELLS}
    found |= {c["name"]: (c["framework"], c["dtype"]) for c in results["configurations"]}
    return [
        (
            name,
            words.configuration({"framework": framework, "dtype": dtype})
            if name == f"{framework}-{dtype}"
            else words.plain(name),
            dtype != "float32",
        )
        for name, (framework, dtype) in found.items()
    ]


def _at(column: float, row: float) -> Drawing:
    return {"x": 1 + _COLUMN * column, "y": _TOP + _ROW * row}


def _short(text: str, most: int = 21) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _state(results: Results, stage: str, longest: float) -> Drawing:
    seconds = results["timing"].get(stage)
    if seconds is None:
        return {"kind": "absent", "note": "not made", "bar": 0}
    hit = results["cache"].get(stage) == "hit"
    return {
        "kind": "hit" if hit else "miss",
        "note": f"{'cached' if hit else 'made'}, {words.seconds(seconds)} s",
        "bar": round((BOX[0] - 2) * seconds / longest, 1),
    }


def _arrows(names: list[tuple[str, str, bool]]) -> list[str]:
    """Paths of the arrows: out at the right, down or up in the gap, in at the left."""

    def right(column: float, row: float) -> tuple[float, float]:
        place = _at(column, row)
        return place["x"] + BOX[0], place["y"] + BOX[1] / 2

    def left(column: float, row: float) -> tuple[float, float]:
        place = _at(column, row)
        return place["x"], place["y"] + BOX[1] / 2

    def path(start: tuple[float, float], end: tuple[float, float]) -> str:
        middle = end[0] - 12
        return f"M{start[0]:g} {start[1]:g}H{middle:g}V{end[1]:g}H{end[0] - 2:g}"

    arrows = [
        path(right(0, 0), left(1, 1)),
        path(right(1, 1), left(2, 2)),
        path(right(2, 2), left(3, 2)),
        path(right(2, 2), left(3, 4.5)),
        # from the folded model past the torch box to the quantized models
        path(right(2, 2), left(3, 2.88)).rpartition("H")[0]
        + f"H{left(4, 3)[0] - 12:g}V{left(4, 3)[1]:g}H{left(4, 3)[0] - 2:g}",
        path(right(0, 4.5), left(1, 4.5)),
        path(right(1, 4.5), left(3, 4.5)),
    ]
    for row, (name, _, quantized) in enumerate(names):
        if quantized:
            arrows.append(path(right(3, 4.5), left(4, row)))
        source = 4 if quantized else {"keras-float32": 0, "onnxruntime-float32": 1}.get(name, 3)
        arrows.append(path(right(source, row), left(5, row)))
        arrows.append(path(right(5, row), left(6, row)))
    return arrows
