"""What a requirement test hands over, and what its reports make of the requirement.

The test's own process judges nothing. Its number and evidence travel in the report's
``user_properties``, as built-in types, whether or not there are workers. The controller judges
them, once, when it is told that the test has run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import pytest

from resnet8_eval import results
from resnet8_eval.checks import Check, failed, from_records
from resnet8_eval.record import RequirementResult
from resnet8_eval.report import words
from resnet8_eval.requirements import BY_ID, Requirement
from resnet8_eval.results import Outcome

MADE_IN: Final = "seconds in which what the tests need was made"
"""The property of the test that waited for it."""
_HANDED: Final = ("measured", "evidence", MADE_IN)
_IN_TEST_NAME: Final = re.compile(r"::test_([a-z]+)_(\d\d)_")


class Judge:
    """Hands over what a requirement is judged by."""

    def __init__(self, item: pytest.Item, requirement: Requirement) -> None:
        self._item = item
        self._requirement = requirement

    def judge(self, measured: float, checks: Iterable[Check] = ()) -> None:
        """Hand over the number, in the requirement's unit, and its evidence."""
        evidence = json.dumps([asdict(check) for check in checks])
        self._item.user_properties += [("measured", float(measured)), ("evidence", evidence)]

    def judge_checks(self, checks: Iterable[Check]) -> None:
        """Hand over how many checks fail; a test without any fails, for it has no evidence."""
        evidence = list(checks)
        if not evidence:
            pytest.fail(f"{self._requirement.id} not met: nothing was checked", pytrace=False)
        self.judge(len(failed(evidence)), evidence)


def shortfall(requirement: Requirement, properties: Iterable[tuple[str, Any]]) -> str:
    """Why what a test handed over does not meet its requirement; empty if it does.

    `properties` are the `user_properties` of the test.
    """
    handed = list(properties)
    numbers, evidence = _numbers(handed), _evidence(handed)
    broken = failed(evidence)
    if not numbers:
        said = (
            f"its test ended without measuring {requirement.quantity}; "
            "a requirement test must call requirement.judge"
        )
    elif len(numbers) > 1:
        said = "its test judged more than once, or was run more than once"
    elif broken or not requirement.is_met_by(numbers[0]):
        said = "\n  ".join([sentence(requirement, numbers[0]), *map(str, broken)])
    else:
        return ""
    return f"{requirement.id} not met: {said}"


class Verdicts:
    """What was reported of each requirement test; `register` is what is required, by ID."""

    def __init__(self, register: Mapping[str, Requirement]) -> None:
        self._register = register
        self._tests: dict[str, _Reported] = {}

    def note(self, report: pytest.TestReport) -> None:
        """Note a report, and make it a failed one if its test does not meet its requirement."""
        name = id_in(report.nodeid)
        if name is not None:
            reported = _Reported(self._register[name], report.nodeid)
            self._tests.setdefault(name, reported).note(report)

    def outcomes(self, kind: str | None) -> dict[str, Outcome]:
        """What was found out, by ID. Tests that used different assets meet nothing.

        `kind` names the assets of the controller itself, if it has any.
        """
        found = {name: test.outcome() for name, test in self._tests.items()}
        kinds = {kind, *(dict(test.properties).get("assets") for test in self._tests.values())}
        kinds.discard(None)
        if len(kinds) <= 1:
            return found
        reason = f"ran while other tests used other assets ({', '.join(sorted(map(str, kinds)))})"
        return {
            name: replace(one, status="not met", reason=one.reason or reason, decided=False)
            for name, one in found.items()
        }


@dataclass
class _Reported:
    """What was reported of one requirement test."""

    requirement: Requirement
    nodeid: str
    phases: dict[str | None, str] = field(default_factory=dict)
    reason: str | None = None
    properties: list[tuple[str, Any]] = field(default_factory=list)

    def note(self, report: pytest.TestReport) -> None:
        """Note one report; the report of a subtest or of a crashed worker does not end a phase."""
        if "call" not in self.phases:
            # A crashed worker's report has no properties; keep what was measured before the crash.
            self.properties = list(report.user_properties) or self.properties
        elif report.when == "call":  # run again, as with --dist=each
            self.properties += report.user_properties
        expected_to_fail = hasattr(report, "wasxfail")
        if type(report) is pytest.TestReport:
            self.phases[report.when] = "xfail" if expected_to_fail else report.outcome
            if report.when == "call" and report.passed and not expected_to_fail:
                lacking = shortfall(self.requirement, self.properties)
                if lacking:
                    report.outcome, report.longrepr = "failed", lacking
        if report.failed:
            self.reason = _last_line(report)
        elif report.skipped:
            self.reason = f"was skipped: {_last_line(report)}"
        elif expected_to_fail:
            self.reason = "was marked as an expected failure"
        elif not report.passed:
            self.reason = f"ended as {report.outcome}"

    def outcome(self) -> Outcome:
        """What that makes of the requirement; all three phases must have passed to meet it."""
        passed = dict.fromkeys(("setup", "call", "teardown"), "passed")
        finished = passed.keys() <= self.phases.keys()
        reason = self.reason or (None if finished else "did not finish")
        # JSON cannot express NaN or infinity; the reason says what was measured.
        numbers = _numbers(self.properties)
        measured = numbers[0] if len(numbers) == 1 and math.isfinite(numbers[0]) else None
        return Outcome(
            status="met" if reason is None else "not met" if self.reason else "not evaluated",
            measured=measured,
            evidence=tuple(_evidence(self.properties)),
            test=self.nodeid,
            reason=reason,
            decided=measured is not None and self.phases == passed,
        )


def readable(
    properties: Iterable[tuple[str, Any]], register: Mapping[str, Requirement]
) -> list[tuple[str, Any]]:
    """What a test handed over as a JUnit file shows it: rounded numbers, and evidence in words.

    `register` is what the run required, by ID. `user_properties` that are not of this suite stay as
    they are.
    """
    handed = list(properties)
    requirement = register.get(str(dict(handed).get("requirement")))
    if requirement is None:
        return handed
    others, numbers = [one for one in handed if one[0] not in _HANDED], _numbers(handed)
    told = {}
    if len(numbers) == 1:
        measured, digits = numbers[0], words.decimals(entry(requirement, numbers[0]))
        told = {
            "title": requirement.title,
            "threshold": requirement.required,
            "judged": sentence(requirement, measured),
            "measured": f"{round(measured, digits):.10g}",
            "margin": f"{round(requirement.margin(measured), digits):.10g}",
        }
    evidence = [("evidence", words.check(check)) for check in _evidence(handed)]
    return [*others, *told.items(), *evidence]


def id_in(nodeid: str) -> str | None:
    """The requirement in the name of a test; a crashed worker's report carries nothing else."""
    found = _IN_TEST_NAME.search(nodeid)
    name = f"{found[1].upper()}-{found[2]}" if found else None
    return name if name in BY_ID else None


def sentence(requirement: Requirement, measured: float) -> str:
    """Measured, required and margin in one line."""
    return words.judged(entry(requirement, measured))


def entry(requirement: Requirement, measured: float) -> RequirementResult:
    """A measurement as the record holds it, for the report's words."""
    return results.requirement(requirement, Outcome("met", measured), standin=False)


def line(
    report: pytest.CollectReport | pytest.TestReport, register: Mapping[str, Requirement]
) -> str | None:
    """One line on a requirement test that was carried out: ID, measured, required, margin."""
    if report.when != "call" or type(report) is not pytest.TestReport or report.skipped:
        return None
    found = dict(report.user_properties)
    if len(_numbers(report.user_properties)) != 1 or found.get("requirement") not in register:
        return None
    requirement = register[str(found["requirement"])]
    good = "met" if found.get("assets") == "real" else "passed"
    word = good if report.passed else "NOT MET"
    return f"{requirement.id:8}{word:8}{sentence(requirement, float(str(found['measured'])))}"


def _numbers(properties: Iterable[tuple[str, Any]]) -> list[float]:
    return [value for key, value in properties if key == "measured"]


def _evidence(properties: Iterable[tuple[str, Any]]) -> list[Check]:
    return from_records(json.loads(dict(properties).get("evidence", "[]")))


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longreprtext if crash is None else crash.message
    lines = [" ".join(line.removeprefix("Failed: ").split()) for line in text.splitlines()]
    # Under xdist a report without a place in the code starts with the worker's name.
    said = [line for line in lines if line and not line.startswith("[gw")]
    given = [line for line in said if line.startswith("given: ")]
    told = [*said[:1], *(given or said[1:])[:1]]
    return "; ".join(line.removesuffix(".") for line in told) or "failed"
