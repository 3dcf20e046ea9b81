"""What tuning changed, cell by cell, and which rows are the same model in another form."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import Final

from resnet8_eval.record import ConfigurationResult, Results
from resnet8_eval.report import table, words

HEADERS: Final = (
    "Cell",
    "Accuracy, %: stock → tuned",
    "Change, pp",
    "95 % interval, pp",
    "Lost/gained",
    "McNemar p",
    "Agreement with the baseline, %: stock → tuned",
)


def lines(results: Results) -> list[list[str]]:
    """One line for each cell that has a stock and a tuned row; columns as :data:`HEADERS`."""
    found = {entry.name: entry for entry in results.configurations}
    told = []
    for entry in results.tuning:
        stock, tuned = found[entry.stock], found[entry.tuned]
        told.append(
            [
                words.plain(f"{words.framework(tuned)} {tuned.dtype}"),
                _change(stock.accuracy_percent, tuned.accuracy_percent),
                words.signed(entry.delta_pp),
                words.delta_interval(entry.delta_ci95_pp),
                f"{entry.lost}/{entry.gained}",
                words.p_value(entry.mcnemar_p),
                _change(stock.agreement_percent, tuned.agreement_percent),
            ]
        )
    return told


def same_weights(results: Results) -> list[str]:
    """Sentences on rows that hold the same weights, so that nobody takes them for two findings."""
    titles = {row.due.name: row.title for row in table.rows(results)}
    groups: dict[str, list[ConfigurationResult]] = defaultdict(list)
    for entry in results.configurations:
        if entry.integers_sha256:
            groups[entry.integers_sha256].append(entry)
    sentences = []
    for group in groups.values():
        for one, other in combinations(group, 2):
            both = f"{titles[one.name]} and {titles[other.name]} hold the same weights"
            agreement = _agreement(results, one.name, other.name)
            if one.framework == other.framework:
                sentences.append(f"{both}: they are one measurement, not two.{agreement}")
            else:
                why = "they differ in how biases and sums are rounded"
                sentences.append(f"{both}; {why}.{agreement}")
    return sentences


def _agreement(results: Results, one: str, other: str) -> str:
    found = results.agreement
    if found is None or not {one, other} <= set(found.rows):
        return ""
    share = found.percent[found.rows.index(one)][found.rows.index(other)]
    return f" They agree on {words.percent(share)} % of the images."


def _change(before: float, after: float) -> str:
    return f"{words.percent(before)} → {words.percent(after)}"
