"""The record that the suite writes and the report reads: results.json and its contract."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from resnet8_eval import configurations, environment, lanes
from resnet8_eval.configurations import Configuration
from resnet8_eval.errors import ResultsError
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.requirements import MILESTONES, REGISTER, Requirement, of_milestone

SCHEMA_VERSION: Final = 1
_MOST_LEVELS: Final = 50
Results = dict[str, Any]
Status = Literal["met", "not met", "not evaluated"]


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
        Checks, each ``{"name", "expected", "observed", "ok"}``.
    test
        Node ID of the test.
    reason
        Why it is not met, in one line.
    decided
        Whether its number settled it: measured, and nothing but the number kept it from *met*.
    """

    status: Status
    measured: float | None = None
    evidence: list[dict[str, Any]] = field(default_factory=list)
    test: str | None = None
    reason: str | None = None
    decided: bool = False


def build(
    pipeline: Pipeline,
    outcomes: Mapping[str, Outcome],
    *,
    complete: bool,
    command: str,
    started: float,
) -> Results:
    """Gather a run into the form of the contract.

    Parameters
    ----------
    pipeline
        Whose artefacts hold the numbers; nothing is made.
    outcomes
        By requirement ID; those that are absent were not asked for.
    complete
        Whether the run ended by itself and the number of every requirement settled it.
    command
        What reproduces the run.
    started
        When the run started (seconds since the epoch); an older artefact came from the cache.

    Returns
    -------
    dict
        Valid by :func:`validate`.
    """
    assets = pipeline.settings.assets
    standin = assets.kind == "stand-in"
    available = {name: found for name in pipeline.stages if (found := pipeline.peek(name))}
    onnx = available.get("onnx")
    calibration = available.get("calibration")
    sensitivity = available.get("sensitivity/tuned")
    results = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "selected": [entry.id for entry in REGISTER if entry.id in outcomes],
        "complete": complete,
        "assets": {
            "kind": assets.kind,
            "model_name": assets.model.name,
            "model_sha256": assets.model_sha256,
            "user_model": assets.user_model,
            "dataset_md5": dict(assets.dataset_md5),
        },
        "environment": {
            **environment.describe(),
            "threads": {"per_stage": lanes.THREADS, "stages_at_once": lanes.SLOTS},
        },
        "baseline": _baseline(pipeline),
        "milestones": {
            milestone: _milestone(milestone, outcomes, standin) for milestone in MILESTONES
        },
        "requirements": [
            _requirement(entry, outcomes.get(entry.id), standin) for entry in REGISTER
        ],
        "configurations": [
            _configuration(pipeline, row)
            for row in configurations.CONFIGURATIONS
            if f"compare/{row.name}" in available and f"scores/{row.name}" in available
        ],
        "calibration": None if calibration is None else calibration.record,
        "sensitivity": None if sensitivity is None else sensitivity.record,
        "conversion": None
        if onnx is None
        else {
            key: onnx.record[key] for key in ("opset", "producer", "steps", "warnings", "versions")
        },
        "timing": {name: artifact.seconds for name, artifact in available.items()},
        "cache": {
            name: "hit" if artifact.created < started else "miss"
            for name, artifact in available.items()
        },
        "needs": {name: list(pipeline.stages[name].needs) for name in available},
    }
    validate(results)
    return results


def milestone_sentence(name: str, milestone: Mapping[str, Any]) -> str:
    """One line for one milestone, such as ``v1_2 met: 12 of 12``."""
    sentence = f"{name} {milestone['verdict']}: {milestone['met']} of {milestone['total']}"
    return f"{sentence} — {milestone['reason']}" if milestone["reason"] else sentence


def validate(results: object, source: str = "results") -> None:
    """Hold results against ``results.schema.json``.

    Parameters
    ----------
    results
        What was read or built.
    source
        Where it comes from, for the message.

    Raises
    ------
    ResultsError
        Naming the first place that breaks the contract.
    """
    import jsonschema

    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema()).iter_errors(results)
    )
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path) or "the top level"
        raise ResultsError(
            f"{source} does not keep the contract of results.json.",
            expected=f"what resnet8_eval/results.schema.json says of {where}",
            given=error.message[:300],
            next_step="make it anew with: make report",
        )


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of results.json."""
    path = Path(__file__).with_name("results.schema.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def read(path: Path) -> Results:
    """Read and validate a results file.

    Raises
    ------
    ResultsError
        If it is missing, not JSON, or breaks the contract.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        _demand_shallow(results)
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(
            f"{path} cannot be read.",
            expected="a results.json written by this suite",
            given=f"{type(error).__name__}: {error}",
            next_step="make one with: make report",
        ) from error
    validate(results, str(path))
    return dict(results)


def _demand_shallow(results: object) -> None:
    """Refuse what nobody could walk through, such as the writers of reports, one call a level."""
    level = [results]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for entry in level
            if isinstance(entry, dict | list)
            for inner in (entry.values() if isinstance(entry, dict) else entry)
        ]
    if level:
        raise ValueError(f"nested more than {_MOST_LEVELS} levels deep")


def write(results: Results, path: Path) -> None:
    """Write results as UTF-8 with sorted keys, whole or not at all."""
    text = json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _baseline(pipeline: Pipeline) -> dict[str, Any] | None:
    baseline = configurations.baseline().name
    scores = pipeline.peek(f"scores/{baseline}")
    if scores is None:
        return None
    return {
        "configuration": baseline,
        **{key: scores.record[key] for key in ("correct", "total", "accuracy_percent")},
    }


def _milestone(milestone: str, outcomes: Mapping[str, Outcome], standin: bool) -> dict[str, Any]:
    entries = of_milestone(milestone)
    found = [outcomes[entry.id] for entry in entries if entry.id in outcomes]
    met = sum(outcome.status == "met" for outcome in found)
    if not found:
        verdict, reason = "not evaluated", None
    elif standin:
        verdict = "not evaluated"
        reason = f"stand-in; {met} of {len(entries)} tests passed on it"
        met = 0
    elif met == len(entries):
        verdict, reason = "met", None
    else:
        verdict, reason = "not met", "; ".join(_shortfalls(entries, outcomes))
    return {"verdict": verdict, "met": met, "total": len(entries), "reason": reason}


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


def _requirement(entry: Requirement, outcome: Outcome | None, standin: bool) -> dict[str, Any]:
    found = outcome or Outcome("not evaluated")
    measured = found.measured
    return {
        "id": entry.id,
        "title": entry.title,
        "milestone": entry.milestone,
        "quantity": entry.quantity,
        "status": "not evaluated" if standin else found.status,
        "outcome_on_standin": found.status if standin and found.status != "not evaluated" else None,
        "measured": measured,
        "threshold": entry.threshold,
        "direction": entry.direction,
        "unit": entry.unit,
        "margin": None if measured is None else entry.margin(measured),
        "evidence": found.evidence,
        "test": found.test,
        "reason": found.reason,
    }


def _found_by(pipeline: Pipeline, stage: str, *keys: str) -> dict[str, Any]:
    """Parts of a stage's record; nothing where the run had no need of the stage."""
    artifact = pipeline.peek(stage) if stage in pipeline.stages else None
    return {} if artifact is None else {key: artifact.record[key] for key in keys}


def _configuration(pipeline: Pipeline, row: Configuration) -> dict[str, Any]:
    name = row.name
    scores = pipeline.artifact(f"scores/{name}").record
    compared = pipeline.artifact(f"compare/{name}").record
    described: dict[str, Any] = {
        "framework": row.framework,
        "dtype": row.dtype,
        "weights_dtype": row.weights_dtype,
        "activations_dtype": row.activations_dtype,
        "execution": row.execution,
    }
    if row.recipe:
        model = pipeline.artifact(f"model/{name}").record
        described |= {
            "recipe": {
                **row.recipe.describe(),
                **pipeline.artifact(f"parameters/{row.recipe.name}").record["method"],
                **({"engine": model["engine"]} if model.get("engine") else {}),
                **({"runs_as": model["runs_as"]} if model.get("runs_as") else {}),
            },
            "calibration_seed": pipeline.settings.calibration_seed,
            "quantized_ops": sum(model["quantized_ops"].values()),
            "float_ops": sum(model["float_ops"].values()),
            "census": {key: model[key] for key in ("quantized_ops", "float_ops", "weights")},
            "support": model.get("support"),
            "kernels": model.get("kernels"),
            "default_kernels": model.get("default_kernels"),
            **_found_by(pipeline, f"proof/{name}", "reference", "tensors"),
            **_found_by(pipeline, f"layers/{name}", "layers"),
        }
    else:
        described |= {
            "recipe": {},
            "calibration_seed": None,
            "quantized_ops": 0,
            "float_ops": None,
            "census": None,
            "support": None,
        }
    files = {
        "model": str(model_path(pipeline, row)),
        "scores": str(pipeline.artifact(f"scores/{name}").path("scores.npy")),
    }
    return {"name": name, "files": files, **described, **scores, **compared}
