"""Where it hurts and how it was made: what the templates of those sections show."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from resnet8_eval.record import Results
from resnet8_eval.report import execution, table, words
from resnet8_eval.row_record import ConfigurationResult, Kernels

_STEPS = (0.005, 1.0, 2.0, 5.0)
"""Absolute deltas in percentage points at which a cell's colour changes."""
_IMAGES = (1, 3, 10, 30)
"""Absolute changes in images at which the colour of a cell changes."""
_PROCESSOR = {
    "cores": "processor: cores",
    "flags": "processor: instructions that 8-bit kernels use",
    "model": "processor",
    "onednn_max_cpu_isa": "instructions that oneDNN may use (ONEDNN_MAX_CPU_ISA)",
    "variables": "environment variables that choose kernels",
}
_SETTINGS = {
    "reduce_range": "weights kept to 7 bits (reduce_range)",
    "runs_as": "how it was run, if not in a plain session",
    "engine": "engine of PyTorch",
    "clip_weights": "weight ranges narrowed where that lessens the error",
    "float_layers": "layers left in float, by place",
    "moment_stride": "calibration images in the covariances: one in",
    "score": "last layer's output",
    "weight_limit": "largest magnitude of an 8-bit weight",
}
"""Settings of a recipe, for those who have never seen them; others are shown as they are called."""
_SAID_IN_WORDS = {
    "activations": {"ranges", "percentile"},
    "weights": {"granularity", "rounding", "correct_bias"},
    "equalization": {"equalize"},
}
"""Settings that a sentence of the method says again."""
_UNSET = {"onednn_max_cpu_isa": "all that the processor has"}
LEVEL = 0.05
"""A corrected p-value below this marks a class."""


def baseline(results: Results) -> ConfigurationResult | None:
    """What was measured of the baseline, which the other rows are held against."""
    return next((found for row, found in table.measured(results) if row.is_baseline), None)


def heat(change: float | None) -> str:
    """The class of the colour of a change in percentage points; ``same`` for none."""
    return _shade(change or 0.0, _STEPS) or "same"


def _shade(change: float, steps: Sequence[float], *, better: bool = True) -> str:
    """The class of a change's colour, by its size and whether more is better; empty for none."""
    size = sum(abs(change) >= step for step in steps)
    return f"{'gain' if (change > 0) == better else 'loss'}-{size}" if size else ""


def confusions(results: Results) -> list[dict[str, Any]]:
    """What changed in each configuration's confusion matrix, the baseline's first.

    Returns
    -------
    list of dict
        ``changed`` counts the cells that differ from the baseline's, ``worst`` says which kind of
        mistake grew most, and ``open`` is true of the first in which most cells changed.
    """
    before = baseline(results)
    if before is None:
        return []
    names = [words.plain(entry.name) for entry in before.per_class]
    told: list[dict[str, Any]] = []
    for row, found in table.measured(results):
        changes = {
            (true, answer): count - before.confusion[true][answer]
            for true, line in enumerate(found.confusion)
            for answer, count in enumerate(line)
        }
        most, true, answer = max(
            ((change, *place) for place, change in changes.items() if place[0] != place[1]),
            key=itemgetter(0),
        )
        told.append(
            {
                "row": row,
                "changed": sum(change != 0 for change in changes.values()),
                "worst": f"{names[true]} taken for {names[answer]}, +{most}" if most > 0 else None,
            }
        )
    opened = max(told, key=itemgetter("changed"))
    return [matrix | {"open": matrix is opened and bool(matrix["changed"])} for matrix in told]


def moved(change: int, *, right: bool) -> tuple[str, str]:
    """A change of the images in a cell, and its colour: more is better where they are right."""
    colour = _shade(change, _IMAGES, better=right)
    return (words.signed(change, 0), colour) if colour else ("", "")


def galleries(results: Results) -> list[list[tuple[table.Row, ConfigurationResult]]]:
    """Quantized models that newly get images wrong; those that share all of them stand together."""
    alike: dict[Any, list[tuple[table.Row, ConfigurationResult]]] = {}
    for row, found in table.measured(results):
        if found.changed:
            alike.setdefault((found.lost, found.changed), []).append((row, found))
    return list(alike.values())


def recipe(found: ConfigurationResult) -> dict[str, str]:
    """What decides a quantized configuration, and its operators: heading to text."""
    if found.recipe is None:
        return {}
    method = found.recipe.method
    again = {name for key, names in _SAID_IN_WORDS.items() if key in method for name in names}
    entries = {
        "recipe": found.recipe.name,
        "weights dtype": found.weights_dtype,
        "activations dtype": found.activations_dtype,
        "execution": found.execution,
        **{key: value for key, value in method.items() if key not in again},
        "reduce_range": found.recipe.reduce_range,
        "engine": found.recipe.engine,
        "runs_as": found.recipe.runs_as,
        "calibration seed": found.calibration_seed,
        **execution.operators(found),
    }
    return _told(entries)


def recipes(results: Results) -> dict[str, Any] | None:
    """Every quantized configuration's recipe and operator census, as one table.

    Returns
    -------
    dict or None
        ``columns`` and ``rows`` of ``(what, [text, …])``; None where nothing was quantized.
    """
    rows = [(row, found) for row, found in table.measured(results) if found.recipe]
    if not rows:
        return None
    told = [
        recipe(found)
        | _told(
            {
                "operators as ONNX Runtime ran them": found.kernels,
                "operators in a default session": found.default_kernels,
                "kernels against exact integers": _held(found.exact_integers, "exact integers get"),
                "kernels against reference": _held(found.reference, "reference gets"),
                "images with a tie for first": found.ties.images,
                "model SHA-256": found.model_sha256,
            }
        )
        for _, found in rows
    ]
    keys = dict.fromkeys(key for entries in told for key in entries)
    return {
        "columns": [row for row, _ in rows],
        "rows": [(key, [entries.get(key, words.NOTHING) for entries in told]) for key in keys],
    }


def _told(entries: dict[str, Any]) -> dict[str, str]:
    return {
        _SETTINGS.get(key, words.plain(key).replace("_", " ")): words.said(value)
        for key, value in entries.items()
        if value is not None
    }


def _held(found: Kernels | None, who: str) -> str | None:
    """How the kernels compare with other arithmetic on the same stored model."""
    if found is None:
        return None
    share = 100 * found.disagreements / found.total
    text = (
        f"{found.disagreements}/{found.total} images differ ({words.percent(share)} %); "
        f"{who} {found.correct} right"
    )
    if found.disagreements:
        text += f"; probable cause: {words.plain(found.probable_cause)}"
    return text


def span(values: Iterable[float], form: str) -> str:
    """The smallest and the largest of several numbers, or the only one."""
    found = [words.figure(value, form) for value in sorted(values)]
    if len(set(found)) < 2:
        return found[0] if found else words.NOTHING
    return f"{found[0]} to {found[-1]} ({len(found)})"


def environment(results: Results) -> list[tuple[str, str]]:
    """Python, platform, processor and packages, each with what was found."""
    found = results.environment
    entries: list[tuple[str, object]] = [("Python", found.python), ("platform", found.platform)]
    entries += [
        (_PROCESSOR.get(key, f"processor: {key}"), _UNSET.get(key) if value is None else value)
        for key, value in found.cpu.items()
    ]
    entries += sorted(found.packages.items())
    entries += [
        (f"threads: {words.plain(name).replace('_', ' ')}", count)
        for name, count in (found.threads or {}).items()
    ]
    return [(words.plain(name), words.said(value)) for name, value in entries]


def minute(created: str) -> str:
    """A moment, to the minute."""
    try:
        found = datetime.fromisoformat(created)
    except ValueError:
        return words.plain(created)
    zone = f" {found.tzname()}" if found.tzinfo else ""
    return f"{found:%Y-%m-%d %H:%M}{zone}"


def commit(results: Results) -> str:
    """Which code it was."""
    found = results.environment
    if found.git_commit is None:
        return "not run from a git checkout"
    changed = ", with uncommitted changes" if found.dirty else ""
    return f"{words.plain(found.git_commit)}{changed}"


def local_builds(results: Results) -> list[str]:
    """Commands that install builds which a version alone does not name, such as ``2.13.0+cpu``."""
    return [
        f"python -m pip install {shlex.quote(words.plain(f'{name}=={version}'))}"
        f"  # {words.plain(version.partition('+')[2])} build, from the project's own index"
        for name, version in sorted(results.environment.packages.items())
        if "+" in version
    ]


def data_fingerprint(results: Results) -> str:
    """One short hash of all data files: what ``md5sum FILES | sha256sum`` starts with.

    16 of 64 hexadecimal digits, of the files in the order of their names.
    """
    lines = [f"{md5}  {name}\n" for name, md5 in sorted(results.assets.dataset_md5.items())]
    return hashlib.sha256("".join(lines).encode(errors="backslashreplace")).hexdigest()[:16]
