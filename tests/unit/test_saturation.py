"""Which stored weights x86 kernels can saturate on, and where."""

from __future__ import annotations

import numpy as np
import pytest

from resnet8_eval import configurations, environment, proof, saturation
from resnet8_eval.backends import StoredTensor
from resnet8_eval.pipeline import Pipeline


def weight(largest: int, dtype: str = "int8") -> StoredTensor:
    values = np.array([[3, -largest], [0, 1]])
    return StoredTensor("w", "weight", dtype, 0, [0.1, 0.2], [0], values)


@pytest.mark.parametrize(
    ("largest", "dtype", "bits", "needed"),
    [
        (63, "int8", 7, None),
        (64, "int8", 8, "VNNI"),
        (127, "int8", 8, "VNNI"),
        (127, "uint8", 8, None),
        (63, "uint8", 7, None),
    ],
)
def test_what_weights_need(largest: int, dtype: str, bits: int, needed: str | None) -> None:
    found = [weight(5), weight(largest, dtype)]
    assert saturation.weights_bits(found) == bits
    assert saturation.needs(found, "onnxruntime", "kernel") == needed
    assert saturation.needs(found, "onnxruntime", "reference") is None
    assert saturation.needs(found, "torch", "kernel") == (needed and "AVX-512 VNNI")


@pytest.mark.parametrize("framework", ["onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("flags", "largest", "dtype", "possible"),
    [
        ([], 127, "int8", True),
        ([], 64, "int8", True),
        ([], 63, "int8", False),
        ([], 127, "uint8", False),
        (["avx512_vnni"], 127, "int8", False),
    ],
)
def test_saturation_is_named_only_where_it_is_possible(
    monkeypatch: pytest.MonkeyPatch,
    framework: str,
    flags: list[str],
    largest: int,
    dtype: str,
    possible: bool,
) -> None:
    monkeypatch.setattr(environment, "cpu", lambda: {"flags": flags, "onednn_max_cpu_isa": None})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    said = proof.probable_cause([weight(largest, dtype)], framework)
    assert ("saturate" in said) == possible
    assert (f"±{largest}" in said) == possible


@pytest.mark.parametrize("row", configurations.quantized(), ids=lambda row: row.name)
def test_no_tuned_row_needs_any_instruction(
    pipeline: Pipeline, row: configurations.Configuration
) -> None:
    found = pipeline.artifact(f"proof/{row.name}").record
    signed = row.weights_dtype == "int8" and row.execution == "kernel"
    assert found["needs"] == ("VNNI" if row.is_stock and signed else None)
    assert row.is_stock or found["weights_bits"] == (7 if signed else 8)
