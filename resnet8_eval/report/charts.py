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
        ("required", MIN_ACCURACY_PERCENT, f"required: > {MIN_ACCURACY_PERCENT:g} %"),
        (
            "flagged",
            best - FLAGGED_DROP_PP,
            f"flag: {words.MINUS}{FLAGGED_DROP_PP:g} pp, {words.percent(best - FLAGGED_DROP_PP)} %",
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
        return round(bottom - accuracies.share(value) * (bottom - 20), 2)

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
    _spread(_stand_beside(points), _LINE, _LINE, bottom - _LINE)
    return {
        "height": height,
        "bottom": bottom,
        "points": points,
        "x_ticks": [{"x": sizes.percent(v), "label": f"{v:g}"} for v in sizes.ticks(5)[1:]],
        "y_ticks": [{"y": y(v), "label": f"{v:g}"} for v in accuracies.ticks(6)],
    }


def _measured(results: Results) -> list[Mapping[str, Any]]:
    return [row.configuration for row in table.rows(results) if row.configuration is not None]


def _stand_beside(points: list[Drawing]) -> list[Drawing]:
    """Give every label a side, and return those that still need a height.

    A point by itself carries its label on top of its interval; those of a group stand beside it.
    """
    beside = []
    for group in _crowds(points, "share", 0.15):
        to_left = group[0]["share"] > 0.4
        for point in group:
            point["to_left"] = to_left
            point["x"] = f"{100 * point['share']:.2f}%"
            point["label_x"] = f"{100 * group[0 if to_left else -1]['share']:.2f}%"
            point["alone"] = len(group) == 1
            point["label_y"] = round(point["high"] - 10, 2)
        beside += group if len(group) > 1 else []
    return beside


def _crowds(points: list[Drawing], key: str, near: float) -> list[list[Drawing]]:
    """Points by `key`, in groups whose neighbours are nearer than `near`."""
    order = sorted(points, key=lambda point: (point[key], point["label"]))
    groups = [order[:1]]
    for point in order[1:]:
        if point[key] - groups[-1][-1][key] < near:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _spread(points: list[Drawing], gap: float, low: float, high: float) -> None:
    """Give every point a height for its label, no two of them closer than `gap`."""
    if not points:
        return
    order: list[Drawing] = []
    for crowd in _crowds(points, "y", gap):
        # the labels of one side stay together
        order += sorted(crowd, key=lambda p: (p["to_left"], p["y"], -p["share"], p["label"]))
    heights = [point["y"] for point in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    # They were only pushed down; move them up by half of it, and keep them on the drawing.
    shift = sum(h - p["y"] for h, p in zip(heights, order, strict=True)) / len(order)
    shift = min(max(shift, heights[-1] - high), heights[0] - low)
    for point, h in zip(order, heights, strict=True):
        point["label_y"] = round(h - shift, 2)


_BOX_HEIGHT: Final = 38
_GAP: Final = 28
_ROW: Final = 50
_TOP: Final = 30
_COLUMNS: Final = {"assets": 118, "convert": 118, "fold": 118, "prepare": 150}
"""Columns of the stages that all configurations share, and their widths in pixels."""
_SHARED: Final = {
    "onnx": ("convert", 1, "Keras to ONNX"),
    "folded": ("fold", 2, "fold batch norm"),
    "torch": ("prepare", 2, "ONNX to PyTorch"),
    "calibration": ("convert", 4.5, "calibration set"),
    "parameters": ("prepare", 4.5, "parameters"),
}
_OF_CONFIGURATION: Final = {"model": "quantize", "scores": "evaluate on test", "compare": "compare"}
"""First part of the names of a configuration's own stages, and what they do."""
_BESIDES: Final = {
    "reference/onnxruntime": "reference arithmetic",
    "verify/onnx": "verify ONNX",
    "verify/torch": "verify PyTorch",
    "verify/preprocessing": "verify preprocessing",
}
_FLOAT_SOURCES: Final = {
    "keras-float32": "assets",
    "onnxruntime-float32": "convert",
    "torch-float32": "prepare",
}


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
    own = dict(_OF_CONFIGURATION)
    for stage in sorted(timing):
        kind, _, name = stage.partition("/")
        if name in names:
            own.setdefault(kind, {"proof": "prove"}.get(kind, kind))
    grid = _Grid({**_COLUMNS, **{kind: 150 if kind == "scores" else 98 for kind in own}})
    boxes = [(stage, grid.box(*place)) for stage, place in _SHARED.items()]
    for row, (name, title) in enumerate(names.items()):
        for kind, verb in own.items():
            stage = f"{kind}/{name}"
            due = kind in _OF_CONFIGURATION and (kind != "model" or _is_quantized(name))
            if due or stage in timing:
                boxes.append((stage, grid.box(kind, row, title if kind == "scores" else verb)))
    placed = dict(boxes)
    others = {stage: stage for stage in sorted(timing) if stage not in {*placed, *_BESIDES}}
    besides = {**_BESIDES, **others}
    for k, (stage, title) in enumerate(besides.items()):
        row, column = divmod(k, 6)
        boxes.append((stage, grid.free_box(column, len(names) + 0.2 + row, title)))
    made = [stage for stage in timing if results["cache"].get(stage) == "miss"]
    longest = max(timing.values()) or 1.0
    return {
        "width": grid.width,
        "height": max(box["y"] for _, box in boxes) + _BOX_HEIGHT + 2,
        "box_height": _BOX_HEIGHT,
        "boxes": [{**box, **_state(results, stage, box, longest)} for stage, box in boxes],
        "assets": [
            grid.box("assets", 0, "Keras model"),
            grid.box("assets", 4.5, "training images"),
        ],
        "arrows": _arrows(grid, list(names)),
        "headings": [{"x": grid.left[key], "text": own.get(key, key)} for key in grid.left],
        "stages": [
            (stage, timing[stage], results["cache"].get(stage))
            for stage, _ in boxes
            if stage in timing
        ],
        "made": len(made),
        "made_seconds": sum(timing[stage] for stage in made),
        "hits": len(timing) - len(made),
    }


class _Grid:
    """Columns of boxes, from left to right.

    Parameters
    ----------
    widths
        Of each column in pixels.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        self.widths = dict(widths)
        self.left: dict[str, int] = {}
        x = 1
        for key, width in self.widths.items():
            self.left[key] = x
            x += width + _GAP
        self.width = x - _GAP + 1

    def box(self, column: str, row: float, title: str) -> Drawing:
        """A box in a column."""
        return self._box(self.left[column], row, self.widths[column], title)

    def free_box(self, place: int, row: float, title: str) -> Drawing:
        """A box in a row without columns."""
        return self._box(1 + place * (150 + _GAP), row, 150, title)

    def arrow(self, start: tuple[str, float], end: tuple[str, float]) -> str:
        """Out at the right, down or up before the last gap ends, in at the left."""
        (source, from_row), (target, to_row) = start, end
        x, last = self.left[source] + self.widths[source], self.left[target]
        y, to = (_TOP + _ROW * row + _BOX_HEIGHT / 2 for row in (from_row, to_row))
        return f"M{x} {y:g}H{last - 12}V{to:g}H{last - 2}"

    @staticmethod
    def _box(x: int, row: float, width: int, title: str) -> Drawing:
        most = width // 7
        short = title if len(title) <= most else f"{title[: most - 1]}…"
        return {"x": x, "y": round(_TOP + _ROW * row, 1), "width": width, "title": short}


def _configuration_names(results: Results) -> dict[str, str]:
    """Names and titles: first the usual seven, then any other."""
    found = {
        f"{framework}-{dtype}": words.configuration({"framework": framework, "dtype": dtype})
        for framework, dtype in table.CELLS
    }
    others = (c["name"] for c in results["configurations"] if c["name"] not in found)
    return {**found, **{name: words.plain(name) for name in others}}


def _is_quantized(name: str) -> bool:
    return name not in _FLOAT_SOURCES


def _state(results: Results, stage: str, box: Drawing, longest: float) -> Drawing:
    seconds = results["timing"].get(stage)
    if seconds is None:
        return {"kind": "absent", "note": "not made", "bar": 0}
    hit = results["cache"].get(stage) == "hit"
    return {
        "kind": "hit" if hit else "miss",
        "note": f"{'cached' if hit else 'made'}, {words.seconds(seconds)} s",
        "bar": round((box["width"] - 2) * seconds / longest, 1),
    }


def _arrows(grid: _Grid, names: list[str]) -> list[str]:
    arrows = [
        grid.arrow(("assets", 0), ("convert", 1)),
        grid.arrow(("convert", 1), ("fold", 2)),
        grid.arrow(("fold", 2), ("prepare", 2)),
        grid.arrow(("fold", 2), ("prepare", 4.5)),
        grid.arrow(("assets", 4.5), ("convert", 4.5)),
        grid.arrow(("convert", 4.5), ("prepare", 4.5)),
    ]
    for row, name in enumerate(names):
        if _is_quantized(name):
            arrows.append(grid.arrow(("prepare", 4.5), ("model", row)))
        source = _FLOAT_SOURCES.get(name, "model")
        arrows.append(grid.arrow((source, row), ("scores", row)))
        arrows.append(grid.arrow(("scores", row), ("compare", row)))
    return arrows
