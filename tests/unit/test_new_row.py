"""One entry in `configurations.py` is a row of every output."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from resnet8_eval.pipeline import Pipeline
from tests.small_flow import ROOT, site

ENTRIES = """
from resnet8_eval import configurations as c

recipe = c.Recipe("coarse", granularity="per-tensor", float_layers=(-1,))
c.CONFIGURATIONS += (
    c.Configuration("onnxruntime", "int8", "int8", "int8", recipe=recipe),
    c.Configuration("torch", "int8", "int8", "uint8", recipe=recipe),
)
"""
"""What a contributor would write into the list: one weight scale for each layer, and the last
layer left in float."""
LABELS = {
    "onnxruntime-int8-coarse": "ONNX Runtime int8, coarse",
    "torch-int8-coarse": "PyTorch int8, coarse",
}


def test_a_row_is_one_entry(pipeline: Pipeline, tmp_path: Path) -> None:
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
        env=site(tmp_path / "site", ENTRIES),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    results = json.loads((reports / "results.json").read_text(encoding="utf-8"))
    assert len(results["configurations"]) == 14
    assert len(results["agreement"]["rows"]) == 14
    (anl_01,) = (one for one in results["requirements"] if one["id"] == "ANL-01")
    assert (anl_01["measured"], anl_01["threshold"]) == (14, 14)
    table = (reports / "comparison.md").read_text(encoding="utf-8")
    page = (reports / "report.html").read_text(encoding="utf-8")
    with (reports / "comparison.csv").open(encoding="utf-8", newline="") as file:
        names = {line["name"] for line in csv.DictReader(file)}
    for name, label in LABELS.items():
        assert label in done.stdout
        row = next(row for row in results["configurations"] if row["name"] == name)
        assert row["correct"] / row["total"] > 0.8
        assert row["recipe"]["method"]["granularity"] == "per-tensor"
        kinds = list(row["census"]["weights"].values())
        assert sorted(kinds) == ["float32", *["int8"] * 9]
        assert name in names
        assert label.replace(" int8, ", " | int8 | ") in table
        assert label in page
