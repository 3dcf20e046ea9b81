"""Tables below the comparison: what tuning changed, calibration seeds, latency and throughput."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.row_record import Spread

TEXTS: Final = 2
"""How many columns of each of these tables, from the first, hold more than a number."""


class Table(NamedTuple):
    """Headings, and the cells of each line; no line where there is nothing to show."""

    headers: list[str]
    lines: list[list[str]]


def tuning(results: Results) -> Table:
    """A line for each cell that has a stock and a tuned row."""
    rows = {entry.name: entry for entry in results.configurations}
    percent = words.percent
    return of_pairs(
        (
            ("Cell", words.plain(f"{words.framework(tuned)} {tuned.dtype}")),
            (words.WEIGHTS_RANGE, _change(words.weights_range(stock), words.weights_range(tuned))),
            (
                "Accuracy, %: stock → tuned",
                _change(percent(stock.accuracy_percent), percent(tuned.accuracy_percent)),
            ),
            ("Change, pp", words.signed(entry.delta_pp)),
            ("95 % interval, pp", words.delta_interval(entry.delta_ci95_pp)),
            ("Lost/gained", f"{entry.lost}/{entry.gained}"),
            (words.UNCORRECTED, words.p_value(entry.mcnemar_p)),
            (
                "Agreement with the baseline, %: stock → tuned",
                _change(percent(stock.agreement_percent), percent(tuned.agreement_percent)),
            ),
        )
        for entry in results.tuning
        for stock, tuned in [(rows[entry.stock], rows[entry.tuned])]
    )


def seeds(results: Results) -> Table:
    """A line for each row that was made with every seed."""
    ranges = {row.name: words.weights_range(row) for row in results.configurations}
    return of_pairs(
        (
            ("Configuration", words.title_of(results, row.name)),
            (words.WEIGHTS_RANGE, ranges.get(row.name, words.NOTHING)),
            ("Correct", ", ".join(map(str, row.correct))),
            ("Accuracy, %: mean", words.percent(row.accuracy_percent.mean, 3)),
            ("Standard deviation, pp", f"{row.accuracy_percent.deviation:.3f}"),
            ("Accuracy, %: worst", words.percent(row.accuracy_percent.worst)),
            ("Delta, pp: mean", words.signed(row.delta_pp.mean, 3)),
            ("Agreement, %: mean", words.percent(row.agreement_percent.mean)),
            ("Agreement, %: worst", words.percent(row.agreement_percent.worst)),
        )
        for row in (results.seeds.rows if results.seeds else ())
    )


def seeds_terms(results: Results) -> str:
    """What the lines of the seeds say; empty without them."""
    found = results.seeds
    if found is None:
        return ""
    numbers = words.listed([str(seed) for seed in found.seeds])
    return (
        f"Each quantized row made {len(found.seeds)} times, with calibration seeds {numbers}, and "
        f"scored on the same {found.total} test images. The standard deviation (n − 1) is what the "
        "choice of calibration images moves; the intervals of the comparison do not hold it."
    )


def speed(results: Results) -> Table:
    """Two lines for each row that was timed, for one thread and for all.

    Each figure is the median over the rounds, with the range of the rounds where there is room.
    """
    return of_pairs(
        (
            ("Configuration", row.title),
            (words.WEIGHTS_RANGE, words.weights_range(found)),
            ("Threads", str(one.threads)),
            ("One image: p50, ms", words.median(one.p50_ms, 3)),
            ("p90, ms", words.median(one.p90_ms, 3)),
            ("p99, ms", words.median(one.p99_ms, 3)),
            ("One image: times float32", _range(one.speedup)),
            ("In batches: images/s", words.median(batches.images_per_second, 0)),
            ("Batch", str(batches.batch)),
            ("In batches: times float32", _range(batches.speedup)),
        )
        for row, found in table.measured(results)
        for one, batches in zip(found.latency, found.throughput, strict=True)
    )


def of_pairs(rows: Iterable[Sequence[tuple[str, str]]]) -> Table:
    """Of the same headings in every line, each with what the line shows below it."""
    found = list(rows)
    headers = [heading for heading, _ in found[0]] if found else []
    return Table(headers, [[text for _, text in line] for line in found])


def _change(before: str, after: str) -> str:
    return f"{before} → {after}"


def _range(found: Spread | None) -> str:
    if found is None:
        return words.NOTHING
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"
