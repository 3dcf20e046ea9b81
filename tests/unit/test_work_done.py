"""What a run does, by count: what must not creep back does not depend on the clock."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from resnet8_eval import backends, configurations, preprocess
from resnet8_eval.backends import torchscript
from resnet8_eval.configurations import CONFIGURATIONS
from resnet8_eval.inputs import Inputs, Labelled
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.store import RECORD_FILE
from tests.planted import Bench
from tests.unit.test_import_weight import HEAVY

ROOT = Path(__file__).parents[2]
WARM_RUN = """
import json, sys
from pathlib import Path
import pytest

status = pytest.main(sys.argv[1:])
counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
print(json.dumps([int(status), int(counters["rchar"]), sorted(sys.modules)]))
"""
MEGABYTE = 10**6
APART = {
    *("onnx", "torch", "sensitivity", "layers", "latency"),
    *("explored", "granularity", "mixed", "qat", "qat-training", "qat-torch", "qat-mean"),
}


@pytest.fixture(scope="module")
def warm(
    pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], int, set[str]]:
    """Results, bytes read and modules of a whole run for which everything was made before."""
    reports = tmp_path_factory.mktemp("reports")
    done = subprocess.run(  # noqa: S603 (our own words)
        [
            *(sys.executable, "-c", WARM_RUN),
            *("-q", "-p", "no:cacheprovider", "--assets=stand-in", f"--reports-dir={reports}"),
            *(f"--cache-dir={pipeline.settings.cache_dir}", "tests/acceptance"),
            *("-k", "not eval_05"),  # speed is measured on an idle machine
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    status, read, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stdout + done.stderr
    return json.loads((reports / "results.json").read_text()), read, set(modules)


def test_a_warm_run_makes_nothing(warm: tuple[dict[str, Any], int, set[str]]) -> None:
    results = warm[0]
    assert {stage["cache"] for stage in results["stages"].values()} == {"hit"}
    assert {f"scores/{row.name}" for row in CONFIGURATIONS} <= set(results["stages"])


def test_no_stage_writes_where_another_reads(
    warm: tuple[dict[str, Any], int, set[str]], pipeline: Pipeline
) -> None:
    """One file more, if only for a moment, and the artefact counts as damaged."""
    made = [found.folder for name in pipeline.stages if (found := pipeline.peek(name))]
    assert len(made) >= len(warm[0]["stages"])
    for folder in made:
        assert folder.stat().st_mtime_ns <= (folder / RECORD_FILE).stat().st_mtime_ns


def test_a_warm_run_imports_no_framework(warm: tuple[dict[str, Any], int, set[str]]) -> None:
    # CONV-01 reads the stored file with onnx, which is a format and runs nothing.
    heavy = {*HEAVY, "matplotlib", "loky"} - {"onnx"}
    assert warm[2] & heavy == set()
    assert len(warm[2]) < 740


def test_a_warm_run_reads_little(warm: tuple[dict[str, Any], int, set[str]]) -> None:
    """57 MB: Python's own modules, artefacts for their checksums, and the images.

    All 15 MB of images are read to verify them, and some again for what the tests hold.
    """
    assert warm[1] < 66 * MEGABYTE


CALIBRATED = configurations.calibrated()
TEST, CALIBRATION = 200, 40
"""Few images: what is counted is how often each is fed."""
IMAGES_FED = {
    # A hundred patches of noise, once for each of the two that have to be the same function.
    "folded": 2 * 100,
    # A pass to equalize, two for the histograms, one for the moments, and one with each of the two
    # networks that have to be the same function.
    "statistics/equalized-1": 3 * CALIBRATION + CALIBRATION + 2 * CALIBRATION,
    **{f"model/{row.name}": CALIBRATION for row in configurations.stock()},
    # The last batch once more for torchao's lowering.
    "model/torch-int8-stock": 2 * CALIBRATION,
    "spans": CALIBRATION,
    **{f"proof/{row.name}": CALIBRATION for row in configurations.stock()},
    **{f"scores/{row.name}": TEST for row in CONFIGURATIONS},
    **{exact: TEST for row in CALIBRATED if (exact := configurations.integers(row))},
    # 400 images, raw and in eight other ways.
    "preprocessings": 9 * 400,
    # Into no network: the two feeds are compared.
    **{f"feed/{recipe.key}": 2 * CALIBRATION for recipe in configurations.recipes()},
}
"""Images that each stage preprocesses."""


def test_no_stage_opens_a_model_or_feeds_an_image_more_often_than_it_must(
    pipeline: Pipeline, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    original, open_, split = preprocess.preprocess, backends.backend, Inputs.split
    one_at_a_time = threading.Lock()  # batches are computed several at once

    def few(inputs: Inputs, name: Literal["train", "test"]) -> Labelled:
        found = split(inputs, name)
        return found if name == "train" else Labelled(found.images[:TEST], found.labels[:TEST])

    def counted(images: Any) -> Any:
        with one_at_a_time:
            fed[stage] += len(images)
        return original(images)

    def counted_open(framework: str) -> Any:
        module = open_(framework)

        def opening(*words: Any) -> backends.Runtime:
            opened[stage] += 1
            return module.open_model(*words)

        return SimpleNamespace(**{**vars(module), "open_model": opening})

    monkeypatch.setattr(preprocess, "preprocess", counted)
    monkeypatch.setattr(backends, "backend", counted_open)
    with torchscript.deprecations_ignored():
        from torchao.quantization.pt2e import lowering
    # torchao compiles what it lowers, which takes longer than a stage.
    monkeypatch.setattr(lowering, "lower_pt2e_quantized_to_x86", lambda module, _: module)
    monkeypatch.setattr(Inputs, "split", few)
    settings = replace(pipeline.settings, calibration_count=CALIBRATION)
    monkeypatch.setattr(pipeline, "settings", settings)
    for stage in pipeline.stages:
        if stage.partition("/")[0] not in APART:
            bench.remake(stage)
    assert fed == IMAGES_FED
    once = [name for name in IMAGES_FED if name.startswith(("scores", "preprocessings"))]
    assert opened == {**dict.fromkeys(once, 1), "folded": 2, "statistics/equalized-1": 2}
