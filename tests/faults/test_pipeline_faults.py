"""Runs that something goes wrong in: what is told, what is made again, what is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from resnet8_eval import configurations
from resnet8_eval import pipeline as orchestrator
from resnet8_eval.configurations import CONFIGURATIONS, Configuration
from resnet8_eval.errors import AssetError, StageError
from resnet8_eval.pipeline import Pipeline
from tests.planted import Bench, borrowing


@pytest.fixture
def damaged_images(pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    """A pipeline whose test images were damaged after they had been verified."""
    dataset = tmp_path / "cifar-10-batches-py"
    shutil.copytree(pipeline.settings.assets.dataset, dataset)
    content = (dataset / "test_batch").read_bytes()
    (dataset / "test_batch").write_bytes(content[: len(content) // 2])
    assets = replace(pipeline.settings.assets, dataset=dataset)
    return borrowing(pipeline, tmp_path / "cache", "onnx", "folded", assets=assets)


def test_the_root_cause_is_told_by_all_that_need_it_and_the_rest_is_made(
    damaged_images: Pipeline,
) -> None:
    damaged_images.prepare(["compare/onnxruntime-int8-tuned", "folded"])
    assert damaged_images.peek("folded")
    with pytest.raises(AssetError, match="test_batch changed after it had been verified") as root:
        damaged_images.artifact("calibration")
    for name, need in (
        ("statistics/equalized-1", "calibration"),
        ("parameters/tuned", "statistics/equalized-1"),
        ("model/onnxruntime-int8-tuned", "parameters/tuned"),
        ("scores/onnxruntime-int8-tuned", "model/onnxruntime-int8-tuned"),
    ):
        with pytest.raises(StageError) as caught:
            damaged_images.artifact(name)
        assert f"Stage {name} was not run, because {need} could not be made" in caught.value.what
        assert root.value.what in caught.value.what
        assert caught.value.next_step == root.value.next_step


def test_a_failed_stage_leaves_no_artefact(damaged_images: Pipeline) -> None:
    damaged_images.prepare(["calibration"])
    folders = (damaged_images.settings.cache_dir / "artifacts").iterdir()
    assert {folder.name.partition("-")[0] for folder in folders} == {"onnx", "folded"}


def test_a_failure_is_not_remembered_beyond_the_run(
    damaged_images: Pipeline, pipeline: Pipeline
) -> None:
    damaged_images.prepare(["calibration"])
    source = pipeline.settings.assets.dataset / "test_batch"
    shutil.copyfile(source, damaged_images.settings.assets.dataset / "test_batch")
    again = Pipeline(damaged_images.settings).artifact("calibration")
    assert again.files == pipeline.artifact("calibration").files


SCORES = [f"scores/{row.name}" for row in CONFIGURATIONS]
NAMES = [row.name for row in CONFIGURATIONS]
TUNINGS = [f"tuning/{tuned.name}" for _, tuned in configurations.tunings()]
COSTS = [f"sensitivity/{recipe.key}" for recipe in configurations.recipes()]
JUDGING = [
    *TUNINGS,
    *SCORES,
    "latency",
    "integers/onnxruntime-int8-tuned",
    "integers/onnxruntime-uint8-tuned",
    "integers/torch-int8-tuned",
    *(f"proof/{row.name}" for row in configurations.calibrated()),
    *(f"compare/{row.name}" for row in CONFIGURATIONS),
]
ON_DEMAND = ("explored/", "mixed/", "granularity/", "qat")
READERS = {
    "the model": ["onnx", "latency", "preprocessings", *SCORES],
    "data_batch_4": ["calibration", "preprocessings", *COSTS],
    "test_batch": ["calibration", "preprocessings", *COSTS, *JUDGING],
    "batches.meta": ["calibration", "preprocessings", *COSTS, *JUDGING],
}


def test_these_stages_read_these_files(pipeline: Pipeline) -> None:
    """So say the keys."""
    assets = pipeline.settings.assets
    sums = {"the model": assets.model_sha256, **assets.dataset_sha256}
    for file, stages in READERS.items():
        found = {s.name for s in pipeline.stages.values() if sums[file] in s.decided_by.values()}
        # What v1_4 makes reads all of them, and is made where it is asked for.
        assert {name for name in found if not name.startswith(ON_DEMAND)} == set(stages)


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        (file, stage)
        for file, stages in READERS.items()
        for stage in stages
        # They keep clear of what calibrates, and read no test image.
        if not (file == "test_batch" and stage in (*COSTS, "preprocessings"))
        and (file != "the model" or stage in ("onnx", "scores/keras-float32"))
    ],
)
def test_what_changed_after_it_was_verified_is_not_read(
    pipeline: Pipeline, tmp_path: Path, file: str, stage: str
) -> None:
    """Else the numbers of one file would lie under the key of another, and stay there."""
    honest = pipeline.settings.assets
    copy = replace(honest, model=tmp_path / "my.h5", dataset=tmp_path / "cifar-10-batches-py")
    shutil.copyfile(honest.model, copy.model)
    shutil.copytree(honest.dataset, copy.dataset)
    needs = set(pipeline.stages[stage].needs)
    made = borrowing(pipeline, tmp_path / "cache", *needs, assets=copy)
    path = copy.model if file == "the model" else copy.dataset / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AssetError, match="changed after it had been verified") as caught:
        made.make(stage, 1)
    assert str(path) in caught.value.what
    assert {found.stage for _, found in made.store.artifacts() if found} == needs


def test_the_artefact_of_another_configuration_is_made_anew(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Whole folders copied over others: each is sealed, and none is what it is said to be."""
    names = [f"{kind}/{name}" for kind in ("scores", "compare") for name in NAMES]
    made = borrowing(pipeline, tmp_path, *names)
    for kind in ("scores", "compare"):
        good = made.artifact(f"{kind}/onnxruntime-float32").folder
        for name in ("onnxruntime-int8-tuned", "torch-int8-tuned"):
            folder = made.artifact(f"{kind}/{name}").folder
            shutil.rmtree(folder)
            shutil.copytree(good, folder)
    again = Pipeline(made.settings)
    assert [name for name in names if again.peek(name) is None] == [
        "scores/onnxruntime-int8-tuned",
        "scores/torch-int8-tuned",
        "compare/onnxruntime-int8-tuned",
        "compare/torch-int8-tuned",
    ]


@pytest.mark.parametrize("row", CONFIGURATIONS, ids=lambda row: row.name)
def test_scores_of_another_model_are_seen(bench: Bench, row: Configuration) -> None:
    name = row.name
    bench.plant(f"scores/{name}", {"model_sha256": "0" * 64})
    said = f"{name}, sha256 of the model that gave the scores: expected"
    assert said in bench.verdict("ANL-01")
    own = {"onnxruntime-float32": "EVAL-01", "torch-float32": "PT-03"}
    if row.recipe:
        own[name] = "ORT-03" if row.framework == "onnxruntime" else "PTQ-03"
    if name in own:
        assert said in bench.verdict(own[name])


def test_a_damaged_artefact_is_made_again_and_nothing_else(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    made = borrowing(pipeline, tmp_path, "onnx", "folded", "calibration", "statistics/equalized-1")
    folded = made.artifact("folded").path("folded.onnx")
    content = bytearray(folded.read_bytes())
    content[len(content) // 2] ^= 1
    folded.write_bytes(content)
    said: list[str] = []
    again = Pipeline(made.settings, said.append)
    again.prepare(["statistics/equalized-1"])
    assert [line.split()[0] for line in said] == ["folded"]
    assert again.artifact("folded").files == pipeline.artifact("folded").files


PREPARE = """
import sys
from dataclasses import replace
from pathlib import Path
from resnet8_eval.assets import locate
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.inputs import Settings

cache, store = map(Path, sys.argv[1:3])
assets = locate("stand-in", assets_dir=None, cache_dir=cache)
made = Pipeline(Settings(assets, store), lambda line: print(line, flush=True))
made.prepare(sys.argv[3:])
"""


def preparing(pipeline: Pipeline, store: Path, *stages: str) -> subprocess.Popen[str]:
    words = [pipeline.settings.cache_dir, store, *stages]
    return subprocess.Popen(  # noqa: S603 (our own words)
        [sys.executable, "-c", PREPARE, *map(str, words)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_that_want_the_same_make_it_once(pipeline: Pipeline, tmp_path: Path) -> None:
    both = [preparing(pipeline, tmp_path, "calibration") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).split()[:1] == ["calibration"]
    assert "".join(said).count("calibration") == 1


def test_a_lane_that_is_killed_fails_its_stage_and_names_the_log(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = borrowing(pipeline, tmp_path, "onnx", "folded")
    monkeypatch.setattr(orchestrator, "_make", die_making)
    with pytest.raises(StageError, match="Stage calibration failed") as caught:
        made.artifact("calibration")
    assert str(tmp_path / "logs") in caught.value.next_step
    assert "python -m resnet8_eval run calibration" in caught.value.next_step


def die_making(*_: object) -> float:
    """What a lane does whose native code crashes."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0.0


def test_code_that_changed_under_a_running_suite_makes_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lanes read the code anew; what they made would lie under the key of the old."""
    monkeypatch.setattr("resnet8_eval.environment.code_sha256", lambda: "0" * 64)
    made = Pipeline(replace(pipeline.settings, cache_dir=tmp_path))
    with pytest.raises(StageError, match="the suite changed while it was running"):
        made.artifact("calibration")
