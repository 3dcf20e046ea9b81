"""Where it hurts and how it was made: what the templates of those sections show."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from resnet8_eval.report import execution, table, words
from resnet8_eval.report.words import Results
from resnet8_eval.requirements import MAX_KERNEL_DISAGREEMENT_PERCENT

Found = Mapping[str, Any]
_STEPS = (0.005, 1.0, 2.0, 5.0)
"""Absolute deltas in percentage points at which a cell's colour changes."""
_LEVEL = 0.05
"""A corrected p-value below this marks a class."""


def heat_map(results: Results) -> dict[str, Any] | None:
    """Accuracy of every class in every configuration, and its delta from the baseline.

    Parameters
    ----------
    results
        What ``results.json`` holds.

    Returns
    -------
    dict or None
        ``columns`` and ``rows``; None without a baseline.
    """
    rows = _measured(results)
    if not rows or not rows[0].is_baseline:
        return None
    baseline = _configuration(rows[0])["per_class"]
    return {
        "columns": rows,
        "rows": [
            {
                "name": words.plain(entry["name"]),
                "total": entry["total"],
                "cells": [_heat(_configuration(row), k, entry) for row in rows],
            }
            for k, entry in enumerate(baseline)
        ],
        "level": _LEVEL,
        "tested": any("per_class_tests" in _configuration(row) for row in rows),
        "significant": any(
            test["holm_p"] < _LEVEL
            for row in rows
            for test in _configuration(row).get("per_class_tests", ())
        ),
    }


def confusions(results: Results) -> list[dict[str, Any]]:
    """Confusion matrices, every cell with its change from the baseline's.

    Parameters
    ----------
    results
        What ``results.json`` holds.

    Returns
    -------
    list of dict
        The baseline's first. ``changed`` counts the cells that differ, ``worst`` says which kind
        of mistake grew most.
    """
    rows = _measured(results)
    if not rows or not rows[0].is_baseline:
        return []
    baseline = _configuration(rows[0])["confusion"]
    names = [words.plain(entry["name"]) for entry in _configuration(rows[0])["per_class"]]
    found = []
    for row in rows:
        matrix = _configuration(row)["confusion"]
        changes = [
            [count - before for count, before in zip(line, lines_before, strict=True)]
            for line, lines_before in zip(matrix, baseline, strict=True)
        ]
        grown = [
            (changes[true][answer], -true, -answer)
            for true in range(len(names))
            for answer in range(len(names))
            if true != answer
        ]
        most, true, answer = max(grown)
        found.append(
            {
                "row": row,
                "names": names,
                "lines": [
                    list(zip(line, change, strict=True))
                    for line, change in zip(matrix, changes, strict=True)
                ],
                "changed": sum(change != 0 for line in changes for change in line),
                "worst": f"{names[-true]} taken for {names[-answer]}, +{most}"
                if most > 0
                else None,
            }
        )
    return found


def galleries(results: Results) -> list[dict[str, Any]]:
    """Images that a quantized model newly gets wrong, where ``results.json`` holds them.

    Parameters
    ----------
    results
        What ``results.json`` holds; each configuration may have ``changed``, a list of
        ``{"index", "true", "baseline_answer", "baseline_score", "answer", "score",
        "png_base64"}`` with class numbers and scores from 0 to 1.
    """
    found = []
    for row in _measured(results):
        configuration = _configuration(row)
        names = [words.plain(entry["name"]) for entry in configuration["per_class"]]
        images = [
            {
                **image,
                **{key: names[image[key]] for key in ("true", "baseline_answer", "answer")},
            }
            for image in configuration.get("changed") or ()
        ]
        if images:
            found.append({"row": row, "images": images, "lost": configuration["lost"]})
    return found


def recipes(results: Results) -> dict[str, Any] | None:
    """Every quantized configuration's recipe and operator census, as one table.

    Parameters
    ----------
    results
        What ``results.json`` holds.

    Returns
    -------
    dict or None
        ``columns`` and ``rows`` of ``(what, [text, …])``; None where nothing was quantized.
    """
    rows = [row for row in _measured(results) if _configuration(row)["recipe"]]
    if not rows:
        return None
    told: list[dict[str, str]] = []
    for row in rows:
        found = _configuration(row)
        entries = {
            **{k: v for k, v in found["recipe"].items() if k not in {"framework", "dtype"}},
            "calibration seed": found["calibration_seed"],
            **execution.operators(found),
            "support": found["support"],
            "operators as ONNX Runtime ran them": found.get("kernels"),
            "operators in a default session": found.get("default_kernels"),
            "kernels against reference": _against_reference(found),
            "images with a tie for first": found["ties"]["images"],
            "model SHA-256": found["model_sha256"],
        }
        told.append(
            {
                words.plain(key).replace("_", " "): words.said(value)
                for key, value in entries.items()
                if value is not None
            }
        )
    keys = dict.fromkeys(key for entries in told for key in entries)
    return {
        "columns": rows,
        "rows": [(key, [entries.get(key, words.NOTHING) for entries in told]) for key in keys],
    }


def tensors(results: Results) -> list[dict[str, Any]]:
    """Scales and zero points as read back from the stored models, where they are kept.

    Parameters
    ----------
    results
        What ``results.json`` holds; each configuration may have ``tensors``, a list of ``{"name",
        "kind", "dtype", "axis", "scales", "zero_points"}``.
    """
    found = []
    for row in _measured(results):
        entries = [
            {
                "name": words.plain(entry["name"]),
                "kind": words.plain(entry["kind"]),
                "dtype": words.plain(entry["dtype"]),
                "axis": "whole tensor" if entry["axis"] is None else f"per axis {entry['axis']}",
                "scales": _span([f"{value:.4g}" for value in sorted(entry["scales"])]),
                "zero_points": _span([str(value) for value in sorted(entry["zero_points"])]),
            }
            for entry in _configuration(row).get("tensors") or ()
        ]
        if entries:
            found.append({"row": row, "tensors": entries})
    return found


def _span(values: list[str]) -> str:
    """The smallest and the largest of several, or the only one."""
    texts = [value.replace("-", words.MINUS) for value in values] or [words.NOTHING]
    if texts[0] == texts[-1]:
        return texts[0]
    return f"{texts[0]} to {texts[-1]} ({len(texts)})"


def environment(results: Results) -> list[tuple[str, str]]:
    """Python, platform, processor and packages, each with what was found.

    Parameters
    ----------
    results
        What ``results.json`` holds.
    """
    found = results["environment"]
    entries = [("Python", found["python"]), ("platform", found["platform"])]
    entries += [(f"processor: {key}", value) for key, value in found["cpu"].items()]
    entries += sorted(found["packages"].items())
    known = {"python", "platform", "cpu", "packages", "git_commit", "dirty"}
    entries += [(key, found[key]) for key in sorted(set(found) - known)]
    return [(words.plain(name).replace("_", " "), words.said(value)) for name, value in entries]


def date(results: Results) -> str:
    """When the run was, to the minute."""
    try:
        found = datetime.fromisoformat(results["created"])
    except ValueError:
        return words.plain(results["created"])
    zone = f" {found.tzname()}" if found.tzinfo else ""
    return f"{found:%Y-%m-%d %H:%M}{zone}"


def commit(results: Results) -> str:
    """Which code it was."""
    found = results["environment"]
    if found["git_commit"] is None:
        return "not run from a git checkout"
    changed = ", with uncommitted changes" if found["dirty"] else ""
    return f"{words.plain(found['git_commit'])}{changed}"


def local_builds(results: Results) -> list[str]:
    """Commands that install builds which a version alone does not name, such as ``2.13.0+cpu``."""
    packages = sorted(results["environment"]["packages"].items())
    found = [
        (words.plain(name), words.plain(version)) for name, version in packages if "+" in version
    ]
    return [
        f"python -m pip install {shlex.quote(f'{name}=={version}')}"
        + f"  # {version.partition('+')[2]} build, from the project's own index"
        for name, version in found
    ]


def data_fingerprint(results: Results) -> str:
    """One short hash of all data files: what ``md5sum FILES | sha256sum`` starts with.

    Parameters
    ----------
    results
        What ``results.json`` holds; the files are taken in the order of their names.

    Returns
    -------
    str
        The first 16 of 64 hexadecimal digits.
    """
    lines = [f"{md5}  {name}\n" for name, md5 in sorted(results["assets"]["dataset_md5"].items())]
    return hashlib.sha256("".join(lines).encode(errors="backslashreplace")).hexdigest()[:16]


def _measured(results: Results) -> list[table.Row]:
    return [row for row in table.rows(results) if row.configuration is not None]


def _configuration(row: table.Row) -> Found:
    assert row.configuration is not None  # noqa: S101 (see _measured)
    return row.configuration


def _heat(configuration: Found, k: int, baseline: Found) -> dict[str, Any]:
    entry = configuration["per_class"][k]
    accuracy, before = entry["accuracy_percent"], baseline["accuracy_percent"]
    delta = None if accuracy is None or before is None else accuracy - before
    size = 0 if delta is None else sum(abs(delta) >= step for step in _STEPS)
    side = "gain" if delta is not None and delta > 0 else "loss"
    tests = {test["name"]: test for test in configuration.get("per_class_tests", ())}
    test = tests.get(entry["name"])
    return {
        "accuracy": accuracy,
        "delta": delta,
        "heat": f"{side}-{size}" if size else "same",
        "significant": test is not None and test["holm_p"] < _LEVEL,
    }


def _against_reference(configuration: Found) -> str | None:
    """How the integer kernels compare with reference arithmetic on the same stored integers."""
    found = configuration.get("reference")
    if found is None:
        return None
    share = 100 * found["disagreements"] / found["total"]
    text = (
        f"{found['disagreements']}/{found['total']} images differ ({words.percent(share)} %); "
        f"reference gets {found['correct']} right"
    )
    if share > MAX_KERNEL_DISAGREEMENT_PERCENT:
        text += f"; probable cause: {words.plain(found['probable_cause'])}"
    return text
