"""The quantized rows over several calibration seeds."""

from __future__ import annotations

from typing import Final

from resnet8_eval.record import Results
from resnet8_eval.report import words

HEADERS: Final = (
    "Configuration",
    words.WEIGHTS_RANGE,
    "Correct",
    "Accuracy, %: mean",
    "Standard deviation, pp",
    "Worst, %",
    "Delta, pp: mean",
    "Agreement, %: mean",
    "Worst, %",
)


def lines(results: Results) -> list[list[str]]:
    """One line for each row that was made with every seed; columns as :data:`HEADERS`."""
    if results.seeds is None:
        return []
    titles = {row.name: words.title(row) for row in results.expected}
    ranges = {row.name: words.weights_range(row) for row in results.configurations}
    return [
        [
            titles.get(row.name, words.plain(row.name)),
            ranges.get(row.name, words.NOTHING),
            ", ".join(map(str, row.correct)),
            words.percent(row.accuracy_percent.mean),
            f"{row.accuracy_percent.deviation:.3f}",
            words.percent(row.accuracy_percent.worst),
            words.signed(row.delta_pp.mean),
            words.percent(row.agreement_percent.mean),
            words.percent(row.agreement_percent.worst),
        ]
        for row in results.seeds.rows
    ]


def terms(results: Results) -> str:
    """What the lines say; empty without them."""
    found = results.seeds
    if found is None:
        return ""
    numbers = words.listed([str(seed) for seed in found.seeds])
    return (
        f"Each quantized row made {len(found.seeds)} times, with calibration seeds {numbers}, and "
        f"scored on the same {found.total} test images. The standard deviation (n − 1) is what the "
        "choice of calibration images moves; the intervals of the comparison do not hold it."
    )
