"""What a run does, by count: what must not creep back does not depend on the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet8_eval import runtimes
from resnet8_eval.pipeline import CONFIGURATIONS, Pipeline
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
    assert set(results["cache"].values()) == {"hit"}
    assert {f"scores/{name}" for name in CONFIGURATIONS} <= set(results["cache"])


def test_a_warm_run_imports_no_framework(warm: tuple[dict[str, Any], int, set[str]]) -> None:
    # CONV-01 reads the stored file with onnx, which is a format and runs nothing.
    heavy = {*HEAVY, "statsmodels", "matplotlib", "pandas", "loky"} - {"onnx"}
    assert warm[2] & heavy == set()


def test_a_warm_run_reads_little(warm: tuple[dict[str, Any], int, set[str]]) -> None:
    """Python's own modules, the artefacts for their checksums, and the test images once."""
    assert warm[1] < 80 * MEGABYTE


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_sees_every_test_image_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opened: list[Path] = []
    seen: list[int] = []

    def open_(path: Path, *_: Any) -> runtimes.Runtime:
        opened.append(path)

        def runtime(batch: Any) -> Any:
            seen.append(len(batch))
            return np.full((len(batch), 10), 0.1, np.float32)

        return runtime

    monkeypatch.setattr(runtimes, "_open", open_)
    bench.remake(f"scores/{name}")
    assert len(opened) == 1
    assert seen == [100] * 20
