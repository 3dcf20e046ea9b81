"""The network as a picture: a line for each layer, coloured by what 8 bits cost there.

Lines run beside the layers as the maps do: down from the layer that makes one to those that read
it. Each layer unfolds to what is quantized in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

from resnet8_eval.record import Drawn, Histogram, Results
from resnet8_eval.report import words
from resnet8_eval.report.charts import Axis

_STEP: Final = 16
"""Pixels from one line to the next."""
_SHARES: Final = (0.0, 0.125, 0.25, 0.5)
"""Shares of the largest divergence at which the colour changes."""
_WIDTH, _HEIGHT = 300, 90
"""Of a drawing of values, in its own units."""


def picture(results: Results) -> dict[str, Any] | None:
    """Every layer in order, with its place among the lines, its colour and what it costs.

    Returns
    -------
    dict or None
        ``width`` of the lines in pixels, ``layers``, ``legend`` of ``(class, words)``; None where
        the run quantized nothing with parameters of its own.
    """
    drawn, measured = results.network, results.sensitivity
    if drawn is None:
        return None
    costs = {}
    if measured and measured.recipe == drawn.recipe:
        costs = {cost.name: cost for cost in measured.layers}
    told = {
        name: cost.divergence_alone_nats
        for name, cost in costs.items()
        if cost.divergence_alone_ci95_nats[0] > 0
    }
    largest = max(told.values(), default=0.0)
    lines = _lines(drawn)
    return {
        "width": _STEP * (1 + max(place for line in lines for place in line["used"])),
        "measured": bool(costs),
        "legend": _legend(largest),
        "layers": [
            {
                "layer": layer,
                "colour": _colour(told.get(layer.name), largest),
                "cost": costs.get(layer.name),
                "lines": line,
            }
            for layer, line in zip(drawn.layers, lines, strict=True)
        ],
    }


def _colour(cost: float | None, largest: float) -> str:
    if cost is None:
        return "same"
    return f"loss-{sum(cost >= share * largest for share in _SHARES)}"


def _legend(largest: float) -> list[tuple[str, str]]:
    edges = [f"{1e6 * share * largest:.0f}" for share in (*_SHARES[1:], 1)]
    below = itertools.pairwise(edges)
    texts = [f"below {edges[0]} µnat", *(f"{low} to {high}" for low, high in below)]
    return [(f"loss-{k}", text) for k, text in enumerate(texts, 1)] if largest else []


def _lines(drawn: Drawn) -> list[dict[str, Any]]:
    """Lines ``at`` a layer, ``past`` it, that turn off ``to`` others and end ``into`` it, in px."""
    # A line turns off where a map is read once more below; `ends`: nothing reads the layer.
    last = {name: place for place, layer in enumerate(drawn.layers) for name in layer.reads}
    lines: dict[int, str] = {0: "images"}
    told = []
    for place, layer in enumerate(drawn.layers):
        taken = {name: line for line, name in lines.items()}
        own = min(taken[name] for name in layer.reads)
        past = [line for line, name in lines.items() if name not in layer.reads]
        turns, into = [], []
        for name in dict.fromkeys(layer.reads):
            line = taken[name]
            if last[name] > place:
                free = next(n for n in range(1, len(lines) + 2) if n not in lines)
                if line == own:
                    lines[free] = name
                    turns.append((line, free))
                else:
                    past.append(line)
            elif line != own:
                del lines[line]
            if line != own:
                into.append(line)
        lines[own] = layer.name
        told.append(
            {
                "at": _across(own),
                "past": [_across(line) for line in past],
                "to": [(_across(one), _across(other)) for one, other in turns],
                "into": [_across(line) for line in into],
                "ends": layer.name not in last,
                "used": [own, *past, *(other for _, other in turns), *into],
            }
        )
    return told


def _across(line: int) -> int:
    return _STEP * line + _STEP // 2


def drawing(found: Histogram) -> dict[str, Any]:
    """Histogram and channels of a layer's weights or output, as paths of 300 by 90 units.

    ``bars`` is the histogram, ``clip`` the ends of the 8-bit range. Channel by channel: ``spans``
    of 8 bits, ``extremes`` of the values, and what lies ``beyond``.
    """
    limits = [limit for channel in found.channels for limit in channel]
    axis = Axis((found.low, found.high, *limits), margin=0)
    beyond = [
        pair
        for least, most, start, end in found.channels
        for pair in ((min(least, start), start), (end, max(most, end)))
    ]
    return {
        "bars": _bars(found, axis),
        "clip": [round(_WIDTH * axis.share(value), 1) for value in found.clip or ()],
        "spans": _columns([channel[2:] for channel in found.channels], axis),
        "extremes": _columns([channel[:2] for channel in found.channels], axis),
        "beyond": _columns(beyond, axis, each=2),
    }


def ranges(found: Histogram) -> str:
    """What 8 bits span of a layer's weights or output, in words."""
    if found.clip is not None:
        return " to ".join(words.figure(end, ".3g") for end in found.clip)
    ends = sorted(channel[3] for channel in found.channels)
    if ends[0] == ends[-1]:
        return f"±{words.figure(ends[0], '.3g')}"
    least, most = (words.figure(end, ".3g") for end in (ends[0], ends[-1]))
    return f"±{least} to ±{most}, channel by channel"


def _bars(found: Histogram, axis: Axis) -> str:
    """The histogram as one outline, its heights on a logarithmic scale."""
    most = math.log1p(max(found.counts, default=0)) or 1.0
    start, end = (round(_WIDTH * axis.share(value), 1) for value in (found.low, found.high))
    width = (end - start) / max(len(found.counts), 1)
    steps = [
        f"V{_HEIGHT * (1 - math.log1p(count) / most):.1f}H{start + width * place:.1f}"
        for place, count in enumerate(found.counts, 1)
    ]
    return f"M{start} {_HEIGHT}{''.join(steps)}V{_HEIGHT}Z"


def _columns(spans: Sequence[Sequence[float]], axis: Axis, each: int = 1) -> str:
    """An upright bar for each channel, or several of them."""
    width = _WIDTH * each / max(len(spans), 1)
    parts = []
    for place, (bottom, top) in enumerate(spans):
        if top > bottom:
            low, high = (round(_HEIGHT * axis.share(end), 1) for end in (bottom, top))
            x, tall = place // each * width + width / 8, max(high - low, 0.5)
            parts.append(
                f"M{x:.1f} {_HEIGHT - high:.1f}h{0.75 * width:.1f}v{tall:.1f}h-{0.75 * width:.1f}Z"
            )
    return "".join(parts)
