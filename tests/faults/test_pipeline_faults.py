"""Runs that something goes wrong in: what is told, what is made again, what is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from resnet8_eval import runner
from resnet8_eval.errors import AssetError, StageError
from resnet8_eval.pipeline import Pipeline
from tests.planted import borrowing


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
    damaged_images.prepare(["compare/onnxruntime-int8", "folded"])
    assert damaged_images.peek("folded")
    with pytest.raises(AssetError, match="is not the CIFAR-10 file that its name says") as root:
        damaged_images.artifact("calibration")
    for name, need in (
        ("parameters", "calibration"),
        ("model/onnxruntime-int8", "parameters"),
        ("scores/onnxruntime-int8", "model/onnxruntime-int8"),
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


def test_a_damaged_artefact_is_made_again_and_nothing_else(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    made = borrowing(pipeline, tmp_path, "onnx", "folded", "calibration", "parameters")
    folded = made.artifact("folded").path("folded.onnx")
    content = bytearray(folded.read_bytes())
    content[len(content) // 2] ^= 1
    folded.write_bytes(content)
    said: list[str] = []
    again = Pipeline(made.settings, said.append)
    again.prepare(["parameters"])
    assert [line.split()[0] for line in said] == ["folded"]
    assert again.artifact("folded").files == pipeline.artifact("folded").files


PREPARE = """
import sys
from dataclasses import replace
from pathlib import Path
from resnet8_eval.assets import locate
from resnet8_eval.pipeline import Pipeline, Settings

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


def test_a_killed_run_leaves_nothing_that_counts_or_that_blocks(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    made = borrowing(pipeline, tmp_path, "onnx", "folded", "calibration")
    process = preparing(pipeline, tmp_path, "parameters")
    partial = tmp_path / "artifacts" / f"parameters-{made.key('parameters')[:20]}.partial"
    deadline = time.monotonic() + 30
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert partial.exists()
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()
    assert made.peek("parameters") is None
    # Its lane may still be at work, and then holds the lock until it has ended.
    again = Pipeline(made.settings).artifact("parameters")
    assert again.files == pipeline.artifact("parameters").files
    assert not partial.exists()


def test_a_lane_that_is_killed_fails_its_stage_and_names_the_log(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = borrowing(pipeline, tmp_path, "onnx", "folded")
    monkeypatch.setattr(runner, "_make", die_making)
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
