"""The folder of the report files: nothing stale in it, and no complete run lost."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval.report.folder import REPORT_FILES, ReportFolder
from tests.crash_points import killed


def write(folder: Path, kind: str = "real", user_model: bool = False, **more: Any) -> None:
    """Leave the files of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {"complete": True, "assets": {"kind": kind, "user_model": user_model}, **more}
    for name in REPORT_FILES:
        (folder / name).write_text(json.dumps(results))


def held(folder: Path) -> dict[str, str]:
    """Name to text of the files directly in a folder; nothing where there is none."""
    found = folder.iterdir() if folder.exists() else ()
    return {path.name: path.read_text() for path in found if path.is_file()}


def test_runs_on_other_assets_are_kept_apart(tmp_path: Path) -> None:
    expected = {}
    kinds = [("real", False, "real"), ("real", True, "own-model"), ("stand-in", False, "stand-in")]
    for kind, user_model, name in kinds:
        write(tmp_path, kind, user_model)
        expected[name] = held(tmp_path)
        ReportFolder(tmp_path).clear()
        assert held(tmp_path) == {}
    assert {path.name: held(path) for path in (tmp_path / "last-complete").iterdir()} == expected
    assert [line.partition(" is kept in ")[0] for line in ReportFolder(tmp_path).kept()] == [
        "The last complete run on the real assets",
        "The last complete run on a model of your own",
        "The last complete run on the stand-in",
    ]


def test_a_model_of_ones_own_on_the_standin_takes_no_real_runs_place(tmp_path: Path) -> None:
    write(tmp_path, "real", user_model=True)
    real = held(tmp_path)
    ReportFolder(tmp_path).clear()
    write(tmp_path, "stand-in", user_model=True)
    ReportFolder(tmp_path).clear()
    assert held(tmp_path / "last-complete" / "own-model") == real
    assert held(tmp_path / "last-complete" / "stand-in")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"complete": true}',
        '{"complete": "yes", "assets": {"kind": "real", "user_model": false}}',
        '{"complete": true, "assets": {"kind": "../..", "user_model": false}}',
        '{"complete": true, "assets": {"kind": [], "user_model": false}}',
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_complete_run_is_not_kept_as_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    (tmp_path / "README.md").write_text("not ours")
    ReportFolder(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_what_was_cleared_is_put_back_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "junit.xml").unlink()
    before = held(tmp_path)
    folder = ReportFolder(tmp_path)
    cleared = folder.clear()
    for name in ("junit.xml", "report.html"):
        (tmp_path / name).write_text("of a call that ran nothing")
    folder.restore(cleared)
    assert held(tmp_path) == before


def test_a_kill_at_any_step_loses_nothing(tmp_path: Path) -> None:
    """In a process of its own, which is forked faster than one that has frameworks."""
    words = [sys.executable, "-m", __name__, str(tmp_path)]
    subprocess.run(words, cwd=Path(__file__).parents[2], check=True, timeout=60)  # noqa: S603 (our own words)


def demand_that_no_kill_loses_anything(root: Path) -> None:
    for step in itertools.count(1):
        folder = root / str(step)
        write(folder, run="before")
        ReportFolder(folder).clear()
        write(folder, run="last")
        last, kept = held(folder), folder / "last-complete" / "real"
        was_killed = killed(folder, step, ReportFolder(folder).clear)
        assert last in (held(folder), held(kept)), f"killed at step {step}"
        ReportFolder(folder).clear()
        assert (held(folder), held(kept)) == ({}, last), f"killed at step {step}"
        assert [path.name for path in kept.parent.iterdir()] == ["real"]
        if not was_killed:
            break
    assert step > len(REPORT_FILES)


HOLDING = """
import sys
from pathlib import Path
from resnet8_eval.report.folder import ReportFolder

ReportFolder(Path(sys.argv[1])).hold()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_held_by_one_run_until_it_lets_go_or_is_killed(tmp_path: Path) -> None:
    folder, link = ReportFolder(tmp_path / "reports"), tmp_path / "link"
    let_go = folder.hold()
    link.symlink_to(folder.path)
    with pytest.raises(BlockingIOError):
        ReportFolder(link).hold()
    let_go()
    with subprocess.Popen(  # noqa: S603 (our own words)
        [sys.executable, "-c", HOLDING, folder.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            folder.hold()
        other.kill()
    folder.hold()()
    assert list(folder.path.iterdir()) == []


if __name__ == "__main__":
    demand_that_no_kill_loses_anything(Path(sys.argv[1]))
