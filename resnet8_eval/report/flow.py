"""The drawing of the pipeline: where its boxes and arrows stand, and its longest chain."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any, Final

from resnet8_eval.report import table, words
from resnet8_eval.report.words import Results

Drawing = dict[str, Any]

_BOX_HEIGHT: Final = 38
_GAP: Final = 28
_ROW: Final = 50
_LINE: Final = 14
"""Height of a line of text in pixels."""
_TOP: Final = 30
_BESIDES_IN_A_ROW: Final = 5
_MODEL, _IMAGES = "Keras model", "training images"
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
    "keras-float32": _MODEL,
    "onnxruntime-float32": "onnx",
    "torch-float32": "torch",
}


def longest_chain(seconds: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The stages that each wait for the one before and together take longest.

    Parameters
    ----------
    seconds
        What each stage took.
    needs
        The stages that each waits for; those that are not in `seconds` do not count.

    Returns
    -------
    list of str
        In the order in which they are made.
    """
    made_from = {
        stage: sorted(need for need in needs.get(stage, ()) if need in seconds)
        for stage in sorted(seconds)
    }
    done: dict[str, float] = {}
    last: dict[str, str | None] = {}
    for stage in TopologicalSorter(made_from).static_order():
        last[stage] = max(made_from[stage], key=done.__getitem__, default=None)
        done[stage] = seconds[stage] + done.get(last[stage] or "", 0.0)
    chain: list[str] = []
    latest = max(sorted(done), key=done.__getitem__, default=None)
    while latest is not None:
        chain.append(latest)
        latest = last[latest]
    return chain[::-1]


def pipeline(results: Results) -> Drawing | None:
    """The stages of the run as boxes, with their durations and whether the cache had them.

    Parameters
    ----------
    results
        What ``results.json`` holds; ``needs`` may be absent, for older runs did not record it.

    Returns
    -------
    dict or None
        Boxes, arrows, notes of what no arrow shows, `chain`: the longest one, and `stages`: every
        stage with its seconds and cache word, in the order of the flow. None where no stage was
        made.
    """
    timing = results["timing"]
    if not timing:
        return None
    needs = results.get("needs", {})
    names = _configuration_names(results)
    own = dict(_OF_CONFIGURATION)
    for stage in sorted(timing):
        kind, _, name = stage.partition("/")
        if name in names:
            own.setdefault(kind, {"proof": "prove"}.get(kind, kind))
    grid = _Grid({**_COLUMNS, **{kind: 150 if kind == "scores" else 106 for kind in own}})
    assets = {
        _MODEL: grid.box("assets", 0, _MODEL),
        _IMAGES: grid.box("assets", 4.5, _IMAGES),
    }
    boxes = {stage: grid.box(*place) for stage, place in _SHARED.items()}
    for row, (name, title) in enumerate(names.items()):
        for kind, verb in own.items():
            stage = f"{kind}/{name}"
            due = kind in _OF_CONFIGURATION and (kind != "model" or _is_quantized(name))
            if due or stage in timing:
                boxes[stage] = grid.box(kind, row, title if kind == "scores" else verb)
    arrows = _arrows(names)
    unseen = _Unseen(needs, arrows, names, own)
    notes: list[Drawing] = [
        {"x": grid.left[kind], "lines": lines}
        for kind in own
        if (lines := _wrapped(unseen.of_column(kind), grid.widths[kind] + _GAP))
    ]
    under_columns = grid.row(len(names))
    others = {stage: stage for stage in sorted(timing) if stage not in {*boxes, *_BESIDES}}
    besides = grid.boxes_besides(
        {stage: (title, unseen.of_stage(stage)) for stage, title in {**_BESIDES, **others}.items()},
        top=under_columns + 18 + _LINE * max((len(note["lines"]) for note in notes), default=0),
    )
    boxes |= besides
    chain = longest_chain(timing, needs) if needs else []
    made = [stage for stage in timing if results["cache"].get(stage) == "miss"]
    longest = max(timing.values()) or 1.0
    return {
        "width": grid.width,
        "height": max(box["y"] + box["height"] for box in boxes.values()) + 2,
        "boxes": [
            {
                **box,
                **_state(results, stage, box, longest),
                "order": chain.index(stage) + 1 if stage in chain else None,
            }
            for stage, box in boxes.items()
        ],
        "assets": list(assets.values()),
        "arrows": [_path({**assets, **boxes}[source], boxes[target]) for source, target in arrows],
        "headings": [{"x": grid.left[key], "text": own.get(key, key)} for key in grid.left],
        "notes": notes,
        "notes_top": under_columns,
        "stages": [
            (stage, timing[stage], results["cache"].get(stage))
            for stage in boxes
            if stage in timing
        ],
        "chain": chain,
        "chain_seconds": sum(timing[stage] for stage in chain),
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
        self.width = x

    @staticmethod
    def row(number: float) -> float:
        """Where a row begins."""
        return round(_TOP + _ROW * number, 1)

    def box(self, column: str, row: float, title: str) -> Drawing:
        """A box in a column."""
        return _box(self.left[column], self.row(row), self.widths[column], title)

    def boxes_besides(
        self, stages: Mapping[str, tuple[str, str]], top: float
    ) -> dict[str, Drawing]:
        """Boxes in rows without columns, each of which says itself what it needs."""
        step = self.width // _BESIDES_IN_A_ROW
        needs = {stage: _wrapped(needed, step - _GAP) for stage, (_, needed) in stages.items()}
        height = _BOX_HEIGHT + _LINE * max(map(len, needs.values()))
        found = {}
        for k, (stage, (title, _)) in enumerate(stages.items()):
            row, place = divmod(k, _BESIDES_IN_A_ROW)
            y = top + (height + _ROW - _BOX_HEIGHT) * row
            found[stage] = {
                **_box(1 + step * place, y, step - _GAP, title),
                "height": height,
                "needs": needs[stage],
            }
        return found


class _Unseen:
    """What a stage needs without an arrow that shows it, in words.

    Parameters
    ----------
    needs
        By stage.
    arrows
        What is shown.
    names, own
        Titles of the configurations, and of their columns.
    """

    def __init__(
        self,
        needs: Mapping[str, Sequence[str]],
        arrows: Iterable[tuple[str, str]],
        names: Mapping[str, str],
        own: Mapping[str, str],
    ) -> None:
        self._needs, self._arrows = needs, set(arrows)
        self._names, self._own = names, own

    def of_stage(self, stage: str) -> str:
        """Of a stage by itself."""
        return self._said(self._called(need) for need in self._of(stage))

    def of_column(self, kind: str) -> str:
        """Of a column of stages, one for each configuration."""
        return self._said(
            self._own[kind_needed] if name_needed == name else self._called(need)
            for name in self._names
            for need in self._of(f"{kind}/{name}")
            for kind_needed, _, name_needed in [need.partition("/")]
        )

    def _of(self, stage: str) -> list[str]:
        return [need for need in self._needs.get(stage, ()) if (need, stage) not in self._arrows]

    def _called(self, stage: str) -> str:
        kind, _, name = stage.partition("/")
        if name in self._names:
            verb = "" if kind == "scores" else f"{self._own.get(kind, kind)} "
            return f"{verb}{self._names[name]}"
        return _SHARED[stage][2] if stage in _SHARED else _BESIDES.get(stage, words.plain(stage))

    @staticmethod
    def _said(called: Iterable[str]) -> str:
        found = ", ".join(dict.fromkeys(called))
        return f"needs {found}" if found else ""


def _box(x: int, y: float, width: int, title: str) -> Drawing:
    most = width // 7
    short = title if len(title) <= most else f"{title[: most - 1]}…"
    return {"x": x, "y": y, "width": width, "height": _BOX_HEIGHT, "title": short, "needs": []}


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width // 7)


def _path(source: Drawing, target: Drawing) -> str:
    """Out at the right, down or up before the last gap ends, in at the left."""
    x, last = source["x"] + source["width"], target["x"]
    y, to = (box["y"] + box["height"] / 2 for box in (source, target))
    return f"M{x} {y:g}H{last - 12}V{to:g}H{last - 2}"


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


def _arrows(names: Iterable[str]) -> list[tuple[str, str]]:
    arrows = [
        (_MODEL, "onnx"),
        ("onnx", "folded"),
        ("folded", "torch"),
        ("folded", "parameters"),
        (_IMAGES, "calibration"),
        ("calibration", "parameters"),
    ]
    for name in names:
        if _is_quantized(name):
            arrows.append(("parameters", f"model/{name}"))
        arrows.append((_FLOAT_SOURCES.get(name, f"model/{name}"), f"scores/{name}"))
        arrows.append((f"scores/{name}", f"compare/{name}"))
    return arrows
