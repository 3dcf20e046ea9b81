"""The network as a picture: a line for each layer, coloured by what 8 bits cost there.

Lines run beside the layers as the maps do: down from the layer that makes one to those that read
it. Each layer unfolds to what is quantized in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from resnet8_eval.record import Drawn, Histogram, NetworkLayer, Results
from resnet8_eval.report import words

_STEP: Final = 16
"""Pixels from one line to the next."""
_SHARES: Final = (0.0, 0.125, 0.25, 0.5)
"""Shares of the largest divergence at which the colour changes."""
_WIDTH, _HEIGHT = 300, 90
"""Of a drawing of values, in its own units."""


def picture(results: Results) -> dict[str, Any] | None:
    """Every layer in order, with its place among the lines, its colour and its drawings.

    Returns
    -------
    dict or None
        ``width`` of the lines in pixels, ``layers``, ``legend`` of ``(class, words)``; None where
        the run quantized nothing with parameters of its own.
    """
    drawn = results.network
    if drawn is None:
        return None
    costs = {}
    if results.sensitivity and results.sensitivity.recipe == drawn.recipe:
        costs = {cost.name: cost for cost in results.sensitivity.layers}
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
                "name": words.plain(layer.name),
                "what": _what(layer),
                "colour": _colour(told.get(layer.name), largest),
                "cost": _cost(layer, costs),
                "lines": line,
                "drawings": [
                    _drawing(what, layer, found)
                    for what, found in (("weights", layer.weights), ("output", layer.output))
                    if found
                ],
            }
            for layer, line in zip(drawn.layers, lines, strict=True)
        ],
    }


def _what(layer: NetworkLayer) -> str:
    """Such as ``convolution, with batch_normalization and activation; gives 32×32×16``."""
    also = words.listed([words.plain(name) for name in layer.keras[1:]])
    size = "×".join(map(str, layer.shape))
    return f"{layer.kind}{f', with {also}' if also else ''}; gives {size}"


def _cost(layer: NetworkLayer, costs: dict[str, Any]) -> str:
    if layer.name not in costs:
        return ""
    cost = costs[layer.name]
    low, high = (1e6 * limit for limit in cost.divergence_alone_ci95_nats)
    grey = "" if low > 0 else ", inside noise"
    mean = 1e6 * cost.divergence_alone_nats
    return f"divergence {mean:.0f} µnat ({low:.0f} to {high:.0f}{grey})"


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
    """Which line each map takes, layer by layer.

    Returns
    -------
    list of dict
        In pixels from the left: ``at``, the layer's own line; ``past``, lines that only pass;
        ``to``, lines that turn off for a map that is read once more below, as ``(from, to)``;
        ``into``, lines that end in the layer. ``ends`` says whether nothing reads it.
    """
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


def _drawing(what: str, layer: NetworkLayer, found: Histogram) -> dict[str, Any]:
    """Histogram and channels of a layer's weights or output, as paths."""
    limits = [limit for channel in found.channels for limit in channel]
    low, high = min(found.low, *limits), max(found.high, *limits)
    ranges = _ranges(found)
    outside_range = [
        pair
        for least, most, start, end in found.channels
        for pair in ((min(least, start), start), (end, max(most, end)))
    ]
    outside = f"{found.clipped_percent:.2g} %" if found.clipped_percent else "none"
    return {
        "what": what,
        "label": f"{what} of {words.plain(layer.name)}",
        "words": f"from {_figure(found.low)} to {_figure(found.high)}; 8 bits span {ranges}; "
        f"outside of that: {outside}",
        "bars": _bars(found, low, high),
        "clip": [_share(value, low, high, _WIDTH) for value in found.clip or ()],
        "count": len(found.channels),
        "spans": _columns([(c[2], c[3]) for c in found.channels], low, high),
        "extremes": _columns([(c[0], c[1]) for c in found.channels], low, high),
        "beyond": _columns(outside_range, low, high, each=2),
    }


def _ranges(found: Histogram) -> str:
    if found.clip is not None:
        return f"{_figure(found.clip[0])} to {_figure(found.clip[1])}"
    ends = sorted(channel[3] for channel in found.channels)
    if ends[0] == ends[-1]:
        return f"±{_figure(ends[0])}"
    return f"±{_figure(ends[0])} to ±{_figure(ends[-1])}, channel by channel"


def _figure(value: float) -> str:
    return f"{value:.3g}".replace("-", words.MINUS)


def _share(value: float, low: float, high: float, whole: float) -> float:
    return round(whole * (value - low) / ((high - low) or 1.0), 1)


def _bars(found: Histogram, low: float, high: float) -> str:
    """The histogram as one outline, its heights on a logarithmic scale."""
    most = math.log1p(max(found.counts, default=0)) or 1.0
    start, end = (_share(value, low, high, _WIDTH) for value in (found.low, found.high))
    width = (end - start) / max(len(found.counts), 1)
    steps = [
        f"V{_HEIGHT * (1 - math.log1p(count) / most):.1f}H{start + width * place:.1f}"
        for place, count in enumerate(found.counts, 1)
    ]
    return f"M{start} {_HEIGHT}{''.join(steps)}V{_HEIGHT}Z"


def _columns(spans: Iterable[Sequence[float]], low: float, high: float, each: int = 1) -> str:
    """An upright bar for each channel, or several of them."""
    found = list(spans)
    width = _WIDTH * each / max(len(found), 1)
    parts = []
    for place, (bottom, top) in enumerate(found):
        if top > bottom:
            x, y = place // each * width, _HEIGHT - _share(top, low, high, _HEIGHT)
            tall = max(_HEIGHT - _share(bottom, low, high, _HEIGHT) - y, 0.5)
            parts.append(
                f"M{x + width / 8:.1f} {y:.1f}h{0.75 * width:.1f}v{tall:.1f}h-{0.75 * width:.1f}Z"
            )
    return "".join(parts)
