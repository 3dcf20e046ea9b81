"""One entry in `configurations.py` is a row of every output."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from resnet8_eval.pipeline import Pipeline
from tests.small_flow import ROOT, site

ENTRY = """
from resnet8_eval import configurations as c

recipe = c.Recipe("coarse", granularity="per-tensor", float_layers=(-1,))
c.CONFIGURATIONS += (c.Configuration("{0}", "int8", "int8", "{1}", recipe=recipe),)
"""
"""What a contributor would write into the list: one weight scale for each layer, and the last
layer left in float."""
ACTIVATIONS = {"onnxruntime": "int8", "torch": "uint8"}
LABELS = {"onnxruntime": "ONNX Runtime int8, coarse", "torch": "PyTorch int8, coarse"}


@pytest.mark.parametrize("framework", ACTIVATIONS)
def test_a_row_is_one_entry(pipeline: Pipeline, tmp_path: Path, framework: str) -> None:
    name, label = f"{framework}-int8-coarse", LABELS[framework]
    reports, cache = tmp_path / "reports", pipeline.settings.cache_dir
    options = [
        "-m",
        "v1_2",
        "--assets=stand-in",
        f"--reports-dir={reports}",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "pytest", *options, f"--cache-dir={cache}", "tests/acceptance"],
        cwd=ROOT,
        env=site(tmp_path / "site", ENTRY.format(framework, ACTIVATIONS[framework])),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert label in done.stdout
    results = json.loads((reports / "results.json").read_text(encoding="utf-8"))
    row = next(row for row in results["configurations"] if row["name"] == name)
    assert row["correct"] / row["total"] > 0.8
    assert row["recipe"]["method"]["granularity"] == "per-tensor"
    kinds = list(row["census"]["weights"].values())
    assert sorted(kinds) == ["float32", *["int8"] * 9]
    assert len(results["configurations"]) == 13
    assert len(results["agreement"]["rows"]) == 13
    (anl_01,) = (one for one in results["requirements"] if one["id"] == "ANL-01")
    assert (anl_01["measured"], anl_01["threshold"]) == (13, 13)
    with (reports / "comparison.csv").open(encoding="utf-8", newline="") as file:
        assert name in {line["name"] for line in csv.DictReader(file)}
    table = (reports / "comparison.md").read_text(encoding="utf-8")
    assert label.replace(" int8, ", " | int8 | ") in table
    assert label in (reports / "report.html").read_text(encoding="utf-8")
