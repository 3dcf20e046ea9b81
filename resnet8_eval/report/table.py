"""The comparison table: its rows, its columns in words, and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter as _of
from typing import Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report import words
from resnet8_eval.report.words import NOTHING
from resnet8_eval.row_record import ConfigurationResult, ExpectedRow, Spread


@dataclass(frozen=True)
class Row:
    """One line of the comparison: what it is of, and its numbers if this run has any."""

    due: ExpectedRow
    configuration: ConfigurationResult | None
    is_baseline: bool

    @property
    def title(self) -> str:
        """Such as ``ONNX Runtime int8, tuned``."""
        return words.title(self.due)


@dataclass(frozen=True)
class Column:
    """One column of the comparison: what a configuration has in it, and how that is shown.

    Numbers have a form of their own, and are sorted as they are.
    """

    key: str
    header: str
    value: Callable[[Any], Any]
    form: Callable[[Any], str] = words.plain

    @property
    def is_number(self) -> bool:
        """Whether it is aligned to the right."""
        return self.form is not words.plain

    def text(self, found: ExpectedRow | ConfigurationResult) -> str:
        """What it shows of a row."""
        return self.form(self.value(found))

    def order(self, found: ConfigurationResult) -> Any:
        """What it is sorted by: the number, or its median over rounds; None sorts last."""
        number = self.value(found)
        return number.median if isinstance(number, Spread) else number


def weights_bytes(found: ConfigurationResult) -> int:
    """Bytes of its weights; of its file where a record of an earlier version did not count them."""
    return found.weights_bytes or found.size_bytes


def _latency(found: ConfigurationResult, name: str) -> Spread | None:
    """Of one image at a time, with the fewest threads."""
    return getattr(found.latency[0], name) if found.latency else None


def _throughput(found: ConfigurationResult) -> Spread | None:
    return found.throughput[0].images_per_second if found.throughput else None


_NAMES: Final = frozenset({"title", "framework", "dtype", "recipe"})
"""Keys of the columns that a row without a number has, too."""
COLUMNS: Final = (
    Column("title", "Configuration", words.title),
    Column("framework", "Framework", words.framework),
    Column("dtype", "Dtype", _of("dtype")),
    Column("recipe", "Recipe", words.recipe),
    Column("types", "Weights/activations", lambda c: f"{c.weights_dtype}/{c.activations_dtype}"),
    Column("bits", "Weights, bits", _of("weights_bits"), lambda bits: str(bits or NOTHING)),
    Column("needs", "Runs exactly on", words.runs_on),
    Column("execution", "Execution", lambda c: c.execution if c.recipe else c.dtype),
    Column("accuracy", "Accuracy, %", _of("accuracy_percent"), words.percent),
    Column("correct", "Correct/total", _of("correct", "total"), "{0[0]}/{0[1]}".format),
    Column("interval", "95 % interval, %", _of("accuracy_ci95_percent"), words.accuracy_interval),
    Column("delta", "Delta, pp", _of("delta_pp"), words.signed),
    Column("delta_interval", "Delta 95 % interval, pp", _of("delta_ci95_pp"), words.delta_interval),
    Column("mcnemar", words.UNCORRECTED, _of("mcnemar_p"), words.p_value),
    Column("agreement", "Agreement, %", _of("agreement_percent"), words.percent),
    Column(
        "latency", "One image, ms", lambda c: _latency(c, "p50_ms"), partial(words.median, digits=3)
    ),
    Column("throughput", "Images/s", _throughput, partial(words.median, digits=0)),
    Column(
        "speedup",
        "Times float32",
        lambda c: _latency(c, "speedup"),
        partial(words.median, digits=2),
    ),
    Column("size", "Size, kB", _of("size_bytes"), words.kilobytes),
    Column("weights", "Weights, kB", weights_bytes, words.kilobytes),
    Column("word", "Verdict", _of("word")),
    Column("flag", "Flag", lambda c: "⚑ FLAGGED" if c.flagged else "none"),
)
SPEED: Final = ("latency", "throughput", "speedup")
"""Keys of the columns that only a run which timed something has; with one thread."""
BY_KEY: Final = {column.key: column for column in COLUMNS}
_WORDS: Final = (
    *("degraded", "inconclusive", "equivalent, lower", "baseline", "equivalent"),
    *("equivalent, higher", "improved"),
)
_OF_A_DIFFERENCE: Final = {"delta", "delta_interval", "mcnemar", "agreement", "flag"}


def rows(results: Results) -> list[Row]:
    """Every line of the comparison: the baseline first, and rows without a number too."""
    found = {entry.name: entry for entry in results.configurations}
    due = {entry.name: entry for entry in results.expected}
    for name, entry in found.items():
        due.setdefault(name, ExpectedRow.of(entry))
    baseline = results.baseline.configuration if results.baseline else None
    lines = [Row(entry, found.get(name), name == baseline) for name, entry in due.items()]
    return sorted(lines, key=lambda row: not row.is_baseline)


def columns(results: Results) -> list[Column]:
    """The columns for which a run has something to show."""
    return [column for column in COLUMNS if column.key not in SPEED or timed(results)]


def timed(results: Results) -> bool:
    """Whether a run has timed something."""
    return any(found.latency for found in results.configurations)


def measured(results: Results) -> list[tuple[Row, ConfigurationResult]]:
    """The lines that have numbers, with these."""
    return [(row, row.configuration) for row in rows(results) if row.configuration]


def cell(row: Row, column: Column) -> str:
    """What a line shows in a column."""
    if column.key in _NAMES:
        return column.text(row.due)
    if row.configuration is None:
        return "not evaluated" if column.key == "word" else NOTHING
    if row.is_baseline:
        if column.key == "word":
            return "baseline"
        if column.key in _OF_A_DIFFERENCE:
            return NOTHING
    return column.text(row.configuration)


def word_order(row: Row) -> int:
    """Where a line stands when verdicts are sorted, from nothing known to better."""
    return _WORDS.index(row.configuration.word) if row.configuration else -1


def size_note(results: Results) -> str | None:
    """What a stored file holds besides its weights, where that was measured."""
    for row, found in measured(results):
        if found.optimizer_bytes and found.weights_bytes:
            return (
                f"The file of {row.title} holds {words.kilobytes(found.weights_bytes)} kB of "
                f"weights; {words.kilobytes(found.optimizer_bytes)} kB are optimizer state that "
                "training left. Hold the other sizes against its weights."
            )
    return None


def to_csv(results: Results) -> str:
    """Tidy rows, one for each line of the comparison, numbers in full."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    changes = {entry.tuned: entry for entry in results.tuning}
    for row in rows(results):
        found, due = row.configuration, row.due
        values = {key: getattr(found, key, None) for key in _CSV_COLUMNS}
        values |= {key: getattr(due, key) for key in ("name", "framework", "dtype", "recipe")}
        values |= {"assets": results.assets.kind, "word": cell(row, BY_KEY["word"])}
        if change := changes.get(due.name):
            values["change_from_stock_pp"] = change.delta_pp
            values["change_from_stock_mcnemar_p"] = change.mcnemar_p
            values |= _limits("change_from_stock_ci95_{}_pp", change.delta_ci95_pp)
        if found:
            values |= _limits("accuracy_ci95_{}_percent", found.accuracy_ci95_percent)
            values |= _limits("delta_ci95_{}_pp", found.delta_ci95_pp or (None, None))
            speeds = (BY_KEY[key].order(found) for key in SPEED)
            values |= dict(zip(_CSV_SPEED, speeds, strict=True))
        if row.is_baseline:
            values |= dict.fromkeys(_CSV_OF_A_DIFFERENCE)
        writer.writerow({key: _safe(value) for key, value in values.items()})
    return out.getvalue()


_CSV_OF_A_DIFFERENCE: Final = (
    *("delta_pp", "delta_ci95_low_pp", "delta_ci95_high_pp", "mcnemar_p", "lost", "gained"),
    *("agreement_percent", "flagged"),
)
_CSV_SPEED: Final = ("latency_p50_ms", "images_per_second", "speedup")
_CSV_COLUMNS: Final = (
    *("name", "framework", "dtype", "recipe", "weights_dtype", "activations_dtype", "execution"),
    *("calibration_seed", "correct", "total", "accuracy_percent"),
    *("accuracy_ci95_low_percent", "accuracy_ci95_high_percent"),
    *_CSV_OF_A_DIFFERENCE[:-1],
    *_CSV_SPEED,
    *("size_bytes", "weights_bytes", "weights_bits", "needs", "quantized_ops", "float_ops"),
    *("word", "flagged", "flag_reason", "model_sha256", "assets"),
    *("change_from_stock_pp", "change_from_stock_ci95_low_pp", "change_from_stock_ci95_high_pp"),
    "change_from_stock_mcnemar_p",
)


def _limits(name: str, limits: Sequence[float | None]) -> dict[str, float | None]:
    return {name.format(end): limit for end, limit in zip(("low", "high"), limits, strict=True)}


def _safe(value: object) -> object:
    """Text that a spreadsheet does not take for a formula."""
    if isinstance(value, str):
        text = words.plain(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return value
