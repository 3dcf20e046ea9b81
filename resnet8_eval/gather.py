"""From a run's artefacts and verdicts to its record. Nothing is made here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from resnet8_eval import advanced_record as parts
from resnet8_eval import configurations, environment, gate, lanes, results
from resnet8_eval.advanced import stages as advanced
from resnet8_eval.configurations import Configuration, Recipe
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.preprocess import RAW
from resnet8_eval.record import Baseline, Conversion, Results, Timing, Tuning
from resnet8_eval.requirements import MILESTONES, asked
from resnet8_eval.results import Outcome
from resnet8_eval.row_record import Census, ExpectedRow, Paired, Part
from resnet8_eval.stages import of_seed
from resnet8_eval.statistics import over_seeds
from resnet8_eval.store import Artifact, Record


def gather(
    pipeline: Pipeline,
    outcomes: Mapping[str, Outcome],
    *,
    complete: bool,
    command: str,
    started: float,
    stopped: str | None = None,
    checkout: environment.Checkout | None = None,
) -> Results:
    """Gather a run into its record.

    Parameters
    ----------
    pipeline
        Whose artefacts hold the numbers.
    outcomes
        By requirement ID; those that are absent were not asked for.
    complete
        Whether the run ended by itself, with every requirement decided by its number.
    command
        What reproduces the run.
    started
        When the run started, by the clock of `time.monotonic`.
    stopped
        What ended the run before its time, and where; None if it ended by itself.
    checkout
        The code's when the run began; None for that of now.

    Raises
    ------
    ResultsError
        If an artefact's record does not fit.
    """
    assets = pipeline.settings.assets
    standin = assets.kind == "stand-in"
    how = pipeline.settings.preprocessing
    register = asked(pipeline.settings.min_accuracy).values()
    there = {name: found for name in pipeline.stages if (found := pipeline.peek(name))}
    # A run with --fresh that is ended leaves stages in the cache without those that they are of.
    made = {name: there[name] for name in there if there.keys() >= {*pipeline.closure([name])}}
    rows = configurations.CONFIGURATIONS
    compared = [row for row in rows if made.keys() >= {f"compare/{row.name}", f"scores/{row.name}"}]
    baseline = _record(made, f"scores/{rows[0].name}")
    return results.checked(
        {
            "schema_version": results.SCHEMA_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "selected": [entry.id for entry in register if entry.id in outcomes],
            "complete": complete,
            "stopped": stopped,
            "assets": {
                "kind": assets.kind,
                "model_name": assets.model.name,
                "model_sha256": assets.model_sha256,
                "user_model": assets.user_model,
                "min_accuracy_percent": pipeline.settings.min_accuracy,
                "preprocessing": None if how == RAW else {"name": how.name, **how.describe()},
                "dataset_md5": dict(assets.dataset_md5),
            },
            "environment": {
                **environment.describe(checkout),
                "threads": {"per_stage": lanes.THREADS, "stages_at_once": lanes.SLOTS},
            },
            "baseline": baseline
            and _part(
                Baseline,
                baseline,
                configuration=rows[0].name,
                classes=[entry["name"] for entry in baseline["per_class"]],
            ),
            "milestones": {
                name: results.milestone(name, outcomes, standin, stopped) for name in MILESTONES
            },
            "requirements": [
                results.requirement(entry, outcomes.get(entry.id), standin) for entry in register
            ],
            "expected": [*map(ExpectedRow.of, rows)],
            "configurations": [_configuration(pipeline, made, row) for row in compared],
            "calibration": _record(made, "calibration"),
            "sensitivity": _of_first_recipe(made, "sensitivity"),
            "network": _network(made),
            "conversion": _part(Conversion, _record(made, "onnx")),
            "tuning": [
                _part(Tuning, made[stage].record)
                for stock, tuned in configurations.tunings()
                if (stage := f"tuning/{tuned.name}") in made and {stock, tuned} <= {*compared}
            ],
            "agreement": _record(made, "agreement"),
            "timing": _part(Timing, _record(made, "latency"), processor=environment.cpu()["model"]),
            "advanced": _advanced(made),
            "gate": _gate(pipeline, made),
            "preprocessings": _record(made, "preprocessings"),
            "seeds": _seeds(pipeline, made),
            "stages": {name: _stage(pipeline, made[name], name, started) for name in made},
        }
    )


def _record(made: Mapping[str, Artifact], stage: str) -> Record | None:
    return made[stage].record if stage in made else None


def _part(kind: type[Part], record: Record | None, **more: object) -> Record | None:
    """What a record, and `more`, have of a part's fields; None without a record."""
    found = record and {**record, **more}
    return found and {key: found[key] for key in kind.__struct_fields__ if key in found}


def _stage(pipeline: Pipeline, artifact: Artifact, name: str, started: float) -> dict[str, Any]:
    stage = pipeline.stages[name]
    hit = artifact.run != pipeline.settings.run
    ended = artifact.created - started
    return {
        "lane": stage.lane,
        "needs": stage.needs,
        "seconds": artifact.seconds,
        "cache": "hit" if hit else "miss",
        "started": None if hit else round(ended - artifact.seconds, 3),
        "ended": None if hit else round(ended, 3),
    }


def _of_first_recipe(made: Mapping[str, Artifact], kind: str) -> dict[str, Any] | None:
    """What a stage found of the first recipe for which it was made."""
    for recipe in configurations.recipes():
        if record := _record(made, f"{kind}/{recipe.key}"):
            return {"recipe": recipe.name, **record}
    return None


def _network(made: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """The network as the first recipe quantizes it."""
    found = _of_first_recipe(made, "parameters")
    return found and {
        "recipe": found["recipe"],
        "images": made["calibration"].record["count"],
        "layers": found["drawn"],
    }


def _seeds(pipeline: Pipeline, made: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """What rows did with each calibration seed; only those that every seed has made."""
    settings = pipeline.settings
    if not settings.further_seeds:
        return None
    rows, total = [], 0
    for row in configurations.quantized():
        names = [row.name, *(of_seed(row.name, seed) for seed in settings.further_seeds)]
        stages = [(f"scores/{name}", f"compare/{name}") for name in names]
        if made.keys() >= set(chain.from_iterable(stages)):
            found = [made[one].record | made[other].record for one, other in stages]
            total = found[0]["total"]
            figures = {key: over_seeds([each[key] for each in found]) for key in _OVER_SEEDS}
            correct = [each["correct"] for each in found]
            rows.append({"name": row.name, "correct": correct, **figures})
    seeds = [settings.calibration_seed, *settings.further_seeds]
    return {"seeds": seeds, "total": total, "rows": rows} if rows else None


def _gate(pipeline: Pipeline, made: Mapping[str, Artifact]) -> dict[str, Any] | None:
    settings = pipeline.settings
    if settings.gate is None:
        return None
    compared = {}
    for row in configurations.gated():
        stage = f"compare/{row.name}"
        again = [of_seed(stage, seed) for seed in settings.further_seeds]
        every = [stage, *(name for name in again if name in pipeline.stages)]
        compared[row.name] = [_record(made, name) for name in every]
    return gate.judge(settings.gate, compared)


def _configuration(
    pipeline: Pipeline, made: Mapping[str, Artifact], row: Configuration
) -> dict[str, Any]:
    timed = (_record(made, "latency") or {"rows": {}})["rows"].get(row.name)
    return {
        **{key: getattr(row, key) for key in _OF_A_ROW},
        **(_quantized(pipeline, made, row.name, row.recipe) if row.recipe else _FLOAT),
        "files": {
            "model": str(model_path(pipeline, row)),
            "scores": str(made[f"scores/{row.name}"].path("scores.npy")),
        },
        **made[f"scores/{row.name}"].record,
        **made[f"compare/{row.name}"].record,
        **({field: timed[key] for field, key in _TIMED.items()} if timed else {}),
    }


def _advanced(made: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """What there is of v1_4; it may have been made by an earlier run."""
    found = [made[stage].record for stage in advanced.explorations() if stage in made]
    explored = [
        _part(parts.Granularity, each, cells=[_part(parts.Cell, cell) for cell in each["cells"]])
        for each in found
    ]
    first, choice = _record(made, "explored/0"), _record(made, advanced.CHOICE)
    rows = [
        _low_bit(parts.LowBit, name, record)
        for name in advanced.LOW_BIT
        if (record := _record(made, f"mixed/{name}")) and "checks" in record
    ]
    fine_tuned = [row for name in advanced.FINE_TUNED if (row := _fine_tuned(made, name))]
    if not explored and choice is None and not fine_tuned:
        return None
    return {
        "granularity": explored,
        "ranges": first["ranges"] if first else {},
        "mixed": _part(parts.Mixed, choice, rows=rows),
        "fine_tuned": fine_tuned,
        "means": [
            {"bits": bits, **mean}
            for bits in advanced.EPOCHS
            if (mean := _record(made, f"qat-mean/{bits}"))
        ],
    }


def _low_bit(kind: type[parts.LowBit], name: str, row: Record, **more: object) -> Record | None:
    return _part(kind, {**row, **row["exact_integers"]}, name=name, **more)


def _fine_tuned(made: Mapping[str, Artifact], name: str) -> dict[str, Any] | None:
    trained, stored, in_torch = (
        _record(made, f"{kind}/{name}") for kind in ("qat-training", "qat", "qat-torch")
    )
    if not trained or not stored:
        return None
    return _low_bit(
        parts.FineTuned,
        name,
        stored,
        training=_part(parts.Training, trained),
        beside=_part(Paired, stored["beside"]),
        torch=_part(parts.InTorch, in_torch),
    )


_OVER_SEEDS: Final = ("accuracy_percent", "delta_pp", "agreement_percent")
_OF_A_ROW: Final = (
    *("name", "framework", "dtype", "weights_dtype", "activations_dtype", "execution"),
)
_TIMED: Final = {"latency": "SingleStream", "throughput": "Offline", "answers": "answers"}
"""Fields of a configuration, and what the stage calls them."""
_MODEL: Final = ("support", "lowering", "kernels", "default_kernels")
_PROVED: Final = ("exact_integers", "tensors", "integers_sha256", "weights_bits", "needs")
_FLOAT: Final = {
    "recipe": None,
    "calibration_seed": None,
    "quantized_ops": 0,
    "float_ops": None,
    "census": None,
    "support": None,
}


def _method(made: Mapping[str, Artifact], recipe: Recipe) -> dict[str, Any]:
    """How the parameters were found, in words."""
    if recipe.by == "framework":
        return {"reduce_range": False, "method": {"quantizer": "the framework's own, its defaults"}}
    method = made[f"parameters/{recipe.key}"].record["method"]
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("name", "by")}
    return {
        "reduce_range": method["weight_limit"] < environment.WEIGHT_LIMIT,
        "method": {**settings, **method},
    }


def _quantized(
    pipeline: Pipeline, made: Mapping[str, Artifact], name: str, recipe: Recipe
) -> dict[str, Any]:
    """What a quantized row says of itself besides its scores."""
    model, proved = made[f"model/{name}"].record, _record(made, f"proof/{name}")
    return {
        "recipe": {
            "name": recipe.name,
            **_method(made, recipe),
            "engine": model.get("engine"),
            "runs_as": model.get("runs_as"),
        },
        "calibration_seed": pipeline.settings.calibration_seed,
        "quantized_ops": sum(model["quantized_ops"].values()),
        "float_ops": sum(model["float_ops"].values()),
        "census": _part(Census, model),
        **{key: model.get(key) for key in _MODEL},
        **({key: proved[key] for key in _PROVED} if proved else {}),
        **(_record(made, f"layers/{name}") or {}),
    }
