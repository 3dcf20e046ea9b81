"""What many test files share: the stand-in's artefacts, made once for all of them."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any, Final, Literal

# Workers share the cores; a linear algebra library that starts a thread for each would thrash.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from resnet8_eval import cifar10, hints, lanes
from resnet8_eval.assets import default_cache_dir, locate
from resnet8_eval.cifar10 import Split, read_split
from resnet8_eval.inputs import Settings
from resnet8_eval.pipeline import Pipeline
from tests import inline_lanes
from tests.planted import Bench

# Half a million objects of frameworks stay; a collector that walks them again and again takes a
# tenth of the time of all tests.
gc.set_threshold(50_000)

LONG: Final = {
    *("test_report_browser.py", "test_own_models.py", "test_own_runs.py", "test_status_faults.py"),
    *("test_cli.py", "test_keras_to_onnx.py", "test_lanes.py", "test_own_networks.py"),
    *("test_plugin.py", "test_study.py", "test_torch_backend.py", "test_training.py"),
    *("test_work_done.py",),
}
"""Files that take ten seconds and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them first: workers take files in this order, and none is to be at one in the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """The stand-in's pipeline, made by the product's own lanes.

    It is kept in the user's cache, under keys that no other code or environment has, so it is made
    once for all workers, and once for the acceptance run on the stand-in that follows. Stages that
    no requirement needs are made when a test asks for them; speed is measured by no test that runs
    beside others.
    """
    cache = default_cache_dir()
    assets = locate("stand-in", assets_dir=None, cache_dir=cache, announce=lambda _: None)
    made = Pipeline(Settings(assets, cache))
    apart = ("sensitivity/", "layers/", "latency", "explored/", "granularity/", "mixed/", "qat")
    needed = [name for name in made.stages if not name.startswith(apart)]
    made.prepare(needed)
    for name in needed:
        made.artifact(name)
    return made


@pytest.fixture(scope="session")
def standin_test(pipeline: Pipeline) -> Split:
    """The 2000 test images of the stand-in and their labels."""
    return read_split(pipeline.settings.assets.dataset, "test")


@pytest.fixture
def made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have stages made in this process, and import no framework once more."""
    monkeypatch.setattr(lanes, "run", inline_lanes.run)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images for the test, and 100 for hints: enough where no figure of all images is held."""
    whole = cifar10.read_split

    def read_split(folder: Path, name: Literal["train", "test"], *words: Any) -> Split:
        found = whole(folder, name, *words)
        test = Split(found.images[:200], found.labels[:200])
        return found if name == "train" else test

    monkeypatch.setattr(cifar10, "read_split", read_split)
    monkeypatch.setattr(hints, "IMAGES", 100)


@pytest.fixture
def bench(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Where faults are planted, and held before the requirement tests."""
    return Bench(pipeline, tmp_path_factory.mktemp("bench"))
