"""How fast each row is: latency of one image, and throughput in batches."""

from __future__ import annotations

from typing import Final

from resnet8_eval.record import Results, Spread
from resnet8_eval.report import table, words

HEADERS: Final = (
    "Configuration",
    "Threads",
    "One image: p50, ms",
    "p90, ms",
    "p99, ms",
    "Times float32",
    "In batches: images/s",
    "Batch",
    "Times float32",
)


def lines(results: Results) -> list[list[str]]:
    """Two lines for each row that was timed, for one thread and for all; columns as `HEADERS`.

    Each figure is the median over the rounds, with the range of the rounds where there is room.
    """
    told = []
    for row in table.rows(results):
        found = row.configuration
        if found is None:
            continue
        for one, all_at_once in zip(found.latency, found.throughput, strict=True):
            told.append(
                [
                    words.plain(row.title),
                    str(one.threads),
                    *(_median(value, 3) for value in (one.p50_ms, one.p90_ms, one.p99_ms)),
                    _range(one.speedup),
                    _median(all_at_once.images_per_second, 0),
                    str(all_at_once.batch),
                    _range(all_at_once.speedup),
                ]
            )
    return told


def conditions(results: Results) -> list[str]:
    """Sentences on how the figures came about, and on what makes them doubtful."""
    found = results.timing
    if found is None:
        return []
    tool = f"MLCommons LoadGen {found.loadgen} on {words.plain(found.processor)}"
    return [
        f"Measured with {tool}: medians of {found.rounds} rounds in which the rows take turns, and "
        "the smallest and largest ratio to float32 of the same framework in the same round. A row "
        "that is computed in reference arithmetic has the accuracy of 8 bits and not their speed. "
        f"Other processes took {found.others_percent:.1f} % of the machine meanwhile.",
        *map(words.plain, found.told),
    ]


def _median(found: Spread | None, digits: int) -> str:
    return "–" if found is None else f"{found.median:.{digits}f}"


def _range(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"
