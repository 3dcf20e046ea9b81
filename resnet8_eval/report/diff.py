"""What moved between two runs, as Markdown."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Final

from resnet8_eval.record import ConfigurationResult, Results
from resnet8_eval.report import detail, table, words
from resnet8_eval.report.markdown import escape, grid
from resnet8_eval.report.words import NOTHING
from resnet8_eval.statistics import mcnemar_p, paired_interval_pp

Pairs = dict[str, str]

_ABSENT: Final = "not there"
_NOT_COMPARED: Final = "Not compared: one run is on the stand-in, the other is not."
_TOLD: Final = (
    *("execution", "delta", "delta_interval", "mcnemar", "agreement", "size", "word", "flag"),
)
"""Columns of the comparison that can move while the accuracies stay."""


def diff(old: Results, new: Results) -> str:
    """Hold two runs against each other.

    Parameters
    ----------
    old, new
        What two runs found. Where both keep which test images a configuration gets right
        (``right_base64``), its accuracies are compared image by image.

    Returns
    -------
    str
        Markdown: verdicts, requirements, accuracies, what the comparison says of them, recipes,
        versions and fingerprints, of each only what differs. Durations and cache hits are left out.
    """
    blocks = [
        "# What moved",
        grid(
            ["", "old", "new"],
            [
                ["date", escape(detail.date(old)), escape(detail.date(new))],
                ["baseline", escape(words.baseline(old)), escape(words.baseline(new))],
                ["command", escape(old.command), escape(new.command)],
            ],
        ),
        *_warnings(old, new),
        "## Verdicts",
        _moved("Milestone", _verdicts(old), _verdicts(new)),
        "## Requirements",
        _moved("ID", _requirements(old), _requirements(new)),
        "## Accuracies",
        _accuracies(old, new),
        "## Comparison with the baseline",
        _comparison(old, new),
        "## Recipes",
        _moved("Recipe", _recipes(old), _recipes(new)),
        "## Versions and machine",
        _moved("What", dict(detail.environment(old)), dict(detail.environment(new))),
        "## Fingerprints",
        _moved("What", _fingerprints(old), _fingerprints(new)),
    ]
    return "\n\n".join(blocks) + "\n"


def _moved(title: str, old: Pairs, new: Pairs) -> str:
    lines = [
        [escape(key), escape(old.get(key, _ABSENT)), escape(new.get(key, _ABSENT))]
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    return grid([title, "old", "new"], lines) if lines else "Nothing moved."


def _warnings(old: Results, new: Results) -> Iterator[str]:
    for name, results in (("old", old), ("new", new)):
        if words.is_standin(results):
            yield f"> [!CAUTION]\n> The {name} run is a **stand-in** run: no verdict."
        if not results.complete:
            yield f"> [!WARNING]\n> The {name} run is not complete."
    if old.assets.dataset_md5 != new.assets.dataset_md5:
        yield (
            "> [!WARNING]\n> The two runs used different images: their accuracies are not "
            "comparable."
        )


def _verdicts(results: Results) -> Pairs:
    verdicts = {
        name: f"{found.verdict}, {found.met} of {found.total}"
        for name, found in results.milestones.items()
    }
    return verdicts | ({"gate": "; ".join(words.gate(results))} if results.gate else {})


def _requirements(results: Results) -> Pairs:
    return {
        entry.id: f"{entry.status}{_on_standin(entry.outcome_on_standin)}, {words.measured(entry)}"
        for entry in results.requirements
    }


def _on_standin(found: str | None) -> str:
    return f" ({found} on the stand-in)" if found else ""


def _accuracies(old: Results, new: Results) -> str:
    if words.is_standin(old) != words.is_standin(new):
        return _NOT_COMPARED
    before = {found.name: found for found in old.configurations}
    after = {found.name: found for found in new.configurations}
    comparable = old.assets.dataset_md5 == new.assets.dataset_md5
    lines, same, unpaired = [], [], False
    for name in {**before, **after}:
        one, two = before.get(name), after.get(name)
        if one and two and _same(one, two):
            same.append(escape(name))
            continue
        paired = _paired(one, two) if comparable and one and two else None
        unpaired |= paired is None
        lines.append(
            [
                escape(name),
                _accuracy(one),
                _accuracy(two),
                words.signed(two.accuracy_percent - one.accuracy_percent)
                if one and two
                else NOTHING,
                *(paired or (NOTHING, NOTHING, NOTHING)),
            ]
        )
    parts = []
    if lines:
        headers = [
            "Configuration",
            "old, %",
            "new, %",
            "Change, pp",
            "95 % interval, pp",
            "Lost, gained",
            words.UNCORRECTED,
        ]
        parts.append(grid(headers, lines, [1, 2, 3, 4, 5, 6]))
        if unpaired:
            parts.append(
                "Where there is no paired test, results.json does not keep which images are right "
                "in both runs, or the images are not the same; a change alone does not tell luck "
                "from loss."
            )
    else:
        parts.append("Nothing moved.")
    if same and lines:
        parts.append(f"The same in both: {', '.join(same)}.")
    return "\n\n".join(parts)


def _comparison(old: Results, new: Results) -> str:
    """What the comparison says of each configuration that both runs have, besides its accuracy."""
    if words.is_standin(old) != words.is_standin(new):
        return _NOT_COMPARED
    names = {found.name for found in old.configurations}
    names &= {found.name for found in new.configurations}
    return _moved("Configuration", _told(old, names), _told(new, names))


def _told(results: Results, names: set[str]) -> Pairs:
    return {
        f"{found.name}: {column.header}": table.cell(row, column)
        for row, found in table.measured(results)
        if found.name in names
        for column in (table.BY_KEY[key] for key in _TOLD)
    }


def _same(one: ConfigurationResult, two: ConfigurationResult) -> bool:
    kept = one.right_base64 is not None and two.right_base64 is not None
    keys = ("correct", "total", "confusion", *(["right_base64"] if kept else []))
    return all(getattr(one, key) == getattr(two, key) for key in keys)


def _accuracy(found: ConfigurationResult | None) -> str:
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
    except (binascii.Error, ValueError):
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
