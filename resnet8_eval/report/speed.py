"""How fast each row is: latency of one image, and throughput in batches."""

from __future__ import annotations

from typing import Final

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.row_record import ConfigurationResult, Spread

HEADERS: Final = (
    "Configuration",
    words.WEIGHTS_RANGE,
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
                    words.weights_range(found),
                    str(one.threads),
                    *(words.median(value, 3) for value in (one.p50_ms, one.p90_ms, one.p99_ms)),
                    _range(one.speedup),
                    words.median(all_at_once.images_per_second, 0),
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
        *_sessions(results),
        *map(words.titled, found.told),
    ]


def _sessions(results: Results) -> list[str]:
    """What a default session makes of the rows that the suite opens in its own."""
    rows = {found.name: (row, found) for row, found in table.measured(results)}
    told = []
    for change in results.tuning:
        (stock, plain), (tuned, own) = rows[change.stock], rows[change.tuned]
        if plain.latency and own.latency and not _is_plain(own):
            ratios = [words.median(found.latency[0].speedup, 2) for found in (plain, own)]
            told.append(
                f"{stock.title}, runs in a default session, at {ratios[0]} of float32's speed for "
                f"one image with one thread; {tuned.title}, in the suite's own session, at "
                f"{ratios[1]}. Expect the former of any such file that is opened without it."
            )
    return told


def _range(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def recommendation(results: Results) -> str | None:
    """Which row to deploy, by what was measured; None where no speed was.

    Of the rows that are no worse than the baseline and run in integer kernels, the one that answers
    one image soonest. Rows whose ranges overlap with its are as fast; among them one that a plain
    session runs as it was measured comes first, then the one that agrees most with the baseline.
    """
    timed = [
        (row, found, found.latency[0].p50_ms)
        for row, found in table.measured(results)
        if found.recipe and found.execution == "kernel" and found.latency
    ]
    safe = [
        (row, found, p50)
        for row, found, p50 in timed
        if p50 and found.word.startswith(("equivalent", "improved"))
    ]
    if not timed:
        return None
    if not safe:
        return "Speed was measured, but no row in integer kernels is equivalent to the baseline."
    soonest = min((p50 for *_, p50 in safe), key=lambda p50: p50.median)
    row, found, _ = max(
        (entry for entry in safe if entry[2].low <= soonest.high),
        key=lambda entry: (_is_plain(entry[1]), entry[1].agreement_percent),
    )
    session = "a plain session" if _is_plain(found) else "the suite's own session"
    return (
        f"By what was measured on this machine, deploy {row.title}: {found.word}, "
        f"{words.percent(found.agreement_percent)} % of the images classed as by the baseline, "
        f"{words.median(found.latency[0].p50_ms, 3)} ms for one image, "
        f"{words.median(found.latency[0].speedup, 2)} times as fast as float32, in {session}."
    )


def _is_plain(found: ConfigurationResult) -> bool:
    return not (found.recipe and found.recipe.runs_as)
