"""The table of tests: what pytest-html collected of a session, for a page that needs no script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from resnet8_eval.record import Results

_RANK: Final = {"Error": 0, "Failed": 0, "Passed": 2}


@dataclass(frozen=True)
class Test:
    """One row.

    Attributes
    ----------
    anchor
        Its id on the page.
    name
        pytest's name of it.
    result
        In pytest-html's word.
    requirement
        The ID of the requirement whose test it is, if any.
    duration
        As pytest-html writes it.
    seconds
        The same as a number, to sort by.
    log
        HTML, escaped by pytest-html.
    extras
        What other plugins attached, as pytest-html keeps it.
    """

    anchor: str
    name: str
    result: str
    requirement: str | None
    duration: str
    seconds: float
    log: str
    extras: list[dict[str, Any]]


@dataclass(frozen=True)
class Session:
    """All that pytest-html hands to its template.

    Attributes
    ----------
    tests
        Failures first.
    count, made
        How many tests ran and how long; when the page was written, and by what.
    environment
        What pytest-metadata says of the session, in words.
    summaries
        HTML that other plugins add.
    """

    tests: list[Test]
    count: str
    made: str
    environment: Mapping[str, str]
    summaries: list[str]

    def anchor(self, name: str | None) -> str | None:
        """The id of a test's row; None if it has none."""
        return next((test.anchor for test in self.tests if test.name == name), None)

    @property
    def outcomes(self) -> list[str]:
        """The results that occur."""
        return list(dict.fromkeys(test.result for test in self.tests))


def session(results: Results, given: Mapping[str, Any]) -> Session:
    """Read what pytest-html hands to its template.

    Parameters
    ----------
    results
        What the run found.
    given
        The template's variables.
    """
    data = json.loads(given["test_data"])
    tests = sorted(_tests(results, data["tests"]), key=lambda test: _RANK.get(test.result, 1))
    added = given["additional_summary"]
    return Session(
        tests,
        given["run_count"],
        f"{given['date']}, {given['time']}, by pytest-html {given['version']}",
        {name: _plain(value) for name, value in data["environment"].items()},
        [str(block) for part in ("prefix", "summary", "postfix") for block in added[part]],
    )


def _tests(results: Results, found: Mapping[str, list[dict[str, Any]]]) -> Iterator[Test]:
    owners = {entry.test: entry.id for entry in results.requirements if entry.test}
    entries = [(name, entry) for name, reports in found.items() for entry in reports]
    for k, (name, entry) in enumerate(entries):
        duration = entry["duration"]
        yield Test(
            f"test-{k}",
            name,
            entry["result"],
            owners.get(name),
            duration,
            _seconds(duration),
            entry["log"],
            entry["extras"],
        )


def _seconds(duration: str) -> float:
    """A duration as pytest-html writes it: ``12 ms`` or ``00:00:12``."""
    if milliseconds := re.fullmatch(r"(\d+) ms", duration):
        return int(milliseconds[1]) / 1000
    return sum(60.0**k * int(part) for k, part in enumerate(reversed(duration.split(":"))))


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return str(value)
