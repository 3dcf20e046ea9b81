"""The comparison table: its rows, its columns in words, and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from resnet8_eval.report import words
from resnet8_eval.report.words import NOTHING, Results

CELLS: Final = (
    ("keras", "float32"),
    ("onnxruntime", "float32"),
    ("torch", "float32"),
    ("onnxruntime", "int8"),
    ("onnxruntime", "uint8"),
    ("torch", "int8"),
    ("torch", "uint8"),
)
"""Framework and dtype of the configurations that a whole comparison has."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes
    ----------
    framework, dtype
        Its cell of the table.
    configuration
        The configuration as in ``results.json``, or None if this run has no number for the cell.
    is_baseline
        Whether every delta is from this row.
    """

    framework: str
    dtype: str
    configuration: Mapping[str, Any] | None
    is_baseline: bool = False

    @property
    def title(self) -> str:
        """Such as ``ONNX Runtime int8``."""
        return words.configuration({"framework": self.framework, "dtype": self.dtype})


@dataclass(frozen=True)
class Column:
    """One column of the comparison.

    Attributes
    ----------
    key, header
        Its name in code, and its heading with the unit.
    text
        What a configuration shows in it.
    order
        What it is sorted by; None where the text itself is.
    """

    key: str
    header: str
    text: Callable[[Mapping[str, Any]], str]
    order: Callable[[Mapping[str, Any]], float] | None = None

    @property
    def is_number(self) -> bool:
        """Whether it is aligned to the right."""
        return self.order is not None


COLUMNS: Final = (
    Column(
        "framework",
        "Framework",
        lambda c: words.FRAMEWORKS.get(c["framework"], words.plain(c["framework"])),
    ),
    Column("dtype", "Dtype", lambda c: words.plain(c["dtype"])),
    Column(
        "types",
        "Weights/activations",
        lambda c: words.plain(f"{c['weights_dtype']}/{c['activations_dtype']}"),
    ),
    Column(
        "execution",
        "Execution",
        lambda c: words.plain(c["execution"] if c["recipe"] else c["dtype"]),
    ),
    Column(
        "accuracy",
        "Accuracy, %",
        lambda c: words.percent(c["accuracy_percent"]),
        lambda c: c["accuracy_percent"],
    ),
    Column(
        "correct",
        "Correct/total",
        lambda c: f"{c['correct']}/{c['total']}",
        lambda c: c["correct"],
    ),
    Column(
        "interval",
        "95 % interval, %",
        lambda c: words.accuracy_interval(c["accuracy_ci95_percent"]),
        lambda c: c["accuracy_ci95_percent"][0],
    ),
    Column("delta", "Delta, pp", lambda c: words.signed(c["delta_pp"]), lambda c: c["delta_pp"]),
    Column(
        "delta_interval",
        "Delta 95 % interval, pp",
        lambda c: words.delta_interval(c["delta_ci95_pp"]),
        lambda c: c["delta_ci95_pp"][0],
    ),
    Column(
        "mcnemar",
        "McNemar p",
        lambda c: words.p_value(c["mcnemar_p"]),
        lambda c: c["mcnemar_p"],
    ),
    Column(
        "agreement",
        "Agreement, %",
        lambda c: words.percent(c["agreement_percent"]),
        lambda c: c["agreement_percent"],
    ),
    Column(
        "size", "Size, kB", lambda c: words.kilobytes(c["size_bytes"]), lambda c: c["size_bytes"]
    ),
    Column("word", "Verdict", lambda c: words.plain(c["word"])),
    Column("flag", "Flag", lambda c: "⚑ FLAGGED" if c["flagged"] else "none"),
)
BY_KEY: Final = {column.key: column for column in COLUMNS}
_WORDS: Final = ("degraded", "inconclusive", "equivalent", "improved")
_OF_A_DIFFERENCE: Final = {"delta", "delta_interval", "mcnemar", "agreement", "flag"}


def rows(results: Results) -> list[Row]:
    """Every line of the comparison: the baseline first, and cells without a number too.

    Parameters
    ----------
    results
        What ``results.json`` holds.
    """
    found = list(results["configurations"])
    baseline = (results["baseline"] or {}).get("configuration")
    present = {(c["framework"], c["dtype"]) for c in found}
    order = {cell: i for i, cell in enumerate(CELLS)}
    lines = [Row(c["framework"], c["dtype"], c, c["name"] == baseline) for c in found]
    lines += [Row(*cell, None) for cell in CELLS if cell not in present]
    return sorted(
        lines,
        key=lambda row: (not row.is_baseline, order.get((row.framework, row.dtype), len(order))),
    )


def cell(row: Row, column: Column) -> str:
    """What a line shows in a column."""
    if row.configuration is None:
        if column.key in {"framework", "dtype"}:
            return column.text({"framework": row.framework, "dtype": row.dtype})
        return "not evaluated" if column.key == "word" else NOTHING
    if row.is_baseline:
        if column.key == "word":
            return "baseline"
        if column.key in _OF_A_DIFFERENCE:
            return NOTHING
    return column.text(row.configuration)


def word_order(row: Row) -> int:
    """Where a line stands when verdicts are sorted, from nothing known to better."""
    return _WORDS.index(row.configuration["word"]) if row.configuration else -1


def size_note(results: Results) -> str | None:
    """What a stored file holds besides its weights, where that was measured.

    Parameters
    ----------
    results
        What ``results.json`` holds.
    """
    for row in rows(results):
        found = row.configuration or {}
        if found.get("optimizer_bytes"):
            return (
                f"The file of {row.title} holds {words.kilobytes(found['weights_bytes'])} kB of "
                f"weights; {words.kilobytes(found['optimizer_bytes'])} kB are optimizer state that "
                "training left. Hold the other sizes against its weights."
            )
    return None


def to_csv(results: Results) -> str:
    """Tidy rows, one for each configuration, numbers in full.

    Parameters
    ----------
    results
        What ``results.json`` holds.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows(results):
        found = row.configuration
        if found is not None:
            writer.writerow(
                {
                    **{key: _safe(found[key]) for key in _CSV_COLUMNS if key in found},
                    **{
                        f"{quantity}_{end}_{unit}": found[f"{quantity}_{unit}"][i]
                        for quantity, unit in (("accuracy_ci95", "percent"), ("delta_ci95", "pp"))
                        for i, end in enumerate(("low", "high"))
                    },
                    "assets": results["assets"]["kind"],
                }
            )
    return out.getvalue()


_CSV_COLUMNS: Final = (
    "name",
    "framework",
    "dtype",
    "weights_dtype",
    "activations_dtype",
    "execution",
    "calibration_seed",
    "correct",
    "total",
    "accuracy_percent",
    "accuracy_ci95_low_percent",
    "accuracy_ci95_high_percent",
    "delta_pp",
    "delta_ci95_low_pp",
    "delta_ci95_high_pp",
    "mcnemar_p",
    "lost",
    "gained",
    "agreement_percent",
    "size_bytes",
    "quantized_ops",
    "float_ops",
    "word",
    "flagged",
    "flag_reason",
    "model_sha256",
    "assets",
)


def _safe(value: object) -> object:
    """Text that a spreadsheet does not take for a formula."""
    if isinstance(value, str):
        text = words.plain(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return value
