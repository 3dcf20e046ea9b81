"""Several calibration seeds: what is shared, what is made anew, and what is said of the spread."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from resnet8_eval import calibration, cifar10, configurations
from resnet8_eval.checks import equal
from resnet8_eval.cifar10 import read_split
from resnet8_eval.gather import gather
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.report import html, markdown, outcome, tables
from resnet8_eval.stages import Stage, of_seed
from resnet8_eval.statistics import over_seeds
from resnet8_eval.store import Artifact
from tests.acceptance import test_cal, test_ort, test_ptq
from tests.planted import Bench
from tests.unit import report_samples

ROW = "onnxruntime-uint8-tuned"


class OneRow(Pipeline):
    """A pipeline that knows one row of the further seed, whatever else the user's cache has."""

    def peek(self, name: str) -> Artifact | None:
        """That artefact, if it is of the first seed or of the row."""
        known = "@" not in name or name in self.closure([f"compare/{ROW}@1"])
        return super().peek(name) if known else None


@pytest.fixture(scope="module")
def several(pipeline: Pipeline) -> Pipeline:
    """One row of the stand-in, made with the next seed as well."""
    made = OneRow(replace(pipeline.settings, seeds=2))
    made.prepare([f"compare/{ROW}@1"])
    return made


def test_what_does_not_depend_on_the_seed_is_there_once(several: Pipeline) -> None:
    again = {name.removesuffix("@1") for name in several.stages if name.endswith("@1")}
    assert {f"compare/{row.name}" for row in configurations.quantized()} <= again
    assert {"calibration", f"model/{ROW}", f"scores/{ROW}"} <= again
    kinds = {name.partition("/")[0] for name in again}
    made = {"calibration", "spans", "statistics", "parameters", "model", "scores", "integers"}
    assert kinds == made | {"compare", "proof", "feed"}
    assert not again & {f"scores/{row.name}" for row in configurations.CONFIGURATIONS[:3]}
    needs = several.stages[f"compare/{ROW}@1"].needs
    assert set(needs) == {f"scores/{ROW}@1", "scores/keras-float32"}
    for name in ("onnx", "folded", "scores/keras-float32", f"scores/{ROW}"):
        assert several.peek(name) is not None  # of the run with one seed


def test_a_further_seed_calibrates_with_images_of_its_own(several: Pipeline) -> None:
    assets = several.settings.assets
    labels = read_split(assets.dataset, "train").labels
    chosen = calibration.choose(labels, several.settings.calibration_count, 1)
    record = several.artifact("calibration@1").record
    assert (record["seed"], record["indices_sha256"]) == (1, calibration.indices_sha256(chosen))
    assert record["indices_sha256"] != several.artifact("calibration").record["indices_sha256"]
    first, second = (
        several.artifact(stage).record["model_sha256"]
        for stage in (f"scores/{ROW}", f"scores/{ROW}@1")
    )
    assert first != second


@pytest.mark.usefixtures("made_here")
def test_it_is_what_a_run_with_that_seed_makes(pipeline: Pipeline) -> None:
    few = replace(pipeline.settings, calibration_count=50)
    together = Pipeline(replace(few, seeds=2)).artifact(f"scores/{ROW}@1").path("scores.npy")
    alone = Pipeline(replace(few, calibration_seed=1)).artifact(f"scores/{ROW}").path("scores.npy")
    assert together != alone
    assert np.array_equal(np.load(together), np.load(alone))


class Seeded(Bench):
    """A bench where the further seed made what the first one made, if it is not there itself."""

    @property
    def stages(self) -> dict[str, Stage]:
        """Those of the pipeline."""
        return self._pipeline.stages

    def artifact(self, stage: str) -> Artifact:
        """The planted artefact, or the honest one."""
        found = self._planted.get(stage) or self._pipeline.peek(stage)
        return found or self._pipeline.artifact(stage.partition("@")[0])


WRONG = [asdict(equal("a scale", 1, 2))]
APART = {"disagreements": 1, "total": 2000, "probable_cause": "", "largest_difference": 0.0}
STOCK, RECIPE = configurations.stock()[0].name, configurations.recipes()[0].key
FAULTS: dict[str, tuple[str, dict[str, object], str, str]] = {
    "too few images": ("calibration", {"count": 10}, "CAL-01", "measured 10"),
    "what calibrated": ("calibration", {"checks": WRONG}, "CAL-01", "seed 1: a scale"),
    "a feed": (f"feed/{RECIPE}", {"differing_bytes": 3}, "CAL-02", "measured 3"),
    "a quantizer's feed": (f"model/{STOCK}", {"fed_sha256": ""}, "CAL-02", "seed 1: SHA-256"),
    "a layer in float": (f"model/{ROW}", {"convolutions": [8, 1]}, "ORT-02", "measured 1"),
    "the network": (f"parameters/{RECIPE}", {"checks": WRONG}, "ORT-03", "seed 1: a scale"),
    "a stored number": (f"proof/{ROW}", {"checks": WRONG}, "ORT-03", f"seed 1: {ROW}, a scale"),
    "kernels": (f"proof/{ROW}", {"exact_integers": APART}, "ORT-03", "exact integers class apart"),
    "PyTorch's": ("proof/torch-int8-tuned", {"checks": WRONG}, "PTQ-03", "seed 1: torch-int8"),
    "images": (f"scores/{ROW}", {"total": 1000}, "ORT-03", "measured 50"),
    "another model": (f"scores/{ROW}", {"model_sha256": ""}, "ORT-03", "sha256 of the model"),
    "a delta": (f"compare/{ROW}", {"delta_pp": -9.0}, "ORT-04", f"seed 1: {ROW}, delta"),
    "a drop": (f"scores/{ROW}", {"correct": 1000}, "ANL-02", f"seed 1: {ROW}, delta"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_further_seed_is_told(several: Pipeline, tmp_path: Path, fault: str) -> None:
    stage, record, requirement, said = FAULTS[fault]
    bench = Seeded(several, tmp_path)
    assert bench.verdict(requirement) == ""
    bench.plant(f"{stage}@1", record)
    assert said in bench.verdict(requirement)


def test_a_further_seed_that_calibrates_on_test_images_is_told(
    several: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Seeded(several, tmp_path)
    honest = cifar10.read_split
    monkeypatch.setattr(cifar10, "read_split", lambda folder, *_: honest(folder, "test"))
    bench.remake("calibration@1")
    monkeypatch.undo()
    said = "seed 1: images that are also test images: expected 0, observed 1000"
    assert said in bench.verdict("CAL-01")


def test_a_further_seed_that_is_the_first_again_is_told(several: Pipeline, tmp_path: Path) -> None:
    bench = Seeded(several, tmp_path)
    first = bench.artifact("calibration").record
    bench.plant("calibration@1", {"indices_sha256": first["indices_sha256"]})
    assert "calibration sets that differ: expected 2, observed 1" in bench.verdict("CAL-01")


def test_what_is_judged_is_made_with_each_seed(several: Pipeline) -> None:
    needed = {
        need
        for module in (test_cal, test_ort, test_ptq)
        for test in vars(module).values()
        for marker in getattr(test, "pytestmark", ())
        for need in marker.kwargs.get("needs", ())
    }
    assert len(needed) > 20
    assert {of_seed(name, 1) for name in needed} <= several.stages.keys()


def test_results_hold_each_count_and_their_spread(several: Pipeline) -> None:
    found = gather(several, {}, complete=False, command="pytest", started=0.0).seeds
    assert found is not None
    assert (found.seeds, found.total) == ((0, 1), 2000)
    (row,) = found.rows  # the others were not made with both
    counts = [several.artifact(f"scores/{ROW}{at}").record["correct"] for at in ("", "@1")]
    assert (row.name, list(row.correct)) == (ROW, counts)
    assert row.accuracy_percent.mean == pytest.approx(sum(counts) / 40)
    assert row.accuracy_percent.worst == pytest.approx(min(counts) / 20)
    one = Pipeline(replace(several.settings, seeds=1))
    assert gather(one, {}, complete=False, command="pytest", started=0.0).seeds is None


def test_the_gate_judges_a_row_with_each_seed(several: Pipeline) -> None:
    gated = OneRow(replace(several.settings, gate=100.0))
    found = gather(gated, {}, complete=False, command="pytest", started=0.0).gate
    assert found is not None
    passed = {*found.rows} - {*found.failing}  # the others were not made with both
    assert passed == {ROW, "onnxruntime-float32", "torch-float32"}


def test_spread_by_hand() -> None:
    assert over_seeds([87.0, 87.2, 87.1]) == pytest.approx(
        {"mean": 87.1, "deviation": 0.1, "worst": 87.0}
    )


def test_a_mean_and_its_delta_add_up() -> None:
    raw = report_samples.standin()  # 88.375 is rounded up, and 0.075 down
    accuracies, deltas = over_seeds([88.3, 88.45]), over_seeds([0.0, 0.15])
    row = {"name": "torch-int8-tuned", "correct": [1766, 1769], "agreement_percent": accuracies}
    row |= {"accuracy_percent": accuracies, "delta_pp": deltas}
    raw["seeds"] = {"seeds": [0, 1], "total": 2000, "rows": [row]}
    headers, ((*_, mean, _, _, delta, _, _),) = tables.seeds(report_samples.record(raw))
    assert len({*headers}) == len(headers)
    assert (mean, delta) == ("88.375", "+0.075")


def test_the_report_has_a_line_for_each_row() -> None:
    raw = report_samples.all_met()
    raw["seeds"] = {
        "seeds": [0, 1, 2],
        "total": 10_000,
        "rows": [
            {
                "name": "torch-int8-tuned",
                "correct": [8714, 8707, 8703],
                "accuracy_percent": over_seeds([87.14, 87.07, 87.03]),
                "delta_pp": over_seeds([-0.05, -0.12, -0.16]),
                "agreement_percent": over_seeds([99.2, 99.1, 99.3]),
            }
        ],
    }
    found = report_samples.record(raw)
    cells = "8714, 8707, 8703 | 87.080 | 0.056 | 87.03 | −0.110 | 99.20 | 99.10"
    assert f"| PyTorch int8, tuned | 7 bits: any x86 | {cells} |" in markdown.comparison(found)
    page = html.section("comparison", found)
    assert "Each quantized row made 3 times, with calibration seeds 0, 1 and 2" in page
    assert '<td class="number">0.056</td>' in page
    (worst,) = [figure for figure in outcome.figures(found) if figure.name == "Worst change"]
    assert worst[1:] == ("−0.16 pp", "PyTorch int8, tuned, worst calibration seed")
    del raw["seeds"]
    assert "Calibration seeds" not in html.section("comparison", report_samples.record(raw))
