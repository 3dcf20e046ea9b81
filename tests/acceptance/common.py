"""Judgements that several requirement families share."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from resnet8_eval.assets import fixtures_dir
from resnet8_eval.checks import Check, equal, from_records
from resnet8_eval.convert.structure import CONVOLUTIONS
from resnet8_eval.pipeline import BASELINE, Pipeline, model_path
from resnet8_eval.quantize.recipes import RECIPES
from resnet8_eval.report import words
from resnet8_eval.requirements import MAX_KERNEL_DISAGREEMENT_PERCENT
from resnet8_eval.store import file_sha256
from resnet8_eval.verdicts import Judge

LAYERS = len(CONVOLUTIONS) + 1
CONVOLUTION_OPERATORS = ("Conv", "conv2d", "conv2d_relu", "_convolution")
PRODUCT_OPERATORS = ("Gemm", "MatMul", "linear", "addmm", "matmul", "qlinear_pointwise")


def scores_record(run: Pipeline, configuration: str) -> dict[str, Any]:
    """What the evaluation of one configuration recorded."""
    return run.artifact(f"scores/{configuration}").record


def source_checks(run: Pipeline, *configurations: str) -> list[Check]:
    """Whether scores come from the very models that are said to have given them."""
    return [
        equal(
            f"{name}, sha256 of the model that gave the scores",
            # The user's file may be another by now; this run speaks of the one that it was given.
            run.settings.assets.model_sha256
            if name == BASELINE
            else file_sha256(model_path(run, name)),
            scores_record(run, name)["model_sha256"],
        )
        for name in configurations
    ]


def fact_checks(run: Pipeline, configuration: str) -> list[Check]:
    """For a model and images of the manifest: the known float32 count, to the image."""
    facts = json.loads((fixtures_dir() / "expected.json").read_text())
    fact = facts.get(run.settings.assets.model_sha256)
    if fact is None or fact["assets"] != run.settings.assets.kind:
        return []
    record = scores_record(run, configuration)
    return [
        equal(
            f"{configuration}, correct of total",
            f"{fact['correct']}/{fact['total']}",
            f"{record['correct']}/{record['total']}",
        )
    ]


def judge_whole_test_set(
    requirement: Judge, run: Pipeline, *configurations: str, checks: list[Check] | None = None
) -> None:
    """Judge the share of test images that every one of the configurations scored."""
    from resnet8_eval.cifar10 import read_split

    total = len(read_split(run.settings.assets.dataset, "test").labels)
    shares = [100 * scores_record(run, name)["total"] / total for name in configurations]
    counts = [
        equal(f"{name}, images in the confusion matrix", total, sum(map(sum, record["confusion"])))
        for name in configurations
        for record in [scores_record(run, name)]
    ]
    requirement.judge(min(shares), [*counts, *source_checks(run, *configurations), *(checks or [])])


def proof_checks(run: Pipeline, *configurations: str) -> list[Check]:
    """Whether stored scales are those decided, and integer kernels compute what they say."""
    checks: list[Check] = []
    for name in configurations:
        record = run.artifact(f"proof/{name}").record
        for check in from_records(record["checks"]):
            checks.append(replace(check, name=f"{name}, {check.name}"))
        found = record["reference"]
        if found is not None:
            share = 100 * found["disagreements"] / found["total"]
            ok = share <= MAX_KERNEL_DISAGREEMENT_PERCENT
            checks.append(
                Check(
                    f"{name}, images that integer kernels and reference arithmetic class apart",
                    f"at most {MAX_KERNEL_DISAGREEMENT_PERCENT:g} % of {found['total']}",
                    f"{found['disagreements']} ({share:.2f} %)"
                    + ("" if ok else f"; probable cause: {found['probable_cause']}"),
                    ok,
                )
            )
    return checks


def judge_classes(requirement: Judge, run: Pipeline, configuration: str) -> None:
    """Judge the number of classes that have an accuracy, and that they add up."""
    from resnet8_eval.cifar10 import read_class_names

    record = scores_record(run, configuration)
    names = list(read_class_names(run.settings.assets.dataset))
    per_class = record["per_class"]
    reported = [
        entry for entry in per_class if entry["total"] and entry["accuracy_percent"] is not None
    ]
    requirement.judge(
        len(reported),
        [
            equal("class names, in label order", names, [e["name"] for e in per_class]),
            equal("images over all classes", record["total"], sum(e["total"] for e in per_class)),
            equal(
                "correct over all classes", record["correct"], sum(e["correct"] for e in per_class)
            ),
            equal(
                "classes whose share is not correct / total",
                [],
                [
                    e["name"]
                    for e in reported
                    if abs(e["accuracy_percent"] - 100 * e["correct"] / e["total"]) > 1e-9
                ],
            ),
        ],
    )


def judge_deltas(requirement: Judge, run: Pipeline, *configurations: str) -> None:
    """Judge how many configurations report a delta that is what it says."""
    baseline = scores_record(run, "keras-float32")
    checks = []
    for name in configurations:
        record = scores_record(run, name)
        delta = run.artifact(f"compare/{name}").record["delta_pp"]
        expected = record["accuracy_percent"] - baseline["accuracy_percent"]
        checks.append(
            Check(
                f"{name}, delta from {baseline['accuracy_percent']:.2f} %",
                f"{words.signed(expected)} pp",
                f"{words.signed(delta)} pp",
                abs(delta - expected) < 1e-9,
            )
        )
    requirement.judge(sum(check.ok for check in checks), checks + fact_checks(run, "keras-float32"))


def judge_quantized(requirement: Judge, run: Pipeline, configuration: str) -> None:
    """Judge the weighted layers left in float, by stored types and by counted operators."""
    recipe = RECIPES[configuration]
    record = run.artifact(f"model/{configuration}").record
    stored = list(record["weights"].values())
    quantized, in_float = record["quantized_ops"], record["float_ops"]

    def count(operators: dict[str, int], names: tuple[str, ...]) -> int:
        return sum(operators.get(name, 0) for name in names)

    checks = [
        equal("stored weights", [recipe.weights_dtype] * LAYERS, stored),
        equal("stored activations", [recipe.activations_dtype], record["activations"]),
        equal("quantized convolutions", LAYERS - 1, count(quantized, CONVOLUTION_OPERATORS)),
        equal("quantized matrix products", 1, count(quantized, PRODUCT_OPERATORS)),
    ]
    if recipe.framework == "onnxruntime":
        kernels = record["kernels"]
        checks += [
            equal("integer convolutions as ONNX Runtime runs it", 9, kernels.get("QLinearConv", 0)),
            equal("float convolutions as ONNX Runtime runs it", 0, kernels.get("Conv", 0)),
        ]
    if recipe.execution == "reference":
        checks.append(
            equal(
                "integer kernels for such weights, as PyTorch says",
                False,
                record["support"]["unsigned_weights"],
            )
        )
    left = count(in_float, CONVOLUTION_OPERATORS + PRODUCT_OPERATORS)
    requirement.judge(left, checks)
