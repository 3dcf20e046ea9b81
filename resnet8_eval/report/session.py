"""The table of tests: what pytest-html collected of a session, for a page that needs no script."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from resnet8_eval.record import Results

_RANK: Final = {"Error": 0, "Failed": 0, "Passed": 2}


def session(results: Results, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read what pytest-html hands to its template.

    Parameters
    ----------
    results
        What the run found.
    given
        The template's variables.

    Returns
    -------
    dict
        ``tests``, failures first: pytest-html's own entries, each with its ``name``, the ``anchor``
        of its row, the ID of the ``requirement`` whose test it is or None, and its ``seconds``;
        ``anchors`` by name; ``count`` and ``made`` in words; ``environment`` of the session; and
        ``summaries``, the HTML that other plugins add.
    """
    data, added = json.loads(given["test_data"]), given["additional_summary"]
    owners = {entry.test: entry.id for entry in results.requirements if entry.test}
    named = [(name, entry) for name, reports in data["tests"].items() for entry in reports]
    tests = [
        entry
        | {"name": name, "anchor": f"test-{k}", "requirement": owners.get(name)}
        | {"seconds": _seconds(entry["duration"])}
        for k, (name, entry) in enumerate(named)
    ]
    return {
        "tests": sorted(tests, key=lambda test: _RANK.get(test["result"], 1)),
        "anchors": {test["name"]: test["anchor"] for test in reversed(tests)},
        "count": given["run_count"],
        "made": f"{given['date']}, {given['time']}, by pytest-html {given['version']}",
        "environment": {name: _plain(value) for name, value in data["environment"].items()},
        "summaries": [str(b) for part in ("prefix", "summary", "postfix") for b in added[part]],
    }


def _seconds(duration: str) -> float:
    """A duration as pytest-html writes it: ``12 ms`` or ``00:00:12``."""
    if milliseconds := re.fullmatch(r"(\d+) ms", duration):
        return int(milliseconds[1]) / 1000
    return sum(60.0**k * int(part) for k, part in enumerate(reversed(duration.split(":"))))


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return str(value)
