"""Layer by layer: what each costs, and its noise in every configuration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

from resnet8_eval.record import LayerCost, Results, Sensitivity
from resnet8_eval.report import table, words
from resnet8_eval.row_record import LayerNoise

_NOISE: Final = {"sqnr_weights_db": "Weights, dB", "sqnr_output_db": "Output, dB"}
UNTOLD: Final = "not told from zero"
Cell = dict[str, Any]
_COSTS: Final = (
    *("Divergence alone, µnat", "Agreement alone, %"),
    *("Divergence recovered, µnat", "Agreement recovered, pp"),
)


def layers(results: Results) -> dict[str, Any] | None:
    """One table of all layers; None where nothing is known of any.

    Returns
    -------
    dict or None
        ``columns`` of ``(heading, whose)`` and ``rows`` of ``name``, ``title`` and ``cells``, each
        with its ``text``, whether it can be ``told`` from zero, and its ``bar`` in percent of the
        column's longest or None.
    """
    measured = results.sensitivity
    costs = {entry.name: entry for entry in measured.layers} if measured else {}
    noise = {
        row.title: {entry.name: entry for entry in found.layers}
        for row, found in table.measured(results)
        if found.layers
    }
    names = list(dict.fromkeys([*costs, *itertools.chain.from_iterable(noise.values())]))
    if not names:
        return None
    columns = [(heading, "") for heading in _COSTS if costs]
    cells = _costs([costs.get(name) for name in names]) if costs else [[] for _ in names]
    for key, heading in _NOISE.items():
        for titles, texts in _alike(noise, names, key).items():
            columns.append((heading, titles))
            for line, text in zip(cells, texts, strict=True):
                line.append(_cell(text))
    return {
        "columns": columns,
        "rows": [
            {"name": short, "title": name, "cells": line}
            for (name, short), line in zip(short_names(names).items(), cells, strict=True)
        ],
    }


def terms(measured: Sensitivity) -> str:
    """On what the costs were measured, and what the whole network's are."""
    also = f"{measured.calibrated} of which also" if measured.calibrated else "none of which"
    whole = _micro(measured.divergence_nats, measured.divergence_ci95_nats)["text"]
    return (
        f"What each layer costs, on {measured.images} images of the {measured.source}ing split, "
        f"{also} calibrated, in one arithmetic for all configurations of recipe "
        f"{words.plain(measured.recipe)}: {words.plain(measured.arithmetic)}. Divergence is the "
        "mean Kullback–Leibler divergence from the float32 network's probabilities, agreement the "
        "share of images that are classed as it does. With every layer quantized, divergence is "
        f"{whole} in µnat and agreement {words.percent(measured.agreement_percent)} % "
        f"({words.accuracy_interval(measured.agreement_ci95_percent)}). Accuracy on these images: "
        f"{words.percent(measured.quantized_percent)} %, float32 "
        f"{words.percent(measured.float_percent)} %; they are training images, so neither stands "
        "beside an accuracy of the comparison."
    )


LEGEND: Final = (
    "Alone: only this layer is quantized. Recovered: by how much the wholly quantized network "
    "comes nearer to float32 when only this layer is in float. 1 µnat is a millionth of a nat. "
    "Every figure has its 95 % interval: by the bootstrap for means, which a single image can "
    "carry, Wilson's for shares, Tango's for the difference of two. Of what is "
    f"{UNTOLD}, the interval holds zero, or no image changed."
)


def short_names(names: list[str]) -> dict[str, str]:
    """Each layer's own part of its path, such as ``conv2d_1`` of ``model_1/conv2d_1/BiasAdd``.

    Parameters
    ----------
    names
        Paths of nodes, all different.

    Returns
    -------
    dict
        Path to name; to the path itself where names would not tell layers apart.
    """
    paths = [name.split("/") for name in names]
    alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    shared = min([len(list(alike)), *(len(path) - 1 for path in paths)])
    short = [words.plain(path[shared]) for path in paths]
    clear = len(set(short)) == len(names)
    return dict(zip(names, short if clear else map(words.plain, names), strict=True))


def _costs(costs: Sequence[LayerCost | None]) -> list[list[Cell]]:
    """What each layer costs; grey where the interval of the cost does not leave zero out."""
    largest = max(cost.divergence_alone_ci95_nats[0] for cost in costs if cost)
    no_cost = _cell(words.NOTHING) | {"told": False}
    return [_cost(cost, largest) if cost else [no_cost] * len(_COSTS) for cost in costs]


def _cost(cost: LayerCost, largest: float) -> list[Cell]:
    """A cell for each of the headings; a bar as long as the share of the largest lower limit."""
    least = cost.divergence_alone_ci95_nats[0]
    bar = round(100 * least / largest, 1) if least > 0 else None
    alone, recovered = cost.agreement_alone_ci95_percent, cost.agreement_recovered_ci95_pp
    return [
        _micro(cost.divergence_alone_nats, cost.divergence_alone_ci95_nats) | {"bar": bar},
        _cell(
            f"{words.percent(cost.agreement_alone_percent)} ({words.accuracy_interval(alone)})",
            told=cost.agreement_alone_percent < 100,
        ),
        _micro(cost.divergence_recovered_nats, cost.divergence_recovered_ci95_nats, words.signed),
        _cell(
            f"{words.signed(cost.agreement_recovered_pp)} ({words.delta_interval(recovered)})",
            told=_told(recovered),
        ),
    ]


def _micro(
    nats: float, interval: Sequence[float], form: Callable[[float, int], str] = "{:.{}f}".format
) -> Cell:
    """Millionths of a nat with their interval."""
    millionths = [1e6 * limit for limit in interval]
    digits = words.digits(millionths, [0.0], least=0)
    mean, low, high = (form(value, digits) for value in (1e6 * nats, *millionths))
    return _cell(f"{mean} ({low} to {high})", told=_told(interval))


def _cell(text: str, *, told: bool = True) -> Cell:
    return {"text": text if told else f"{text}, {UNTOLD}", "bar": None, "told": told}


def _told(interval: Sequence[float]) -> bool:
    """Whether it leaves zero out."""
    return interval[0] > 0 or interval[1] < 0


def _alike(
    noise: dict[str, dict[str, LayerNoise]], names: list[str], key: str
) -> dict[str, tuple[str, ...]]:
    """Ratios in dB, by the configurations that read alike, which share a column."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for title, entries in noise.items():
        found = [getattr(entries.get(name), key, None) for name in names]
        texts = tuple(words.NOTHING if value is None else f"{value:.1f}" for value in found)
        alike.setdefault(texts, []).append(title)
    if len(alike) == 1:
        return {"all configurations": next(iter(alike))}
    return {"; ".join(titles): texts for texts, titles in alike.items()}
