"""What is kept of the last complete runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from resnet8_eval.record import Results
from resnet8_eval.report import history, html
from resnet8_eval.report.folder import Earlier, ReportFolder
from resnet8_eval.requirements import MILESTONES
from tests.unit import report_samples
from tests.unit.report_samples import record


def run(k: int, model: str = "1") -> Results:
    results = report_samples.all_met()
    results["created"] = f"2026-01-01T00:{k:02d}:00+00:00"
    results["assets"]["model_sha256"] = model * 64
    return record(results)


def test_the_last_ten_of_the_same_assets_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    for k in range(13):
        history.written(path, run(k))
        history.written(path, run(k, "2"))
    shown = history.of_same_assets(history.read(path), run(0))
    assert [found.created[14:16] for found in shown] == [f"{k:02d}" for k in range(3, 13)]
    assert len(history.read(path)) == 20
    assert shown[-1].verdicts == dict.fromkeys(MILESTONES, "met")
    assert shown[-1].correct["torch-int8-tuned"] == 8725


def test_it_stays_small_however_many_models_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    one = history.run_of(run(0))
    others = [msgspec.structs.replace(one, assets=str(k)) for k in range(150)]
    path.write_bytes(msgspec.json.encode(others))
    history.written(path, run(1))
    kept = history.read(path)
    assert [found.assets for found in kept[:-1]] == [str(k) for k in range(51, 150)]
    assert kept[-1] == history.run_of(run(1))


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"created": 1}]', "[" * 100_000, "\udcff"])
def test_what_is_no_history_is_taken_for_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert history.read(path) == ()
    history.written(path, run(0))
    assert len(history.read(path)) == 1


def test_where_it_cannot_be_written_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.mkdir()
    with pytest.raises(OSError, match=path.name) as caught:
        history.written(path, run(0))
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_complete_run_enters_it(tmp_path: Path) -> None:
    folder = ReportFolder(tmp_path)
    folder.settle(msgspec.structs.replace(run(0), complete=False))
    assert folder.earlier(run(1)) == Earlier(None, ())
    folder.settle(run(0))
    assert len(folder.earlier(run(1)).runs) == 1
    assert folder.earlier(run(1, "2")) == Earlier(None, ())


def test_text_of_a_history_stays_text() -> None:
    planted = msgspec.structs.replace(
        history.run_of(run(0)), created="<b>", commit="<i>", verdicts={"v1_0": "<u>"}
    )
    page = html.page(run(1), earlier=Earlier(run(0), (planted,)))
    assert not {"<b>&", "<i>", "<u>"} & set(page)
    assert "&lt;u&gt;" in page
