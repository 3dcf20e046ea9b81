"""Whether a quantized model is what its name says."""

from __future__ import annotations

from resnet8_eval.checks import equal
from resnet8_eval.convert.structure import CONVOLUTIONS
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.pytest_plugin import Judge
from resnet8_eval.quantize.recipes import RECIPES

LAYERS = len(CONVOLUTIONS) + 1
CONVOLUTION_OPERATORS = ("Conv", "conv2d", "conv2d_relu", "_convolution")
PRODUCT_OPERATORS = ("Gemm", "MatMul", "linear", "addmm", "matmul", "qlinear_pointwise")


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
