"""Whole runs on a network of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet8_eval.backends import torch
from resnet8_eval.cifar10 import Split
from resnet8_eval.convert.keras_to_onnx import load
from resnet8_eval.pipeline import Pipeline
from tests.small_flow import ROOT


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None, made_here: None
) -> Callable[..., Any]:
    """Run the suite on a model in this process, on 200 test images, and return its results.

    Nor is torchao's lowering tried, which takes longer than all the rest of a row.
    """
    monkeypatch.setattr(torch, "lower", lambda *_: None)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)

    def run(model: Path, *words: str, status: int = 0) -> Any:
        reports = tmp_path / f"{len(words)}"
        folders = [f"--cache-dir={tmp_path / 'cache'}", f"--reports-dir={reports}"]
        # No collecting of garbage, whose search takes seconds among the objects of all frameworks.
        plugins = ["-pno:cacheprovider", "-pno:unraisableexception"]
        options = ["--assets=stand-in", f"--keras-model={model}", "--calibration-count=50"]
        assert pytest.main([*words, *options, *folders, *plugins]) == status
        return json.loads((reports / "results.json").read_text(encoding="utf-8"))

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras's own, on this NumPy
def test_a_network_for_pixels_from_0_to_1_that_ends_in_logits(
    run: Callable[..., Any], pipeline: Pipeline, standin_test: Split, tmp_path: Path
) -> None:
    """Fed raw pixels it guesses, and is told why; fed its own, it is the network that it was.

    The record of one that ends in logits once did not keep the form of results.json, so no results
    were written.
    """
    import keras

    model = load(pipeline.settings.assets.model)
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    kernel, bias = first.get_weights()
    first.set_weights([255 * kernel, bias])
    model.layers[-1].activation = keras.activations.linear
    path = tmp_path / "unit.keras"
    model.save(path)
    found = run(path, "--requirement=EVAL-03", status=1)
    assert found["baseline"] is None or found["baseline"]["accuracy_percent"] < 20
    assert "give --preprocessing unit." in found["preprocessings"]["hint"]
    assert found["preprocessings"]["hint"] in (tmp_path / "1" / "report.html").read_text()
    assert (tmp_path / "1" / "conversion.log").read_text().startswith("file: 'unit.keras'\n")

    asked = [f"--requirement={name}" for name in ("ANL-01", "CAL-02", "ORT-03", "PTQ-03")]
    found = run(path, "--preprocessing=unit", *asked)
    assert found["assets"]["preprocessing"]["name"] == "unit"
    assert found["preprocessings"]["hint"] is None
    rows = {row["name"]: row for row in found["configurations"]}
    labels = standin_test.labels[:200]
    raw = np.load(pipeline.artifact("scores/keras-float32").path("scores.npy"))[:200]
    for name in ("keras-float32", "onnxruntime-float32"):
        assert rows[name]["total"] == 200
        assert rows[name]["correct"] == (raw.argmax(axis=1) == labels).sum()
    assert rows["onnxruntime-float32"]["agreement_percent"] == 100
    assert rows["onnxruntime-float32"]["divergence"]["largest"] < 1e-4
    assert 0 < rows["onnxruntime-float32"]["reliability"]["error_percent"] < 20
    for row in rows.values():
        if row["recipe"] and row["recipe"]["name"] == "tuned":
            assert row["agreement_percent"] > 97
            (scale,) = {t["scales"][0] for t in row["tensors"] if t["name"] == "images"}
            assert scale == pytest.approx(1 / 255)
