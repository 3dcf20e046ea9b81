"""Why a float32 model gets few images right: what its answers and its weights show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resnet8_eval.record import Baseline, Results
from resnet8_eval.report import words

_MUCH: Final = 10.0
"""Percentage points that another order of the classes must gain to be named."""
_HALF: Final = 50.0
_MOST: Final = 3
"""Channels that are named one by one."""


def reasons(results: Results, baseline: Baseline) -> list[str]:
    """What is wrong with the model, in sentences; where to look if nothing is seen."""
    hint = results.preprocessings and results.preprocessings.hint
    found = [words.plain(hint)] if hint else []
    if baseline.confusion:
        found += [*_order(baseline), *_one_answer(baseline)]
    found += _empty_channels(results)
    if found:
        return found
    if results.assets.user_model:
        return ["Look at the model: its weights, its training, and the preprocessing it expects."]
    return [
        "Model and images are those that were asked for, by their checksums: look at how they are "
        "fed, and at the installed TensorFlow."
    ]


def _order(baseline: Baseline) -> Iterator[str]:
    """Classes that the model numbers otherwise than the labels do."""
    from scipy.optimize import linear_sum_assignment

    true, answers = linear_sum_assignment(baseline.confusion, maximize=True)
    right = sum(baseline.confusion[k][answer] for k, answer in zip(true, answers, strict=True))
    if 100 * (right - baseline.correct) / baseline.total < _MUCH:
        return
    names = [words.plain(name) for name in baseline.classes]
    moved = [
        f"{names[k]} as {names[answer]}"
        for k, answer in zip(true, answers, strict=True)
        if k != answer
    ]
    yield (
        f"Its classes stand in another order than the labels: it answers {words.listed(moved)}. "
        f"In the order of the labels it would get {right} of {baseline.total} right."
    )


def _one_answer(baseline: Baseline) -> Iterator[str]:
    """One class that takes most answers."""
    given = [sum(column) for column in zip(*baseline.confusion, strict=True)]
    share = 100 * max(given) / baseline.total
    if share > _HALF:
        name = words.plain(baseline.classes[given.index(max(given))])
        yield f"It answers {name} for {share:.0f} % of the images, whatever they show."


def _empty_channels(results: Results) -> Iterator[str]:
    """Channels whose weights are all zero."""
    empty = [
        f"channel {k} of {words.plain(layer.name)}"
        for layer in (results.network.layers if results.network else ())
        if layer.weights
        for k, (low, high, *_) in enumerate(layer.weights.channels)
        if low == high == 0
    ]
    if empty:
        more = f" and {len(empty) - _MOST} more" if len(empty) > _MOST else ""
        yield f"The weights of {', '.join(empty[:_MOST])}{more} are all zero."
