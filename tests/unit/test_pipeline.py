"""The flow: what decides each stage, what is made when, and by whom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval import environment
from resnet8_eval import pipeline as pipeline_
from resnet8_eval.errors import StageError
from resnet8_eval.lanes import LANES, lane_environment
from resnet8_eval.pipeline import CONFIGURATIONS, Pipeline, Settings, model_path
from resnet8_eval.quantize.recipes import RECIPES, Method, Recipe
from resnet8_eval.store import file_sha256
from tests.planted import borrowing

QUANTIZED = {f"{kind}/{name}" for kind in ("model", "scores", "compare") for name in RECIPES}
EVERY_SCORE = {f"scores/{name}" for name in CONFIGURATIONS}

Change = Callable[[Settings], Settings]


def assets(**changes: Any) -> Change:
    return lambda settings: replace(settings, assets=replace(settings.assets, **changes))


def dataset(name: str) -> Change:
    def change(settings: Settings) -> Settings:
        sums = {**settings.assets.dataset_sha256, name: "0" * 64}
        return assets(dataset_sha256=sums)(settings)

    return change


def keys(settings: Settings) -> dict[str, str]:
    """Key of each stage, afresh."""
    found = Pipeline(settings)
    return {name: found.key(name) for name in found.stages}


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert list(before) == list(after)
    return {name for name in before if before[name] != after[name]}


# What changes, some stages whose key must move with it, and some whose key must not.
DECISIVE: dict[str, tuple[Change, set[str], set[str]]] = {
    "the model": (
        assets(model_sha256="0" * 64),
        {"onnx", "folded", "torch", "parameters", *EVERY_SCORE, *QUANTIZED},
        {"calibration"},
    ),
    "the test images": (
        dataset("test_batch"),
        {"calibration", *EVERY_SCORE, *QUANTIZED},
        {"onnx", "folded", "torch"},
    ),
    "the training images": (
        dataset("data_batch_3"),
        {"calibration", "parameters", *QUANTIZED},
        {"onnx", "scores/keras-float32", "scores/torch-float32", "compare/torch-float32"},
    ),
    "the names of the classes": (
        dataset("batches.meta"),
        {"calibration", *EVERY_SCORE, *(f"compare/{name}" for name in CONFIGURATIONS)},
        {"onnx", "folded", "torch"},
    ),
    "the calibration seed": (
        lambda settings: replace(settings, calibration_seed=7),
        {"calibration", "parameters", "verify/preprocessing", *QUANTIZED},
        {"onnx", "torch", "scores/keras-float32", "verify/onnx"},
    ),
    "the calibration count": (
        lambda settings: replace(settings, calibration_count=1010),
        {"calibration", "parameters", *QUANTIZED},
        {"onnx", "torch", "scores/keras-float32", "verify/onnx"},
    ),
}


@pytest.mark.parametrize(("change", "must", "must_not"), DECISIVE.values(), ids=DECISIVE)
def test_a_key_moves_with_what_decides_it(
    pipeline: Pipeline, change: Change, must: set[str], must_not: set[str]
) -> None:
    found = moved(keys(pipeline.settings), keys(change(pipeline.settings)))
    assert must <= found
    assert not must_not & found


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: replace(settings, cache_dir=Path("/elsewhere")),
        assets(model=Path("/elsewhere/other.h5")),
        assets(dataset=Path("/elsewhere/cifar-10-batches-py")),
        assets(dataset_md5={}),
    ],
    ids=["where artefacts lie", "where the model lies", "where the images lie", "another checksum"],
)
def test_a_key_stays_with_what_does_not_decide_it(pipeline: Pipeline, change: Change) -> None:
    assert moved(keys(pipeline.settings), keys(change(pipeline.settings))) == set()


def patched(name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(environment, name, lambda: value)


@pytest.mark.parametrize(
    "change",
    [
        patched("packages", {**environment.packages(), "onnxruntime": "0.0.0"}),
        patched("code_sha256", "0" * 64),
        patched("cpu", {**environment.cpu(), "flags": ["avx2"]}),
        patched("cpu", {**environment.cpu(), "onednn_max_cpu_isa": "AVX2"}),
        patched("cpu", {**environment.cpu(), "variables": {"XLA_FLAGS": "planted"}}),
        patched("cpu", {**environment.cpu(), "cores": 99}),
        lambda patch: patch.setattr("platform.python_version", lambda: "3.11.0"),
        lambda patch: patch.setattr("platform.machine", lambda: "aarch64"),
    ],
    ids=[
        "a package",
        "our own code",
        "what the processor can",
        "what oneDNN may use of it",
        "a variable that chooses kernels",
        "cores",
        "Python",
        "kind of processor",
    ],
)
def test_every_key_moves_with_the_environment(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    before = keys(pipeline.settings)
    change(monkeypatch)
    assert moved(before, keys(pipeline.settings)) == set(before)


def test_no_key_moves_with_the_processor_s_name(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(pipeline.settings)
    patched("cpu", {**environment.cpu(), "model": "Another Xeon"})(monkeypatch)
    assert moved(before, keys(pipeline.settings)) == set()


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_a_recipe_moves_its_own_configuration_alone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    before = keys(pipeline.settings)
    change: dict[str, Any] = {field: "onnxruntime" if field == "framework" else "another"}
    other = replace(RECIPES["torch-int8"], **change)
    monkeypatch.setattr(pipeline_, "RECIPES", {**RECIPES, "torch-int8": other})
    found = moved(before, keys(pipeline.settings))
    assert {"model/torch-int8", "scores/torch-int8", "compare/torch-int8"} <= found
    assert all(name.endswith("torch-int8") for name in found)


@pytest.mark.parametrize("field", [field.name for field in fields(Method)])
def test_the_method_moves_all_that_is_quantized(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    before = keys(pipeline.settings)
    change: dict[str, Any] = {field: "another"}
    monkeypatch.setattr(pipeline_, "Method", lambda: replace(Method(), **change))
    found = moved(before, keys(pipeline.settings))
    assert {"parameters", *QUANTIZED} <= found
    assert not {"onnx", "torch", "calibration", "scores/torch-float32"} & found


@pytest.mark.parametrize("name", ["KERAS_BACKEND", "KERAS_HOME"])
def test_what_would_decide_and_has_no_place_in_a_key_is_the_same_in_every_lane(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = lane_environment()[name]
    monkeypatch.setenv(name, "another")
    assert lane_environment()[name] == before


def test_keys_are_all_different(pipeline: Pipeline) -> None:
    found = keys(pipeline.settings)
    assert len(set(found.values())) == len(found)


def test_the_table_of_stages_is_sound(pipeline: Pipeline) -> None:
    stages = pipeline.stages
    assert set(LANES) <= {stage.lane for stage in stages.values()}
    for stage in stages.values():
        assert set(stage.needs) <= set(stages)
        assert stage.name not in stage.needs
    for name in CONFIGURATIONS:
        assert {f"scores/{name}", f"compare/{name}"} <= set(stages)
        assert set(stages[f"compare/{name}"].needs) == {"scores/keras-float32", f"scores/{name}"}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_score_names_the_bytes_that_it_comes_from(pipeline: Pipeline, name: str) -> None:
    path = model_path(pipeline, name)
    record = pipeline.artifact(f"scores/{name}").record
    assert record["model_sha256"] == file_sha256(path)
    assert record["size_bytes"] == path.stat().st_size


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_record_is_what_the_stored_scores_say(pipeline: Pipeline, name: str) -> None:
    """Computed anew, by other means."""
    import numpy as np

    from resnet8_eval.cifar10 import read_split

    labels = read_split(pipeline.settings.assets.dataset, "test").labels
    answers, baseline = (
        np.load(pipeline.artifact(f"scores/{one}").path("scores.npy")).argmax(axis=1)
        for one in (name, "keras-float32")
    )
    record = pipeline.artifact(f"scores/{name}").record
    compared = pipeline.artifact(f"compare/{name}").record
    assert record["correct"] == sum(int(a == b) for a, b in zip(answers, labels, strict=True))
    assert record["total"] == 2000
    assert [entry["correct"] for entry in record["per_class"]] == [
        sum(1 for a, b in zip(answers, labels, strict=True) if a == b == k) for k in range(10)
    ]
    assert compared["delta_pp"] == pytest.approx(
        100 * ((answers == labels).mean() - (baseline == labels).mean())
    )
    assert compared["agreement_percent"] == pytest.approx(100 * (answers == baseline).mean())


def test_calibration_images_are_training_images(pipeline: Pipeline) -> None:
    import numpy as np

    from resnet8_eval.cifar10 import read_split

    made = pipeline.artifact("calibration")
    train = read_split(pipeline.settings.assets.dataset, "train")
    indices = np.load(made.path("indices.npy"))
    assert np.array_equal(np.load(made.path("images.npy")), train.images[indices])
    assert np.bincount(train.labels[indices]).tolist() == made.record["per_class"]


# --- making --------------------------------------------------------------------------------------


@pytest.fixture
def fresh(pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    """The same pipeline with an empty store."""
    return Pipeline(replace(pipeline.settings, cache_dir=tmp_path / "cache"))


def test_nothing_is_made_by_looking(fresh: Pipeline) -> None:
    assert all(fresh.peek(name) is None for name in fresh.stages)
    assert not fresh.settings.cache_dir.exists()


def test_a_stage_is_made_in_a_lane_and_then_served(fresh: Pipeline) -> None:
    said: list[str] = []
    asked = Pipeline(fresh.settings, said.append)
    made = asked.artifact("calibration")
    assert [line.split()[0] for line in said] == ["calibration"]
    assert asked.artifact("calibration") is made
    asked.prepare(["calibration"])
    assert Pipeline(fresh.settings, said.append).artifact("calibration") == made
    assert len(said) == 1


def test_a_stage_needs_what_it_says_and_nothing_else(pipeline: Pipeline, tmp_path: Path) -> None:
    """Making one stage makes those that it needs, directly or not."""
    asked = Pipeline(replace(pipeline.settings, cache_dir=tmp_path))
    assert set(asked._closure(["verify/torch"])) == {
        "onnx",
        "folded",
        "torch",
        "scores/onnxruntime-float32",
        "scores/torch-float32",
        "verify/torch",
    }


def test_a_failure_is_told_by_the_stage_that_failed_and_by_those_that_need_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    asked = borrowing(pipeline, tmp_path, "onnx", "folded", calibration_count=9)
    asked.prepare(["verify/preprocessing"])  # says nothing yet
    with pytest.raises(StageError, match="calibration set of 9 images cannot be drawn"):
        asked.artifact("calibration")
    with pytest.raises(StageError, match="because calibration could not be made") as caught:
        asked.artifact("parameters")
    assert "choose another --calibration-count" in str(caught.value)


def test_a_cache_that_cannot_be_written_says_what_to_do(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    asked = Pipeline(replace(pipeline.settings, cache_dir=tmp_path / "file" / "cache"))
    with pytest.raises(StageError, match="cannot be written"):
        asked.artifact("calibration")


def test_a_cache_that_may_only_be_read_serves_what_it_has(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    asked = Pipeline(pipeline.settings)
    asked.prepare(["verify/torch", "compare/torch-int8"])
    assert asked.artifact("verify/torch").record


def test_what_is_forgotten_is_made_anew_with_all_that_it_needs(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    names = ("onnx", "folded", "calibration")
    asked = borrowing(pipeline, tmp_path, *names)
    began = time.time()
    asked.forget(["folded"], began)
    assert [name for name in names if asked.peek(name) is None] == ["onnx", "folded"]
    again = asked.artifact("calibration")
    asked.forget(["calibration"], again.created)
    assert asked.peek("calibration") == again


def test_an_artefact_that_vanished_is_made_again(fresh: Pipeline) -> None:
    first = fresh.artifact("calibration")
    first.path("images.npy").unlink()
    again = Pipeline(fresh.settings).artifact("calibration")
    assert again.path("images.npy").is_file()
    assert again.files == first.files


def test_an_unknown_stage_is_an_error(pipeline: Pipeline) -> None:
    with pytest.raises(KeyError):
        pipeline.artifact("scores/caffe")
