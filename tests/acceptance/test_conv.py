"""CONV-01 … CONV-03: Keras to ONNX."""

from __future__ import annotations

import pytest

from resnet8_eval.checks import Check, equal, from_records
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.verdicts import Judge

from .common import known_facts


def is_duration(seconds: object) -> bool:
    return isinstance(seconds, float) and seconds >= 0


@pytest.mark.requirement("CONV-01", needs=["onnx", "folded"])
def test_conv_01_convert_to_onnx(requirement: Judge, run: Pipeline) -> None:
    """ONNX checker; producer; opset; batch of any size."""
    import onnx

    artifact = run.artifact("onnx")
    model = onnx.load(artifact.path("model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    requirement.judge_checks(
        [
            equal("producer", "tf2onnx", model.producer_name),
            equal("producer recorded", True, artifact.record["producer"].startswith("tf2onnx ")),
            equal("opset", artifact.record["opset"], opsets.get("")),
            Check(
                "batch size",
                "dynamic",
                str(batch.dim_value or "dynamic"),
                not batch.HasField("dim_value"),
            ),
        ]
    )


@pytest.mark.requirement("CONV-02", needs=["structure/onnx", "parity/onnx"])
def test_conv_02_structure(requirement: Judge, run: Pipeline) -> None:
    """Inputs, outputs and layers; every weight claimed; float32 scores against Keras."""
    records = [run.artifact(name).record for name in ("structure/onnx", "parity/onnx")]
    checks = from_records(check for record in records for check in record["checks"])
    fact = known_facts(run)
    if fact is not None:
        found, wanted = records[0]["found"], fact["parameters"]
        checks.append(equal("Keras parameters of this known model", wanted, found))
    requirement.judge_checks(checks)


@pytest.mark.requirement("CONV-03", needs=["onnx"])
def test_conv_03_log(requirement: Judge, run: Pipeline) -> None:
    """Steps with their durations, versions and every warning, all in `conversion.log`."""
    artifact = run.artifact("onnx")
    record = artifact.record
    log = artifact.path("conversion.log").read_text(encoding="utf-8")
    expected_steps = [
        "import tensorflow",
        "import tf2onnx",
        "load the Keras model",
        "convert to ONNX",
        "check the ONNX model",
        "save",
    ]
    requirement.judge_checks(
        [
            equal("steps recorded", expected_steps, [step["step"] for step in record["steps"]]),
            equal(
                "steps without a duration",
                [],
                [step["step"] for step in record["steps"] if not is_duration(step.get("seconds"))],
            ),
            equal("steps missing in the log", [], [s for s in expected_steps if s not in log]),
            equal(
                "versions missing in the log",
                [],
                [name for name, v in record["versions"].items() if f"{name} {v}" not in log],
            ),
            equal(
                f"warnings that the log lacks, of {len(record['warnings'])}",
                [],
                [w["message"] for w in record["warnings"] if w["message"] not in log],
            ),
        ]
    )
