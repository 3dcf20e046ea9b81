"""The report as Markdown: the comparison by itself, and a summary for a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from resnet8_eval.record import Results
from resnet8_eval.report import (
    diagnosis,
    execution,
    layers,
    outcome,
    speed,
    table,
    tables,
    words,
)
from resnet8_eval.requirements import MILESTONES

_MARKS: Final = {"met": "✅", "not met": "❌", "not evaluated": "⚪"}


def comparison(results: Results) -> str:
    """The comparison table, below all that a reader needs to know about the run."""
    return _joined(
        "# Comparison",
        *_warnings(results),
        _baseline(results),
        _comparison(results),
        *_notes(results),
    )


def summary(results: Results) -> str:
    """The report, shortened: verdicts, what is not met, the comparison."""
    return _joined(
        "# ResNet8: conversion and quantization",
        *_warnings(results),
        "\n".join(
            f"- {escape(name)}: **{escape(value)}** ({escape(of)})"
            for name, value, of in outcome.figures(results)
        ),
        _verdicts(results),
        escape(outcome.machine(results)),
        "## Comparison",
        _baseline(results),
        _comparison(results),
        *_notes(results),
        *_layers(results),
        "## Requirements not met",
        _not_met(results),
    )


def escape(text: object) -> str:
    """Text from outside, so that Markdown and HTML take none of it for markup."""
    plain = words.plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*{}\[\]|~]|\b_|_\b(?!\w))", r"\\\1", plain)
    # GitHub makes links and mentions of these by itself.
    return re.sub(r"(?i)(@|(?<=http)(?=s?:)|(?<=www)(?=\.))", r"\1&#8203;", plain)


def grid(headers: Sequence[str], lines: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table whose cells are escaped already.

    Parameters
    ----------
    headers
        One for each column.
    lines
        The cells of each row.
    right
        Columns that are aligned to the right.
    """
    numbers = set(right)
    rules = ["---:" if i in numbers else "---" for i in range(len(headers))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rules, *lines))


def _joined(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"


def _warnings(results: Results) -> list[str]:
    blocks = []
    if words.is_standin(results):
        blocks.append(f"> [!CAUTION]\n> **{words.STANDIN_TITLE}**\n>\n> {words.STANDIN_TEXT}")
    if not results.complete:
        blocks.append(f"> [!WARNING]\n> {words.incomplete(results)}")
    if said := words.user_model(results):
        blocks.append(f"> [!NOTE]\n> {escape(said)} Model: {escape(results.assets.model_name)}.")
    return blocks


def _baseline(results: Results) -> str:
    return f"Baseline: {escape(words.baseline(results))}. Deltas are in percentage points from it."


def _verdicts(results: Results) -> str:
    lines = []
    for name, found in results.milestones.items():
        title = MILESTONES.get(name)
        said = f"**{escape(words.milestone(name, found))}**{f' ({escape(title)})' if title else ''}"
        lines.append(f"- {_MARKS[found.verdict]} {said}")
        lines += [f"  - **Diagnosis:** {_diagnosis(one)}" for one in diagnosis.of(results, name)]
        lines += [f"  - {escape(line)}" for line in diagnosis.further(results, name)]
    if found_gate := results.gate:
        verdict, *failing = words.gate(results)
        lines.append(f"- {_MARKS['met' if found_gate.met else 'not met']} **{escape(verdict)}**")
        lines += [f"  - {escape(line)}" for line in failing]
    return "\n".join(lines)


def _diagnosis(found: diagnosis.Diagnosis) -> str:
    said = escape(found.text)
    return f"{said} Run: <code>{escape(found.command)}</code>" if found.command else said


def _comparison(results: Results) -> str:
    found = [c for c in table.columns(results) if c.key not in ("title", "interval")]
    # What decides stands where a narrow page shows it.
    first = [table.BY_KEY[key] for key in ("framework", "dtype", "recipe", "word", "flag")]
    columns = first + [column for column in found if column not in first]
    return grid(
        [column.header for column in columns],
        [[escape(table.cell(row, column)) for column in columns] for row in table.rows(results)],
        [i for i, column in enumerate(columns) if column.is_number],
    )


def _notes(results: Results) -> list[str]:
    blocks = [words.STATISTICS] if results.configurations else []
    blocks += _table("What tuning changed, on the same images:", tables.tuning(results))
    blocks += map(escape, [*execution.same_weights(results), *execution.against_integers(results)])
    blocks += _table(escape(tables.seeds_terms(results)), tables.seeds(results))
    blocks += _table("Latency and throughput:", tables.speed(results))
    blocks += map(escape, speed.conditions(results))
    size = table.size_note(results)
    if size:
        blocks.append(escape(size))
    if any(found.recipe for found in results.configurations):
        meanings = [f"*{word}*, {meaning}" for word, meaning in execution.DEFINITIONS.items()]
        blocks.append(f"Execution: {'; '.join(meanings)}.")
    if advice := speed.recommendation(results):
        blocks.append(escape(advice))
    blocks += [
        f"Before you deploy **{escape(note.row.title)}**: {escape(note.short)}"
        for note in execution.before_deploying(results)
    ]
    return blocks


def _table(title: str, found: tables.Table) -> list[str]:
    if not found.lines:
        return []
    cells = [[escape(cell) for cell in line] for line in found.lines]
    return [title, grid(found.headers, cells, range(tables.TEXTS, len(found.headers)))]


def _layers(results: Results) -> list[str]:
    found = layers.layers(results)
    if found is None or found["measured"] is None:
        return []
    headers = [escape(f"{heading} {whose}".strip()) for heading, whose in found["columns"]]
    lines = [
        [escape(layer["name"]), *(escape(cell["text"]) for cell in layer["cells"])]
        for layer in found["rows"]
    ]
    table_ = grid(["Layer", *headers], lines, range(1, len(headers) + 1))
    return ["## Layers", escape(layers.terms(found["measured"])), table_, escape(layers.LEGEND)]


def _not_met(results: Results) -> str:
    found = [entry for entry in results.requirements if entry.status == "not met"]
    if not found:
        return "None."
    return grid(
        ["ID", "Requirement", "Required", "Measured", "Margin", "Why"],
        [
            [
                escape(text)
                for text in (
                    entry.id,
                    entry.title,
                    words.required(entry),
                    words.measured(entry),
                    words.margin(entry),
                    words.shortfall(entry),
                )
            ]
            for entry in found
        ],
        [2, 3, 4],
    )
