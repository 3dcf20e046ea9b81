"""Whole runs on a network of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval.convert.keras_to_onnx import load
from resnet8_eval.pipeline import Pipeline
from tests.small_flow import ROOT


def _run(pipeline: Pipeline, model: Path, reports: Path, *words: str) -> Any:
    options = [f"--keras-model={model}", "--assets=stand-in", f"--reports-dir={reports}"]
    cache = f"--cache-dir={pipeline.settings.cache_dir}"
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "pytest", *words, *options, cache, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return json.loads((reports / "results.json").read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras's own, on this NumPy
def test_a_network_that_ends_in_logits(pipeline: Pipeline, tmp_path: Path) -> None:
    """Its record once did not keep the form of results.json, so no results were written."""
    import keras

    model = load(pipeline.settings.assets.model)
    model.layers[-1].activation = keras.activations.linear
    model.save(tmp_path / "logits.keras")
    found = _run(pipeline, tmp_path / "logits.keras", tmp_path / "reports", "-m", "v1_0")
    (row,) = found["configurations"]
    assert row["name"] == "onnxruntime-float32"
    assert row["agreement_percent"] == 100
    assert row["divergence"]["largest"] < 1e-4
    assert 0 < row["reliability"]["error_percent"] < 20
