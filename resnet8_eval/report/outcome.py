"""What came of a run, in four figures, and what makes them differ on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.row_record import ConfigurationResult


class Figure(NamedTuple):
    """One figure: what it is, its value, and which row it is of."""

    name: str
    value: str
    of: str


def headline(results: Results) -> str:
    """What came of the run, in one line."""
    if words.is_standin(results):
        return "No verdict: this run used the stand-in"
    if not any(entry.status != "not evaluated" for entry in results.requirements):
        return "Nothing was evaluated"
    found = {figure.name: figure.value for figure in figures(results)}
    said = f"{found['Requirements met']} requirements met"
    said += "; gate not met" if results.gate and not results.gate.met else ""
    return f"{said}; worst change {found['Worst change']}" if "Worst change" in found else said


def figures(results: Results) -> list[Figure]:
    """Worst change, bytes and speed against float32, requirements met; those that were measured."""
    rows = [row for row in results.configurations if row.recipe]
    floats = {row.framework: row for row in results.configurations if not row.recipe}
    told = _worst(results, rows)
    sizes = [
        (table.weights_bytes(floats[row.framework]) / table.weights_bytes(row), row)
        for row in rows
        if row.framework in floats
    ]
    told += _range("Weights", "smaller", sizes)
    speeds = [
        (entry.speedup.median, row)
        for row in rows
        if row.execution == "kernel"
        for entry in row.latency[:1]
        if entry.speedup
    ]
    told += _range("Speed", "as fast", speeds, " of the rows in integer kernels")
    decided = [entry.outcome_on_standin or entry.status for entry in words.due(results)]
    # On the stand-in nothing is ever met.
    standin = words.is_standin(results)
    name = "Requirement tests passed" if standin else "Requirements met"
    every = len(decided) == len(results.requirements)
    said = "of all milestones" if every else "of those asked for"
    if absent := decided.count("not evaluated"):
        said = f"{absent} not evaluated"
    where = " on the stand-in" if standin else ""
    return [*told, Figure(name, f"{decided.count('met')} of {len(decided)}", said + where)]


def _worst(results: Results, rows: Sequence[ConfigurationResult]) -> list[Figure]:
    """The lowest delta, with any of the calibration seeds."""
    if not rows:
        return []
    lowest = words.worst_deltas(results)
    change, row = min(
        ((lowest.get(row.name, row.delta_pp), row) for row in rows), key=itemgetter(0)
    )
    seed = ", worst calibration seed" if row.name in lowest else ""
    return [Figure("Worst change", f"{words.signed(change)} pp", f"{words.title(row)}{seed}")]


def _range(
    name: str, what: str, ratios: Sequence[tuple[float, ConfigurationResult]], of: str = ""
) -> list[Figure]:
    """The best ratio to float32 of the same framework, with its row, and the lowest."""
    if not ratios:
        return []
    low, high = (pick(ratios, key=lambda pair: pair[0]) for pick in (min, max))
    best = f"{words.title(high[1])}; the least{of}, {words.title(low[1])}: {low[0]:.2f}"
    return [Figure(f"{name} against float32", f"{high[0]:.2f} times {what}", best)]


def machine(results: Results) -> str:
    """On what the counts depend: processor and range of the weights."""
    rows = [row for row in results.configurations if row.weights_bits is not None]
    if not rows:
        return ""
    seven = [words.title(row) for row in rows if row.weights_bits == 7]
    bound = [f"{words.title(row)} ({words.runs_on(row)})" for row in rows if row.needs]
    processor = words.plain(results.environment.cpu.get("model") or "an unknown processor")
    said = f"Measured on {processor}."
    if seven:
        said += f" Weights have 7 bits (±63) in {words.listed(seven)}, 8 bits in the other rows."
    if bound:
        said += f" Another processor may give other counts of {words.listed(bound)}."
    else:
        said += " No row needs a certain x86 processor for its counts."
    if any(row.recipe and row.recipe.name == "stock" for row in rows):
        said += (
            " Made on another processor, stock rows may differ by a few images: the frameworks"
            " measure ranges in float32, whose sums it takes in another order."
        )
    kernels = [
        words.title(row) for row in rows if (row.framework, row.execution) == ("torch", "kernel")
    ]
    if kernels:  # oneDNN with AVX-512, without it, and FBGEMM: the same integers, other last steps
        said += (
            f" On another processor {words.listed(kernels)} may class a few images otherwise, for"
            " PyTorch's kernels round differently there."
        )
    return said
