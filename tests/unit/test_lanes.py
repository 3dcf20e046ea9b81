"""Lanes: one process for each framework, and an end of one that is not the end of the run."""

from __future__ import annotations

import functools
import graphlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval import environment, lanes
from resnet8_eval.errors import AssetError, StageError
from resnet8_eval.lanes import Job
from resnet8_eval.pipeline import Pipeline
from tests.lane_acts import behave, die, warm_up


def stage(name: str, *needs: str, lane: str = "keras", alone: bool = False) -> Job:
    return Job(name, lane, needs, alone=alone)


class Run:
    """The stages that were asked for, and what came of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []

    def __call__(self, *stages: Job) -> dict[str, Any]:
        make = functools.partial(behave, self.folder)
        logs = self.folder / "logs"
        return {**lanes.run(stages, make, logs, self.said.append, "make {} alone".format)}

    @property
    def made(self) -> dict[str, str]:
        """Name of each stage that a lane began, in order, to the process that it was in."""
        return self._lines("made")

    @property
    def warmed(self) -> dict[str, str]:
        """Name of each lane that was warmed up, to its process."""
        return self._lines("warmed")

    def _lines(self, name: str) -> dict[str, str]:
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines)  # each once
        return dict(line.rsplit(" ", 1) for line in lines)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(lanes, "_warm_up", warm_up)
    monkeypatch.setattr(lanes, "SLOTS", 2)
    return Run(tmp_path)


def test_stages_follow_those_that_they_need(run: Run) -> None:
    stages = stage("c", "b"), stage("b", "a", lane="torch"), stage("a", lane="onnxruntime")
    assert run(*stages) == {}
    assert list(run.made) == ["a", "b", "c"]
    assert run.said == ["a 0.5 s", "b 0.5 s", "c 0.5 s"]


def test_what_is_done_already_is_not_waited_for(run: Run) -> None:
    assert run(stage("b", "a")) == {}
    assert list(run.made) == ["b"]


def test_a_lane_is_one_process_and_another_lane_another(run: Run) -> None:
    run(stage("a"), stage("b"), stage("c", lane="torch"))
    made = run.made
    assert made["a"] == made["b"] != made["c"]
    assert str(os.getpid()) not in made.values()


@pytest.mark.parametrize("name", ["crash", "raise", "refuse", "unpicklable"])
def test_a_failure_fails_those_that_need_it_and_no_others(run: Run, name: str) -> None:
    after = stage("after", lane="keras")
    failures = run(
        stage(name),
        after,
        stage("child", name, lane="torch"),
        stage("grandchild", "child"),
        stage("beside", lane="torch"),
    )
    assert set(failures) == {name, "child", "grandchild"}
    assert set(run.made) == {name, "after", "beside"}
    assert f"{name} FAILED" in run.said
    root = failures[name].what
    assert failures["child"].what.startswith(f"Stage child was not run, because {name} could not")
    assert root in failures["child"].what
    assert root in failures["grandchild"].what
    assert failures["grandchild"].given == failures[name].given
    assert failures["grandchild"].next_step == failures[name].next_step


def test_a_lane_that_was_killed_between_two_stages_is_opened_anew(run: Run) -> None:
    """As when the system runs out of memory while another lane is at work."""
    after = stage("after", "kill", lane="torch")
    assert run(stage("idle", lane="torch"), stage("kill", "idle"), after) == {}
    assert run.made["idle"] != run.made["after"]


@pytest.mark.parametrize("name", ["crash", "exit"])
def test_a_crash_names_the_stage_and_a_log_that_keeps_its_last_words(
    run: Run, tmp_path: Path, name: str
) -> None:
    failures = run(stage(name), stage("after", "none"))
    error = failures[name]
    assert isinstance(error, StageError)
    assert f"Stage {name} failed" in error.what
    assert "planted: last words of native code" in error.given
    (log,) = (word for word in error.next_step.replace(";", " ").split() if word.endswith(".log"))
    assert Path(log).is_relative_to(tmp_path)
    assert error.next_step.endswith(f"; run it alone with: make {name} alone")
    assert "after" in run.made  # in a new process of the same lane, which logs as well
    assert "planted: last words of native code" in Path(log).read_text()


def test_an_error_of_a_framework_gets_words_and_one_of_the_suite_has_them(run: Run) -> None:
    failures = run(stage("raise"), stage("refuse"))
    error = failures["raise"]
    assert isinstance(error, StageError)
    assert "ValueError: planted" in error.given
    error = failures["refuse"]
    assert isinstance(error, AssetError)
    assert (error.what, error.expected, error.given, error.next_step) == ("Planted.", "a", "b", "c")


def test_of_two_causes_the_first_is_told(run: Run) -> None:
    failures = run(stage("refuse"), stage("raise"), stage("child", "raise", "refuse"))
    assert "Planted." in failures["child"].what


def test_nothing_to_do_starts_nothing(run: Run, tmp_path: Path) -> None:
    assert run() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_lane_starts_with_an_environment_of_its_own_and_no_framework(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    run(stage("environment"))
    found = dict(
        line.partition("=")[::2] for line in (tmp_path / "environment").read_text().split("\n")
    )
    expected = lanes.lane_environment()
    assert expected["PYTHONHASHSEED"] == "0"
    assert expected["CUDA_VISIBLE_DEVICES"] == ""
    assert {key: found[key] for key in expected} == expected
    assert os.environ["PYTHONHASHSEED"] == "123"
    modules = set((tmp_path / "modules").read_text().split())
    assert not modules & {"tensorflow", "keras", "torch", "onnxruntime"}


def test_lanes_are_gone_afterwards(run: Run) -> None:
    run(stage("slow"), stage("a", lane="torch"))
    processes = set(run.made.values())
    deadline = time.monotonic() + 120
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [process for process in processes if _lives(process)]


def _lives(process: str) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


CONVERTED_AND_SCORED = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from resnet8_eval import backends
from resnet8_eval.convert import keras_to_onnx

warnings.simplefilter("ignore")
path = Path(sys.argv[1])
keras_to_onnx.load(path)(np.zeros((1, 32, 32, 3), np.float32))  # as the conversion does
backends.scores(path, np.zeros((200, 32, 32, 3), np.uint8), threads=1)
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(environment.usable_cores() == 1, reason="one core: there is nothing to share")
def test_tensorflow_keeps_to_its_share_although_conversion_ran_first() -> None:
    """The main thread, one for operators, one inside them, and one that runs graphs."""
    model = Path(__file__).parents[2] / "fixtures" / "standin" / "resnet8_standin.h5"
    done = subprocess.run(  # noqa: S603 (our own interpreter and words)
        [sys.executable, "-c", CONVERTED_AND_SCORED, str(model)],
        env={**os.environ, **lanes.lane_environment(1)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= 4


def test_a_lane_that_has_to_wait_is_warmed_up_once_and_then_used(run: Run) -> None:
    assert run(stage("slow"), stage("b", "slow", lane="torch"), stage("c", "b", lane="torch")) == {}
    assert list(run.warmed) == ["torch"]
    assert run.warmed["torch"] == run.made["b"] == run.made["c"]


def test_a_lane_that_has_work_at_once_is_not_warmed_up(run: Run) -> None:
    run(stage("a", lane="torch"), stage("b", lane="onnxruntime"))
    assert run.warmed == {}


def test_keras_is_never_warmed_up(run: Run) -> None:
    """What TensorFlow says while it is imported belongs into the conversion log."""
    run(stage("slow", lane="torch"), stage("onnx", "slow"))
    assert run.warmed == {}


def test_a_warm_up_that_dies_takes_nothing_with_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_warm_up", die)
    assert run(stage("slow"), stage("b", "slow", lane="torch")) == {}
    assert list(run.made) == ["slow", "b"]


def test_a_lane_ends_as_soon_as_nothing_is_left_for_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    honest = lanes.open_lane

    def lane(name: str, threads: int, logs: Path) -> Any:
        executor = honest(name, threads, logs)
        shutdown = executor.shutdown

        def tell(*words: Any, **options: Any) -> None:
            ended.append(f"{name} after {len(run.said)}")
            shutdown(*words, **options)

        executor.shutdown = tell
        return executor

    monkeypatch.setattr(lanes, "open_lane", lane)
    run(stage("a"), stage("b", "a", lane="torch"), stage("slow", "b", lane="torch"))
    assert ended == ["keras after 1", "torch after 3"]


def test_what_a_stage_says_is_announced_while_it_is_at_work(run: Run) -> None:
    heard: dict[str, bool] = {}

    def announce(line: str) -> None:
        heard[line] = "end tell" in (run.folder / "times").read_text()

    for _ in range(2):  # what an earlier run said is not announced again
        heard.clear()
        make = functools.partial(behave, run.folder)
        assert lanes.run([stage("tell")], make, run.folder / "logs", announce) == {}
        assert heard == {"half of it": False, "tell 0.5 s": True}
        (run.folder / "times").unlink()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_stage_that_asks_for_the_machine_has_it_to_itself(run: Run, position: int) -> None:
    others = [stage("slow", lane="torch"), stage("b")]
    others.insert(position, stage("timing", lane="onnxruntime", alone=True))
    assert run(*others, stage("c", "timing", lane="torch")) == {}
    lines = (run.folder / "times").read_text().splitlines()
    begun = lines.index(f"begin timing {lanes.CORES} {lanes.CORES}")
    assert lines[begun + 1] == "end timing"
    running = 0
    for line in lines[:begun]:
        running += 1 if line.startswith("begin") else -1
    assert running == 0
    assert {line.split()[2] for line in lines if line.startswith("begin b")} == {str(lanes.THREADS)}


def test_cores_are_shared_out_anew_when_a_stage_begins_or_ends(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "CORES", 8)
    assert run(stage("share 4 8", lane="torch"), stage("had 4")) == {}
    assert list((run.folder / "logs").glob("share*")) == []


def test_a_share_that_cannot_be_told_stops_no_run(run: Run) -> None:
    (run.folder / "logs" / f"share-{os.getpid()}").mkdir(parents=True)
    assert run(stage("a"), stage("b", lane="torch")) == {}


def test_outside_of_a_lane_there_is_one_share() -> None:
    assert lanes.share() == 1


def test_needs_that_go_round_in_a_circle_are_an_error(run: Run) -> None:
    with pytest.raises(graphlib.CycleError):
        run(stage("a", "b"), stage("b", "a"))


def test_every_stage_is_made_once_and_every_framework_has_one_process(
    run: Run, pipeline: Pipeline
) -> None:
    """By the pipeline's own table of stages."""
    stages = [stage(s.name, *s.needs, lane=s.lane) for s in pipeline.stages.values()]
    assert run(*stages) == {}
    assert len(run.made) == len(stages)
    processes: dict[str, set[str]] = {entry.lane: set() for entry in stages}
    for entry in stages:
        processes[entry.lane].add(run.made[entry.name])
    assert {lane: len(found) for lane, found in processes.items()} == {
        "keras": 1,
        "onnxruntime": 1,
        "torch": 1,
    }


def test_a_lane_that_comes_to_need_more_memory_goes_on(run: Run) -> None:
    """One that imports a framework for its second stage is no leak to be ended and warned of."""
    assert run(stage("small"), stage("grow"), stage("after")) == {}
    assert len(set(run.made.values())) == 1


def test_what_is_interrupted_names_the_stages_at_hand(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line == "half of it":
            raise KeyboardInterrupt

    make = functools.partial(behave, tmp_path)
    with pytest.raises(KeyboardInterrupt) as caught:
        lanes.run([stage("tell it")], make, tmp_path / "logs", interrupt)
    assert caught.value.__notes__ == ["while it made tell it"]
