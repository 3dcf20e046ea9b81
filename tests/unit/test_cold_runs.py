"""The programs that kill, crowd and measure runs notice what they are there to notice."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval.store import RECORD_FILE, Store
from tools import cold_crowd, cold_run, kill_sweep, peak_memory


def stored(root: Path, data: bytes = b"same", **record: Any) -> dict[str, Any]:
    """The outcome of a cache with one artefact."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "data").write_bytes(data)
        (folder / "conversion.log").write_text(str(root))
        return {"steps": [{"name": "import", "seconds": len(str(root))}], **record}

    Store(root).produce("a", "key", make)
    return cold_run.outcome(root)


def test_times_make_no_difference_and_all_else_does(tmp_path: Path) -> None:
    first = stored(tmp_path / "first")
    assert cold_run.differences(first, stored(tmp_path / "the second")) == []
    assert cold_run.differences(first, stored(tmp_path / "3", b"other")) == ["a-key: data"]
    assert cold_run.differences(first, stored(tmp_path / "4", correct=1)) == ["a-key: record"]
    (tmp_path / "first" / "artifacts" / "a-key" / RECORD_FILE).write_text("")
    assert "a-key: whole" in cold_run.differences(first, cold_run.outcome(tmp_path / "first"))


def test_what_is_half_made_is_found(tmp_path: Path) -> None:
    stored(tmp_path)
    assert cold_run.leftovers(tmp_path) == []
    (tmp_path / "artifacts" / "b-key.partial").mkdir()
    (tmp_path / ".making").mkdir()
    assert cold_run.leftovers(tmp_path) == [".making", "b-key.partial"]


def test_moments_are_spread_over_the_run_and_targets_alike() -> None:
    kills = kill_sweep.plan(9, 90.0, seed=1)
    assert [int(kill.moment // 10) for kill in kills] == list(range(9))
    assert sorted(kill.target for kill in kills) == sorted(3 * kill_sweep.TARGETS)
    assert kills == kill_sweep.plan(9, 90.0, seed=1)
    assert kills != kill_sweep.plan(9, 90.0, seed=2)


OUTCOMES: dict[str, tuple[dict[str, Any] | Exception, str]] = {
    "the same": ({"correct": 1}, ""),
    "another number": ({"correct": 2}, "correct"),
    "a number less": ({}, "correct"),
    "a run that fails": (kill_sweep.RunError("exit status 1"), "exit status 1"),
}


@pytest.mark.parametrize(("outcome", "wrong"), OUTCOMES.values(), ids=OUTCOMES)
def test_the_sweep_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any, wrong: str
) -> None:
    def run(folder: Path) -> dict[str, Any]:
        if folder.name == "undisturbed":
            return {"correct": 1}
        if isinstance(outcome, Exception):
            raise outcome
        return dict(outcome)

    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(kill_sweep, "command", lambda _: waiting)
    monkeypatch.setattr(kill_sweep, "whole_run", run)
    assert kill_sweep.main(["--moments=1"]) == (1 if wrong else 0)
    kill = kill_sweep.Kill(0.1, "group")
    kill_sweep.sweep(kill, tmp_path, {"correct": 1}).join()
    assert "; ".join(kill.wrong) == wrong


def test_the_sweep_notices_what_outlives_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill_sweep, "LONGEST_ORPHAN", 0.5)
    program = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    process = cold_run.start([sys.executable, "-c", program], tmp_path)
    while len(list(cold_run.members(process.pid))) < 2:
        assert process.poll() is None
    process.kill()
    process.wait()
    kill = kill_sweep.Kill(0.0, "parent")
    kill_sweep.watch(process.pid, kill)
    assert kill.wrong == ["a process was alive 1 s later"]


def test_the_crowd_notices_a_stage_that_was_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling = [sys.executable, "-c", "print('  onnx 1.0 s')"]
    monkeypatch.setattr(cold_run, "acceptance", lambda *_: telling)
    assert cold_crowd.crowd(1, tmp_path / "1", ())[1] == []
    start = cold_run.start
    monkeypatch.setattr(cold_run, "start", lambda _, place: start(telling, place))
    assert cold_crowd.crowd(2, tmp_path / "2", ())[1] == ["onnx was made 2 times"]


HOLDING = "held = b'x' * 200_000_000; import time; time.sleep(0.5)"


@pytest.mark.parametrize(
    ("program", "bound", "status"),
    [(HOLDING, "1", 0), (HOLDING, "0.15", 1), ("raise SystemExit(3)", "1", 2)],
    ids=["within the bound", "over it", "a command that fails"],
)
def test_peak_memory(
    capsys: pytest.CaptureFixture[str], program: str, bound: str, status: int
) -> None:
    words = ["--command", f"--bound={bound}", "--", sys.executable, "-c", program]
    assert peak_memory.main(words) == status
    said = capsys.readouterr().out
    if status == 2:
        assert "the command ended with status 3" in said
    else:
        assert float(said.split("controller")[1].split()[0]) > 0.2
        assert ("over 0.15 GB: controller" in said) == (status == 1)


def test_a_lane_is_known_by_its_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "torch-1.log"
    program = f"exec 2>{log}; sleep 60"
    process = cold_run.start(["sh", "-c", f"sh -c '{program}' & wait"], tmp_path)
    kinds: set[str] = set()
    while "torch lane" not in kinds:
        assert process.poll() is None
        kinds = {member.kind for member in cold_run.members(process.pid)}
    assert "controller" in kinds
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
