"""Judgements that several requirement families share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from resnet8_eval import configurations
from resnet8_eval.checks import Check, at_most, equal, from_records
from resnet8_eval.configurations import Configuration
from resnet8_eval.inputs import Settings
from resnet8_eval.manifest import fixtures_dir
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.preprocess import RAW
from resnet8_eval.report import words
from resnet8_eval.report.diagnosis import BASELINE_CHECK, EXACT_CHECK
from resnet8_eval.requirements import PARITY_ATOL, asked
from resnet8_eval.stages import of_seed
from resnet8_eval.store import Artifact, file_sha256
from resnet8_eval.verdicts import Judge, entry

BASELINE = configurations.baseline()
ONNX, TORCH = (
    next(row for row in configurations.CONFIGURATIONS if row.framework == name and not row.recipe)
    for name in ("onnxruntime", "torch")
)
"""The float32 rows."""


def stages(kind: str, *rows: Configuration) -> list[str]:
    """The stages of one kind of some rows."""
    return [f"{kind}/{row.name}" for row in rows]


@dataclass(frozen=True)
class _WithSeed:
    """A run with one of its further calibration seeds; it shares what does not depend on that."""

    run: Pipeline
    seed: int

    @property
    def settings(self) -> Settings:
        return self.run.settings

    def artifact(self, name: str) -> Artifact:
        seeded = of_seed(name, self.seed)
        return self.run.artifact(seeded if seeded in self.run.stages else name)


def each_seed(run: Pipeline) -> Iterator[tuple[str, Pipeline]]:
    """The run, and the same with each further calibration seed; each with what its checks begin."""
    yield "", run
    for seed in run.settings.further_seeds:
        yield f"seed {seed}: ", cast("Pipeline", _WithSeed(run, seed))


def begun(said: str, checks: Iterable[Check]) -> list[Check]:
    """The checks, with names that begin with `said`."""
    return [replace(check, name=f"{said}{check.name}") for check in checks]


def scores_record(run: Pipeline, row: Configuration) -> dict[str, Any]:
    """What the evaluation of one row recorded."""
    return run.artifact(f"scores/{row.name}").record


def source_checks(run: Pipeline, *rows: Configuration) -> list[Check]:
    """Whether scores come from the very models that are said to have given them."""
    return [
        equal(
            f"{row.name}, sha256 of the model that gave the scores",
            # The user's file may be another by now; this run speaks of the one that it was given.
            run.settings.assets.model_sha256
            if row == BASELINE
            else file_sha256(model_path(run, row)),
            scores_record(run, row)["model_sha256"],
        )
        for row in rows
    ]


def known_facts(run: Pipeline) -> dict[str, Any] | None:
    """What is known of a model and images of the manifest, fed raw pixels."""
    facts = json.loads((fixtures_dir() / "expected.json").read_text())
    fact = facts.get(run.settings.assets.model_sha256)
    known = fact and fact["assets"] == run.settings.assets.kind
    return fact if known and run.settings.preprocessing == RAW else None


def fact_checks(run: Pipeline, row: Configuration) -> list[Check]:
    """For a model and images of the manifest: the known float32 count, to the image."""
    fact = known_facts(run)
    if fact is None:
        return []
    record = scores_record(run, row)
    return [
        equal(
            f"{row.name}, correct of total",
            f"{fact['correct']}/{fact['total']}",
            f"{record['correct']}/{record['total']}",
        )
    ]


def judge_whole_test_set(
    requirement: Judge, run: Pipeline, *rows: Configuration, checks: list[Check]
) -> None:
    """Judge the share of test images that every one of the rows scored."""
    from resnet8_eval.cifar10 import read_split

    assets = run.settings.assets
    total = len(read_split(assets.dataset, "test", assets.dataset_sha256).labels)
    quantized, shares, found = any(row.recipe for row in rows), [], []
    for said, at in each_seed(run) if quantized else [("", run)]:
        records = {row.name: scores_record(at, row) for row in rows}
        shares += [100 * record["total"] / total for record in records.values()]
        counts = [
            equal(
                f"{name}, images in the confusion matrix", total, sum(map(sum, each["confusion"]))
            )
            for name, each in records.items()
        ]
        found += begun(said, [*counts, *source_checks(at, *rows)])
    requirement.judge(min(shares), [*found, *checks])


def proof_checks(run: Pipeline, *rows: Configuration) -> list[Check]:
    """Whether the right network was quantized, as decided, and kernels compute what they say."""
    return [check for said, at in each_seed(run) for check in begun(said, _proofs(at, rows))]


def _proofs(run: Pipeline, rows: Sequence[Configuration]) -> list[Check]:
    recipes = {row.recipe.key: None for row in rows if row.recipe and not row.is_stock}
    checks: list[Check] = []
    for name in recipes:
        checks += from_records(run.artifact(f"parameters/{name}").record["checks"])
    for row in rows:
        name = row.name
        record = run.artifact(f"proof/{name}").record
        checks += begun(f"{name}, ", from_records(record["checks"]))
        found = record["exact_integers"]
        if found is not None:
            apart = found["disagreements"]
            seen = f"{apart}; probable cause: {found['probable_cause']}" if apart else "0"
            expected = f"0 of {found['total']}"
            checks.append(Check(f"{name}, {EXACT_CHECK}", expected, seen, not apart))
            if row.framework == "onnxruntime":  # PyTorch's may be a step apart; no class is
                title = f"{name}, largest difference of a score from exact integers"
                checks.append(at_most(title, PARITY_ATOL, found["largest_difference"]))
    return checks


def judge_classes(requirement: Judge, run: Pipeline, row: Configuration) -> None:
    """Judge the number of classes that have an accuracy, and that they add up."""
    from resnet8_eval.cifar10 import read_class_names

    record = scores_record(run, row)
    names = list(read_class_names(run.settings.assets.dataset, run.settings.assets.dataset_sha256))
    per_class = record["per_class"]
    reported = [e for e in per_class if e["total"] and e["accuracy_percent"] is not None]
    wrong = [
        e["name"]
        for e in reported
        if abs(e["accuracy_percent"] - 100 * e["correct"] / e["total"]) > 1e-9
    ]
    images, correct = (sum(e[key] for e in per_class) for key in ("total", "correct"))
    requirement.judge(
        len(reported),
        [
            equal("class names, in label order", names, [e["name"] for e in per_class]),
            equal("images over all classes", record["total"], images),
            equal("correct over all classes", record["correct"], correct),
            equal("classes whose share is not correct / total", [], wrong),
        ],
    )


def judge_deltas(requirement: Judge, run: Pipeline, *rows: Configuration) -> None:
    """Judge how many rows report a delta that is what it says, from a baseline that is one."""
    baseline = scores_record(run, BASELINE)
    checks, right = [_baseline_check(run, baseline["accuracy_percent"])], []
    for said, at in each_seed(run):
        deltas = []
        for row in rows:
            record, name = scores_record(at, row), row.name
            delta = at.artifact(f"compare/{name}").record["delta_pp"]
            expected = record["accuracy_percent"] - baseline["accuracy_percent"]
            deltas.append(
                Check(
                    f"{name}, delta from {baseline['accuracy_percent']:.2f} %",
                    f"{words.signed(expected)} pp",
                    f"{words.signed(delta)} pp",
                    abs(delta - expected) < 1e-9,
                )
            )
        right.append(sum(check.ok for check in deltas))
        checks += begun(said, deltas)
    requirement.judge(min(right), checks + fact_checks(run, BASELINE))


def _baseline_check(run: Pipeline, accuracy: float) -> Check:
    """Whether there is anything to lose: a network that guesses loses nothing to 8 bits."""
    required = asked(run.settings.min_accuracy)["EVAL-03"]
    ok, seen = required.is_met_by(accuracy), words.measured(entry(required, accuracy))
    seen += "" if ok else "; a delta from such a baseline does not say what quantization costs"
    return Check(BASELINE_CHECK, required.required, seen, ok)


def judge_quantized(requirement: Judge, run: Pipeline, *rows: Configuration) -> None:
    """Judge the weighted layers left in float besides those that the recipe names."""
    left, checks = 0, []
    for (said, at), row in itertools.product(each_seed(run), rows):
        checks_of_row, left_of_row = _quantized_as_named(at, row)
        left += left_of_row
        checks += begun(f"{said}{row.name}, ", checks_of_row)
    requirement.judge(left, checks)


def _quantized_as_named(run: Pipeline, row: Configuration) -> tuple[list[Check], int]:
    """Checks of stored types and counted operators, and the layers wrongly left in float."""
    assert row.recipe is not None
    record = run.artifact(f"model/{row.name}").record
    layers = len(record["weights"])
    in_float = {place % layers for place in row.recipe.float_layers}
    stored = ["float32" if n in in_float else row.weights_dtype for n in range(layers)]
    products = int(layers - 1 not in in_float)
    convolutions = layers - len(in_float) - products
    quantized_convolutions, float_convolutions = record["convolutions"]
    quantized_products, float_products = record["products"]
    checks = [
        equal("stored weights", stored, list(record["weights"].values())),
        equal("stored activations", [row.activations_dtype], record["activations"]),
        equal("quantized convolutions", convolutions, quantized_convolutions),
        equal("quantized matrix products", products, quantized_products),
    ]
    kernels = record.get("kernels")
    if kernels is not None and not row.is_stock:
        integers, floats = (kernels.get(name, 0) for name in ("QLinearConv", "Conv"))
        checks += [
            equal("convolutions that run in integers", convolutions, integers),
            equal("convolutions that run in float", layers - 1 - convolutions, floats),
        ]
    if tried := record.get("lowering"):
        if not run.settings.assets.user_model:  # where both may give the same answers by chance
            checks.append(
                Check(
                    "torchao's lowering to integer kernels gives other answers than the model",
                    f"on some of {tried['images']} images, or it fails",
                    tried["said"] or f"on {tried['differing']}",
                    tried["differing"] != 0,
                )
            )
    elif row.execution == "reference":
        support = record["support"]["unsigned_weights"]
        checks.append(equal("integer kernels for such weights, as PyTorch says", False, support))
    return checks, float_convolutions + float_products - len(in_float)
