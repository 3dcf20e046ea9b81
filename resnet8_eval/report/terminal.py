"""The terminal's closing lines: the comparison table and the verdicts."""

from __future__ import annotations

import textwrap
from typing import Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report import diagnosis, outcome, speed, table, tables, words

_COLUMNS: Final = (
    *("title", "types", "bits", "needs", "execution", "accuracy", "correct"),
    *("delta", "agreement", "latency", "speedup", "size", "word", "flag"),
)
_DISPENSABLE: Final = (
    *("needs", "bits", "types", "size"),
    *("execution", "latency", "speedup", "correct", "agreement", "word"),
)
"""Columns that a narrow terminal goes without, the first of them first."""
_SHORT: Final = {"types": "Weights/act.", "bits": "Bits"}


def render(results: Results, width: int) -> list[str]:
    """Plain lines for the end of a run.

    Parameters
    ----------
    results
        What the run found.
    width
        Columns of the terminal.

    Returns
    -------
    list of str
        A banner if the run is on the stand-in, the comparison, what makes its figures of speed
        doubtful, one line for each milestone.
    """

    def wrapped(text: str, first: str = "", then: str = "", **how: Any) -> list[str]:
        return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=then, **how)

    lines = []
    if words.is_standin(results):
        rule = "!" * width
        lines += [rule, words.STANDIN_TITLE.center(width).rstrip()]
        lines += [*wrapped(words.standin(results)), rule]
    lines += [*wrapped(words.incomplete(results)), *wrapped(words.user_model(results))]
    lines += ["", f"baseline {words.baseline(results)}", "", *_table(results, width), ""]
    for cell, weights, accuracy, change, interval, *_, p, agreement in tables.tuning(results).lines:
        text = f"{cell}, stock → tuned: {accuracy} %, {change} pp ({interval}), p {p}"
        lines += wrapped(f"{text}; agreement {agreement} %; weights {weights}", then="  ")
    lines += [""] * bool(results.tuning)
    for doubt in results.timing.told if results.timing else ():
        lines += wrapped(f"Speed: {words.titled(doubt)}", then="  ")
    lines += wrapped(speed.recommendation(results) or "", then="  ")
    lines += wrapped(outcome.machine(results))
    for figure in outcome.figures(results):
        lines += wrapped(f"{figure.name}: {figure.value} ({figure.of})", then="  ")
    lines.append("")
    for verdict in diagnosis.verdicts(results):
        # One line for each milestone, however long; the gate's would seldom fit.
        is_gate = verdict.name not in results.milestones
        lines += wrapped(verdict.sentence) if is_gate else [verdict.sentence]
        for found in verdict.diagnoses:  # an option stays whole
            lines += wrapped(f"Diagnosis: {found}", "  ", "    ", break_on_hyphens=False)
        for shortfall in verdict.lines:
            lines += wrapped(shortfall, "  ", "    ")
    return lines


def _table(results: Results, width: int) -> list[str]:
    columns = [column for column in table.columns(results) if column.key in _COLUMNS]
    rows = table.rows(results)
    for key in ("", *_DISPENSABLE):
        columns = [column for column in columns if column.key != key]
        grid = [
            [_SHORT.get(column.key, column.header) for column in columns],
            *([table.cell(row, column) for column in columns] for row in rows),
        ]
        widths = [max(map(len, cells)) for cells in zip(*grid, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= width:
            break
    lines = [
        "  ".join(
            text.rjust(size) if column.is_number else text.ljust(size)
            for text, size, column in zip(cells, widths, columns, strict=True)
        ).rstrip()
        for cells in grid
    ]
    lines.insert(1, "─" * max(map(len, lines)))
    return lines
