"""The report as HTML: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report.folder import Earlier
from resnet8_eval.report.render import render

_RANK: Final = {"Error": 0, "Failed": 0, "Passed": 2}
SECTIONS: Final = ("verdict", "comparison", "requirements", "hurts", "made")


def page(
    results: Results, given: Mapping[str, Any] | None = None, earlier: Earlier | None = None
) -> str:
    """The report as one page, which needs no script to be read.

    Parameters
    ----------
    results
        What the run found.
    given
        The variables of pytest-html's template, for the table of tests; without them, none.
    earlier
        Complete runs before this one, for what changed; without them, no such section.
    """
    from resnet8_eval.results import encode

    found = None if given is None else _session(results, given)
    data = base64.b64encode(encode(results).encode()).decode()
    more = {"session": found, "data": data, "earlier": earlier, "sections": SECTIONS}
    return render("page.html", results, **more)


def section(name: str, results: Results) -> str:
    """One of :data:`SECTIONS`."""
    return render(f"{name}.html", results, session=None)


def _session(results: Results, given: Mapping[str, Any]) -> dict[str, Any]:
    """The table of tests, from the variables of pytest-html's template: its entries, and whose."""
    data, added = json.loads(given["test_data"]), given["additional_summary"]
    owners = {entry.test: entry.id for entry in results.requirements if entry.test}
    named = [(name, entry) for name, reports in data["tests"].items() for entry in reports]
    tests = [
        entry
        | {"name": name, "anchor": f"test-{k}", "requirement": owners.get(name)}
        | {"seconds": _seconds(entry["duration"])}
        for k, (name, entry) in enumerate(named)
    ]
    tests.sort(key=lambda test: _RANK.get(test["result"], 1))  # a failure before a pass of its name
    return {
        "tests": tests,
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
