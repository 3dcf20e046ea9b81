"""What moved between two runs, as a record and as a sentence."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from resnet8_eval.advanced_record import Advanced, Cell, LowBit
from resnet8_eval.record import Results
from resnet8_eval.report import detail, table, words
from resnet8_eval.report.words import NOTHING
from resnet8_eval.row_record import ConfigurationResult
from resnet8_eval.statistics import mcnemar_p, paired_interval_pp

Pairs = dict[str, str]

Row = ConfigurationResult | None
_ABSENT: Final = "not there"
_UNPAIRED: Final = (NOTHING, NOTHING, NOTHING)
_TOLD: Final = (
    *("types", "bits", "needs", "execution", "delta", "delta_interval", "mcnemar", "agreement"),
    *("size", "weights", "word", "flag"),
)
"""Columns of the comparison that can move while the accuracies stay."""


PARTS: Final = {
    "verdicts": ("Verdicts", "Milestone"),
    "requirements": ("Requirements", "ID"),
    "accuracies": ("Accuracies", "Configuration"),
    "comparison": ("Comparison with the baseline", "Configuration"),
    "recipes": ("Recipes", "Recipe"),
    "versions": ("Versions and machine", "What"),
    "fingerprints": ("Fingerprints", "What"),
}
"""Parts of a difference, each with its title and the heading of its first column."""
_OUTCOMES: Final = ("verdicts", "requirements", "accuracies", "comparison")
"""Parts that say what came of a run; the others say what may have moved them."""
_ASKED: Final = ("verdicts", "requirements")
"""Parts of what a run is asked for."""
_NAMED: Final = 3
"""How many changes of a part its sentence names."""


@dataclass(frozen=True)
class Change:
    """One thing that moved, in words."""

    what: str
    old: str
    new: str


def changes(old: Results, new: Results) -> dict[str, list[Change]]:
    """All that moved, by part. Durations and cache hits are left out.

    Accuracies and comparison are empty where one run is on the stand-in and the other is not.
    """
    alike = words.is_standin(old) == words.is_standin(new)
    names = _names(old) & _names(new)
    return {
        "verdicts": _moved(_verdicts(old), _verdicts(new)),
        "requirements": _moved(_requirements(old), _requirements(new)),
        "accuracies": [
            Change(name, _accuracy(one), _accuracy(two) + _others(one, two))
            for name, one, two in (_moved_rows(old, new) if alike else ())
        ],
        "comparison": _moved(_told(old, names), _told(new, names)) if alike else [],
        "recipes": _moved(_recipes(old), _recipes(new)),
        "versions": _moved(dict(detail.environment(old)), dict(detail.environment(new))),
        "fingerprints": _moved(_fingerprints(old), _fingerprints(new)),
    }


def since(last: Results, now: Results) -> dict[str, list[Change]]:
    """What moved since a complete run, without what this one was not asked for or did not make."""
    asked = {*now.selected, "gate"}
    asked |= {entry.milestone for entry in now.requirements if entry.id in now.selected}
    return {
        part: [
            one
            for one in moved
            if (part not in _ASKED or one.what in asked) and (now.complete or one.new != _ABSENT)
        ]
        for part, moved in changes(last, now).items()
    }


def titled(found: dict[str, list[Change]]) -> list[tuple[str, str, list[Change]]]:
    """The parts in which something moved, each with its title and the heading of its names."""
    return [(*PARTS[part], moved) for part, moved in found.items() if moved]


def summary(found: dict[str, list[Change]]) -> str:
    """All of it in one line, the first few of each part by name."""
    parts = []
    for title, _, moved in titled(found):
        named = [_short(change, title) for change in moved[:_NAMED]]
        more = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
        parts.append(f"{title.lower()} ({len(moved)}): {', '.join(named)}{more}")
    return f"Moved: {'; '.join(parts)}." if parts else "Nothing moved."


def _short(change: Change, title: str) -> str:
    if title in ("Verdicts", "Accuracies"):
        return f"{change.what} {change.old} → {change.new}"
    return change.what


def is_changed(old: Results, new: Results) -> bool:
    """Whether outcomes moved, or cannot be held against each other."""
    found = changes(old, new)
    same = (old.assets.kind, old.assets.dataset_md5) == (new.assets.kind, new.assets.dataset_md5)
    return not same or any(found[part] for part in _OUTCOMES)


def _moved(old: Pairs, new: Pairs) -> list[Change]:
    return [
        Change(key, old.get(key, _ABSENT), new.get(key, _ABSENT))
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _moved_rows(old: Results, new: Results) -> Iterator[tuple[str, Row, Row]]:
    """Configurations whose answers are not the same in both, or not known to be."""
    before, after = ({found.name: found for found in run.configurations} for run in (old, new))
    for name in {**before, **after}:
        one, two = before.get(name), after.get(name)
        if one is None or two is None or not _same(one, two):
            yield name, one, two


def _others(one: Row, two: Row) -> str:
    return ", others" if one and two and one.correct == two.correct else ""


def _verdicts(results: Results) -> Pairs:
    verdicts = {
        name: f"{found.verdict}, {found.met} of {found.total}"
        for name, found in results.milestones.items()
    }
    return verdicts | ({"gate": "; ".join(words.gate(results))} if results.gate else {})


def _requirements(results: Results) -> Pairs:
    return {
        entry.id: entry.status
        + (f" ({found} on the stand-in)" if (found := entry.outcome_on_standin) else "")
        + f", {words.measured(entry)} (asked: {words.required(entry)})"
        for entry in results.requirements
    }


def accuracies(old: Results, new: Results) -> list[list[str]]:
    """What moved of each configuration whose answers did, image by image where these are kept.

    Returns
    -------
    list
        Name, both accuracies, change, its interval, images lost and gained, and p.
    """
    comparable = old.assets.dataset_md5 == new.assets.dataset_md5
    lines = []
    for name, one, two in _moved_rows(old, new):
        change = (
            words.signed(two.accuracy_percent - one.accuracy_percent) if one and two else NOTHING
        )
        paired = _paired(one, two) if comparable and one and two else None
        lines.append([name, _accuracy(one), _accuracy(two), change, *(paired or _UNPAIRED)])
    return lines


def same(old: Results, new: Results) -> list[str]:
    """Names of the configurations whose answers are the same in both."""
    moved = {name for name, *_ in _moved_rows(old, new)}
    return [found.name for found in old.configurations if found.name not in moved]


def _told(results: Results, names: set[str]) -> Pairs:
    columns = {
        f"{found.name}: {column.header}": table.cell(row, column)
        for row, found in table.measured(results)
        if found.name in names
        for column in (table.BY_KEY[key] for key in _TOLD)
    }
    exact = {
        f"{found.name}: images unlike exact integers": str(found.exact_integers.disagreements)
        for found in results.configurations
        if found.name in names and found.exact_integers
    }
    over_seeds = {
        f"{row.name}: accuracy over seeds": f"mean {words.percent(row.accuracy_percent.mean, 3)},"
        f" worst {words.percent(row.accuracy_percent.worst)} of {len(row.correct)}"
        for row in (results.seeds.rows if results.seeds else ())
        if row.name in names
    }
    few_bits = {
        f"{name}: correct": f"{row.correct}/{row.total}"
        for name, row in _advanced(results).items()
        if name in names
    }
    return columns | exact | over_seeds | few_bits


def _names(results: Results) -> set[str]:
    return {found.name for found in results.configurations} | _advanced(results).keys()


def _advanced(results: Results) -> dict[str, LowBit | Cell]:
    """The models of v1_4, which may be there from an earlier run, by name."""
    found = results.advanced or Advanced()
    cells = {
        f"{cell.name}, {cell.granularity}, seed {entry.seed}": cell
        for entry in found.granularity
        for cell in entry.cells
    }
    rows = (*(found.mixed.rows if found.mixed else ()), *found.fine_tuned)
    return cells | {row.name: row for row in rows}


def _same(one: ConfigurationResult, two: ConfigurationResult) -> bool:
    kept = one.right_base64 is not None and two.right_base64 is not None
    keys = ("correct", "total", "confusion", *(["right_base64"] if kept else []))
    return all(getattr(one, key) == getattr(two, key) for key in keys)


def _accuracy(found: Row) -> str:
    if found is None:
        return _ABSENT
    return f"{words.percent(found.accuracy_percent)} ({found.correct}/{found.total})"


def _paired(one: ConfigurationResult, two: ConfigurationResult) -> tuple[str, str, str] | None:
    """Interval of the change, images lost and gained, and p; None where images are not kept."""
    before, after = _right(one), _right(two)
    if before is None or after is None or one.total != two.total:
        return None
    lost, gained = (before & ~after).bit_count(), (after & ~before).bit_count()
    return (
        words.delta_interval(paired_interval_pp(lost, gained, one.total)),
        f"{lost}, {gained}",
        words.p_value(mcnemar_p(lost, gained)),
    )


def _right(found: ConfigurationResult) -> int | None:
    """The images that are right, as the bits of a number; None if not kept, or not as counted."""
    try:
        packed = base64.b64decode(found.right_base64 or "", validate=True)
    except ValueError:
        return None
    bits = int.from_bytes(packed, "big")
    fits = len(packed) == (found.total + 7) // 8 and bits.bit_count() == found.correct
    return bits if fits else None


def _recipes(results: Results) -> Pairs:
    return {
        f"{found.name}: {key}": text
        for found in results.configurations
        for key, text in detail.recipe(found).items()
    }


def _fingerprints(results: Results) -> Pairs:
    entries = {
        "commit": detail.commit(results),
        "kind of assets": results.assets.kind,
        "model": f"{results.assets.model_name}, {results.assets.model_sha256}",
    }
    entries |= {f"data: {name}": md5 for name, md5 in results.assets.dataset_md5.items()}
    calibration = results.calibration
    if calibration:
        entries["calibration"] = (
            f"{calibration.count} images, seed {calibration.seed}, "
            f"indices {calibration.indices_sha256}"
        )
    for found in results.configurations:
        entries[f"model of {found.name}"] = f"{found.model_sha256}, {found.size_bytes} bytes"
    return entries
