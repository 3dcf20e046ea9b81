"""What tuning changed, cell by cell, and which rows are the same model in another form."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import Final

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.row_record import ConfigurationResult

HEADERS: Final = (
    "Cell",
    words.WEIGHTS_RANGE,
    "Accuracy, %: stock → tuned",
    "Change, pp",
    "95 % interval, pp",
    "Lost/gained",
    words.UNCORRECTED,
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
                _change(words.weights_range(stock), words.weights_range(tuned)),
                _change(
                    words.percent(stock.accuracy_percent), words.percent(tuned.accuracy_percent)
                ),
                words.signed(entry.delta_pp),
                words.delta_interval(entry.delta_ci95_pp),
                f"{entry.lost}/{entry.gained}",
                words.p_value(entry.mcnemar_p),
                _change(
                    words.percent(stock.agreement_percent), words.percent(tuned.agreement_percent)
                ),
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
    return [_same(results, group, titles) for group in groups.values() if len(group) > 1]


def _same(results: Results, group: list[ConfigurationResult], titles: dict[str, str]) -> str:
    by_framework: dict[str, list[str]] = defaultdict(list)
    for entry in group:
        by_framework[entry.framework].append(titles[entry.name])
    said = [f"{words.listed([titles[entry.name] for entry in group])} hold the same weights."]
    said += [
        f"{words.listed(alike)} are one measurement, not {len(alike)}."
        for alike in by_framework.values()
        if len(alike) > 1
    ]
    if len(by_framework) > 1:
        said.append("The frameworks differ in how they round biases and sums.")
    shares = [
        found.percent[found.rows.index(one.name)][found.rows.index(other.name)]
        for one, other in combinations(group, 2)
        if (found := results.agreement) and {one.name, other.name} <= set(found.rows)
    ]
    if shares:
        least, most = words.percent(min(shares)), words.percent(max(shares))
        both = least if least == most else f"{least} to {most}"
        said.append(f"Any two of them agree on {both} % of the images.")
    return " ".join(said)


def _change(before: str, after: str) -> str:
    return f"{before} → {after}"
