"""Rendered fragments, byte for byte.

After a change that is meant: ``python -m tests.unit.test_report_golden``, then read what
``git diff tests/unit/golden`` shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from resnet8_eval.report import html, markdown, table, terminal
from tests.unit import report_samples

GOLDEN: Final = Path(__file__).with_name("golden")
SAMPLES: Final = (
    "all_met",
    "one_failed",
    "flagged",
    "standin",
    "missing",
    "incomplete",
    "user_model",
    "hostile",
    "two_recipes",
)
FILES: Final = (
    *(f"{sample}.verdict.html" for sample in SAMPLES),
    *(f"{sample}.terminal.txt" for sample in SAMPLES),
    *(f"{sample}.summary.md" for sample in SAMPLES),
    "flagged.comparison.html",
    "missing.comparison.html",
    "one_failed.requirements.html",
    "missing.hurts.html",
    "all_met.made.html",
    "incomplete.made.html",
    "flagged.comparison.md",
    "two_recipes.comparison.html",
    "two_recipes.comparison.csv",
    "two_recipes.hurts.html",
    "flagged.comparison.csv",
)


def rendered(file: str) -> str:
    sample, kind, suffix = file.split(".")
    results = report_samples.record(getattr(report_samples, sample)())
    if suffix == "html":
        return html.section(kind, results) + "\n"
    if suffix == "txt":
        return "\n".join(terminal.render(results, 110)) + "\n"
    if suffix == "csv":
        return table.to_csv(results)
    return markdown.summary(results) if kind == "summary" else markdown.comparison(results)


@pytest.mark.parametrize("file", FILES)
def test_rendered_fragment_is_the_golden_one(file: str) -> None:
    assert rendered(file) == (GOLDEN / file).read_text(encoding="utf-8"), (
        f"golden/{file} differs; if that is meant: python -m tests.unit.test_report_golden"
    )


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(FILES)


def regenerate() -> None:
    """Write every golden file anew."""
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    for file in FILES:
        (GOLDEN / file).write_text(rendered(file), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    regenerate()
