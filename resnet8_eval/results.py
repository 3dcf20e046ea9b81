"""results.json: read and written in its form, and the verdicts that it holds.

``python -m resnet8_eval.results`` writes ``results.schema.json`` anew.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from resnet8_eval import results_v1
from resnet8_eval.checks import Check
from resnet8_eval.errors import ResultsError
from resnet8_eval.record import Milestone, RequirementResult, Results
from resnet8_eval.requirements import ON_DEMAND, Requirement, of_milestone
from resnet8_eval.row_record import Status

SCHEMA_VERSION: Final = 2
SCHEMA: Final = Path(__file__).with_name("results.schema.json")


def schema() -> str:
    """The JSON Schema of results.json, as text."""
    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "resnet8-eval results",
        **msgspec.json.schema(Results),
    }

    def dedented(part: dict[str, Any]) -> dict[str, Any]:
        # Docstrings, which Python dedents from 3.13 on, and the schema is the same on all.
        said = part.get("description")
        return part | {"description": inspect.cleandoc(said)} if isinstance(said, str) else part

    plain = json.loads(json.dumps(found), object_hook=dedented)
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def checked(found: object, source: str = "what the run found") -> Results:
    """The record of what was found, in built-in types and parts of the record.

    Raises
    ------
    ResultsError
        Naming `source` and the first place that breaks the form.
    """
    try:
        return msgspec.convert(found, Results)
    except msgspec.ValidationError as error:
        raise ResultsError(
            f"{source} does not keep the form of results.json.",
            expected="what resnet8_eval/results.schema.json says",
            given=str(error)[:300],
            next_step="make it anew with: make report",
        ) from error


def encode(results: Results) -> str:
    """The text of results.json; ResultsError if a number is NaN or infinite."""
    try:
        text = json.dumps(
            msgspec.to_builtins(results), indent=1, ensure_ascii=False, allow_nan=False
        )
    except ValueError as error:
        raise ResultsError(
            "The results hold a number that JSON cannot express.",
            expected="finite numbers",
            given=str(error),
            next_step="look into the stage that gave it; nothing was written",
        ) from error
    return text + "\n"


def read(path: Path) -> Results:
    """Read a results file of version 1 or 2; ResultsError if it is none."""
    try:
        found = msgspec.json.decode(path.read_bytes())
        if isinstance(found, dict) and found.get("schema_version") == 1:
            found = results_v1.upgraded(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(
            f"{path} cannot be read.",
            expected="a results.json written by this suite",
            given=f"{type(error).__name__}: {error}",
            next_step="make one with: make report",
        ) from error
    return checked(found, str(path))


@dataclass(frozen=True)
class Outcome:
    """What a run found out about one requirement.

    Attributes
    ----------
    status
        ``"met"`` only if its test ran, measured, and passed in every phase.
    measured
        The number, in the requirement's unit; None where none was obtained.
    evidence
        The checks that it was judged by.
    test
        Node ID.
    reason
        Why it is not met, in one line.
    decided
        Whether the number alone decided: it was measured, and nothing else prevented *met*.
    """

    status: Status
    measured: float | None = None
    evidence: tuple[Check, ...] = ()
    test: str | None = None
    reason: str | None = None
    decided: bool = False


def requirement(entry: Requirement, outcome: Outcome | None, standin: bool) -> RequirementResult:
    """What the record says of a requirement; `outcome` is None if it was not asked for."""
    found = outcome or Outcome("not evaluated")
    return RequirementResult(
        **asdict(entry),
        status="not evaluated" if standin else found.status,
        outcome_on_standin=found.status if standin and found.status != "not evaluated" else None,
        measured=found.measured,
        margin=None if found.measured is None else entry.margin(found.measured),
        evidence=found.evidence,
        test=found.test,
        reason=found.reason,
    )


def milestone(
    name: str, outcomes: Mapping[str, Outcome], standin: bool, stopped: str | None
) -> Milestone:
    """The verdict on a milestone.

    Parameters
    ----------
    outcomes
        By requirement ID; those that are absent were not asked for.
    standin
        Whether the run was on the stand-in, on which nothing is ever met.
    stopped
        What ended the run before its time; what it had not reached is then not evaluated.
    """
    entries = of_milestone(name)
    found = [outcomes[entry.id] for entry in entries if entry.id in outcomes]
    met = sum(outcome.status == "met" for outcome in found)
    if not found:
        reason = f"judged only where it is asked for, with -m {name}"
        return Milestone("not evaluated", 0, len(entries), reason if name in ON_DEMAND else None)
    if standin:
        absent = len(entries) - sum(outcome.status != "not evaluated" for outcome in found)
        left = f", {absent} not run" if absent else ""
        reason = f"stand-in; {met} of {len(entries)} tests passed on it{left}"
        return Milestone("not evaluated", 0, len(entries), reason)
    if met == len(entries):
        return Milestone("met", met, len(entries), None)
    if stopped and not any(outcome.status == "not met" for outcome in found):
        reason = f"ended by {stopped}; {met} of {len(entries)} were met before"
        return Milestone("not evaluated", met, len(entries), reason)
    return Milestone("not met", met, len(entries), "; ".join(_shortfalls(entries, outcomes)))


def _shortfalls(entries: Iterable[Requirement], outcomes: Mapping[str, Outcome]) -> Iterable[str]:
    absent = []
    for entry in entries:
        outcome = outcomes.get(entry.id)
        if outcome is None:
            absent.append(entry.id)
        elif outcome.status != "met":
            yield f"{entry.id} {outcome.reason or outcome.status}"
    if absent:
        yield f"not run: {', '.join(absent)}"


if __name__ == "__main__":
    SCHEMA.write_text(schema(), encoding="utf-8")
