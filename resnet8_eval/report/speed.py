"""What the figures of speed rest on, and which row they speak for."""

from __future__ import annotations

from resnet8_eval import checks
from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.row_record import ConfigurationResult


def conditions(results: Results) -> list[str]:
    """Sentences on how the figures came about, and on what makes them doubtful."""
    found = results.timing
    if found is None:
        return []
    stage = results.stages.get("latency")
    earlier = "An earlier run measured this, under its own conditions; --fresh-timing does so anew."
    tool = f"MLCommons LoadGen {found.loadgen} on {words.plain(found.processor)}"
    return [
        f"Measured with {tool}: medians of {found.rounds} rounds in which the rows take turns, and "
        "the smallest and largest ratio to float32 of the same framework in the same round. A row "
        "that is computed in reference arithmetic has the accuracy of 8 bits and not their speed. "
        f"Other processes took {found.others_percent:.1f} % of the machine meanwhile.",
        *([earlier] if stage and stage.cache == "hit" else ()),
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


def recommendation(results: Results) -> str | None:
    """Which row to deploy, by what was measured; None where no speed was.

    Of the rows that are no worse than the baseline, run in integer kernels, do not fail the gate
    and have no failed check of their own or of what they are made of, the one that answers one
    image soonest. Rows whose ranges overlap with its are as fast; among them one that a plain
    session runs as it was measured comes first, then the one that agrees most with the baseline.
    """
    timed = [
        (row, found, found.latency[0].p50_ms)
        for row, found in table.measured(results)
        if found.recipe and found.execution == "kernel" and found.latency
    ]
    broken = [check for entry in results.requirements for check in checks.failed(entry.evidence)]
    doubted = {words.check_parts(check)[1] for check in broken}
    if doubted - {row.name for row in results.configurations}:  # what is of no row is of every row
        doubted = {row.name for row in results.configurations}
    doubted |= {*results.gate.failing} if results.gate else set()
    safe = [
        (row, found, p50)
        for row, found, p50 in timed
        if p50
        and found.word.startswith(("equivalent", "improved"))
        and found.name not in doubted
        and not (found.exact_integers and found.exact_integers.disagreements)
    ]
    if not timed:
        return None
    if not safe:
        return (
            "Speed was measured, but no row in integer kernels is equivalent to the baseline and "
            "holds every check and demand of this run."
        )
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
