"""Layer by layer: what each costs in accuracy, and its noise in every configuration."""

from __future__ import annotations

import itertools
from typing import Any, Final

from resnet8_eval.record import LayerCost, LayerNoise, Results
from resnet8_eval.report import table, words

_COSTS: Final = {"sensitivity_pp": "Sensitivity, pp", "recovery_pp": "Recovery, pp"}
_NOISE: Final = {"sqnr_weights_db": "Weights, dB", "sqnr_output_db": "Output, dB"}
Columns = dict[tuple[str, str], list[dict[str, Any]]]


def layers(results: Results) -> dict[str, Any] | None:
    """One table of all layers, where the run measured them.

    Returns
    -------
    dict or None
        ``measured``, the terms of the sensitivity or None; ``columns`` of ``(heading, whose)`` and
        ``rows`` of ``name``, ``title`` and ``cells``; None where nothing is known of any layer.
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
    columns = _cost_columns(costs, names) if costs else {}
    for key, heading in _NOISE.items():
        columns |= _noise_columns(noise, names, key, heading)
    return {
        "measured": measured,
        "columns": list(columns),
        "rows": [
            {"name": short, "title": name, "cells": [cells[i] for cells in columns.values()]}
            for i, (name, short) in enumerate(short_names(names).items())
        ],
    }


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


def _cost_columns(costs: dict[str, LayerCost], names: list[str]) -> Columns:
    """Differences in accuracy, with bars of one scale that show which way each goes."""
    largest = max(abs(getattr(entry, key)) for entry in costs.values() for key in _COSTS)

    def cell(value: float | None) -> dict[str, Any]:
        bar = round(100 * abs(value) / largest, 1) if value and largest else 0.0
        kind = "worse" if value and value < 0 else "better"
        return {"text": words.signed(value), "bar": bar, "kind": kind}

    return {
        (heading, ""): [cell(getattr(costs.get(name), key, None)) for name in names]
        for key, heading in _COSTS.items()
    }


def _noise_columns(
    noise: dict[str, dict[str, LayerNoise]], names: list[str], key: str, heading: str
) -> Columns:
    """Ratios in dB; configurations that read alike share a column."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for title, entries in noise.items():
        texts = tuple(_decibels(getattr(entries.get(name), key, None)) for name in names)
        alike.setdefault(texts, []).append(title)
    return {
        (heading, "; ".join(titles) if len(alike) > 1 else "all configurations"): [
            {"text": text, "bar": None} for text in texts
        ]
        for texts, titles in alike.items()
    }


def _decibels(value: float | None) -> str:
    return words.NOTHING if value is None else f"{value:.1f}"
