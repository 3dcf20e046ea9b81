"""Full disks, folders that may only be read, odd names, no network, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnx
import pytest

from resnet8_eval import results
from resnet8_eval.backends import scores
from resnet8_eval.backends.onnxruntime import open_session
from resnet8_eval.cifar10 import Split
from resnet8_eval.cli.options import whole_folder
from resnet8_eval.configurations import CONFIGURATIONS, Configuration
from resnet8_eval.errors import ModelError, StageError
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.store import Store
from tests.small_flow import (
    BYTES,
    DEATH,
    ROOT,
    SITE,
    STAGES,
    WARM_UPS,
    as_user,
    begun,
    command_line,
    ended_well,
    made,
    site,
)
from tests.unit import report_samples

ODD: Final = "münchen ü 日本"

# --- full disks ----------------------------------------------------------------------------------


def limited(size: int) -> Callable[[], None]:
    """For a process that is about to start: files may not grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# Room for half of a stage's file, or for all of it and no record.
@pytest.mark.parametrize("room", [BYTES // 2, BYTES], ids=["half a file", "a file and no record"])
def test_a_full_disk_ends_the_run_in_words_and_leaves_nothing(tmp_path: Path, room: int) -> None:
    cache, environment = tmp_path / "cache", site(tmp_path / "site")
    full = command_line(cache, environment, preexec_fn=limited(room))
    said = full.communicate(timeout=60)[0]
    assert full.returncode == 1
    assert "There is no room: File too large." in said
    assert "first FAILED" in said
    assert "cache clear" in said
    assert "--cache-dir" in said
    assert not list((cache / "artifacts").iterdir())


def test_a_device_that_is_full_is_told_as_well(tmp_path: Path) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "data").symlink_to("/dev/full")
        (folder / "data").write_bytes(b"x")
        return {}

    with pytest.raises(StageError, match="There is no room: No space left"):
        Store(tmp_path).produce("a", "key", fill)
    assert not list((tmp_path / "artifacts").iterdir())


@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk_is_told_by_the_file_or_by_the_folders_that_it_may_be(
    tmp_path: Path, named: bool
) -> None:
    file = tmp_path / "tmp" / "tmpabc"

    def fill(folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device", *([str(file)] if named else []))

    with pytest.raises(StageError, match="There is no room: No space left") as caught:
        Store(tmp_path / "cache").produce("a", "key", fill)
    both = f"{tmp_path / 'cache'}, or the folder of temporary files"
    assert caught.value.given == (str(file) if named else both)
    for way in ("cache clear", "--cache-dir", "TMPDIR"):
        assert way in caught.value.next_step


def test_a_full_temporary_folder_is_not_taken_for_a_broken_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = onnx.helper.make_tensor_value_info
    tensors = [value(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", tensors[:1], tensors[1:])
    opset = onnx.helper.make_opsetid("", 17)
    model, full = tmp_path / "model.onnx", Path("/dev/full")
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), model)
    open_session(model, 1)
    free = {full.parent: 10**9}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))
    with pytest.raises(ModelError, match="cannot be opened"):
        open_session(model, 1, "default", save_to=full)
    free[full.parent] = 0
    with pytest.raises(StageError, match=r"(?s)no room.*TMPDIR"):
        open_session(model, 1, "default", save_to=full)


def told_by(*words: object, **more: Any) -> str:
    """What a command that must refuse says on standard error."""
    call = [sys.executable, "-m", "resnet8_eval", *map(str, words)]
    done = subprocess.run(call, stderr=subprocess.PIPE, text=True, check=False, timeout=60, **more)  # noqa: S603 (our own words)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.stderr


def test_a_report_on_a_full_disk_leaves_the_last_one(tmp_path: Path) -> None:
    source, page = tmp_path / "results.json", tmp_path / "report.html"
    source.write_text(results.encode(report_samples.record(report_samples.all_met())))
    page.write_text("the last good one")
    said = told_by("report", source, preexec_fn=limited(1000))
    assert said.startswith("error: There is no room: File too large.")
    assert f"given:    {page}\n" in said
    assert page.read_text() == "the last good one"
    assert sorted(tmp_path.iterdir()) == [page, source]


def test_an_output_folder_on_a_full_disk_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left") as caught, whole_folder(out):
        Path("/dev/full").write_text("x")
    assert caught.value.filename == str(out)
    assert not out.exists()


# More than Python keeps back at once, and less.
@pytest.mark.parametrize("words", [["requirements"], ["cache", "size"]], ids=" ".join)
def test_standard_output_on_a_full_disk_is_told(tmp_path: Path, words: list[str]) -> None:
    environment = os.environ | {"RESNET8_EVAL_CACHE": str(tmp_path)}
    with Path("/dev/full").open("wb") as full:
        said = told_by(*words, "--json", stdout=full, env=environment)
    assert said.startswith("error: There is no room: No space left on device.")
    assert "given:    standard output" in said


def test_another_error_of_the_system_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Store(tmp_path).produce("a", "key", lambda folder: (folder / "none").stat() and {})


# --- folders that may only be read ---------------------------------------------------------------


@pytest.fixture
def sealed() -> Iterator[Callable[[Path], None]]:
    """Take the right to write from all below a folder, and give it back afterwards."""
    folders = []

    def seal(folder: Path) -> None:
        folders.append(folder)
        _permit(folder, 0o555)
        program = "import sys; open(sys.argv[1], 'w')"
        probe = [sys.executable, "-c", program, str(folder / "probe")]
        tried = subprocess.run(probe, preexec_fn=as_user, check=False, stderr=subprocess.PIPE)  # noqa: S603 (our own words)
        assert b"PermissionError" in tried.stderr, (
            "This system lets a process write where it has no permission, so that nothing can be "
            "tested in a folder that may only be read. Run the tests as a user who is not root."
        )

    yield seal
    for folder in folders:
        _permit(folder, 0o755)


def _permit(folder: Path, mode: int) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(mode)
        elif path.is_file():
            path.chmod(mode & 0o644)


def test_a_cache_that_may_only_be_read_serves_what_it_has_and_nothing_else(
    tmp_path: Path, sealed: Callable[[Path], None]
) -> None:
    cache, environment = tmp_path / "cache", site(tmp_path / "site")
    before = ended_well(command_line(cache, environment))
    sealed(cache)
    after = ended_well(command_line(cache, environment, preexec_fn=as_user))
    assert after in before  # without the lines on what was made
    assert after.count(str(cache)) == len(STAGES)
    lacking = command_line(cache, environment, "--calibration-seed=7", preexec_fn=as_user)
    said = lacking.communicate(timeout=60)[0]
    assert lacking.returncode == 1
    assert said.startswith("error: The cache folder cannot be written to: Permission denied.")
    assert f"given:    {cache}" in said
    assert "Traceback" not in said


# --- odd names, no network, and nothing left behind ----------------------------------------------

WATCH: Final = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["WATCH_NOTE"], "a") as notes:
            notes.write(f"{event} {arguments}\\n")
        raise PermissionError("planted: there is no network")

sys.addaudithook(watch)
"""


class Watched:
    """An environment without network, lanes included, that has a temporary folder of its own."""

    def __init__(self, folder: Path, planted: str = "") -> None:
        self.environment = site(folder, WATCH + planted)
        self._note, self._scratch = folder / "note", folder / "tmp"
        self._scratch.mkdir()
        self.environment |= {"WATCH_NOTE": str(self._note), "TMPDIR": str(self._scratch)}

    def connections(self) -> str:
        """What a process tried to reach."""
        return self._note.read_text() if self._note.exists() else ""

    def left_behind(self) -> list[Path]:
        """What is in the temporary folder."""
        return list(self._scratch.iterdir())


def test_the_watch_would_notice(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "site")
    program = "import socket, tempfile; tempfile.mkdtemp(); socket.create_connection(('::1', 9))"
    words = [sys.executable, "-c", program]
    assert subprocess.run(words, env=watched.environment, check=False).returncode == 1  # noqa: S603 (our own words)
    assert watched.connections().startswith("socket.getaddrinfo")
    assert len(watched.left_behind()) == 1


def test_a_cold_run_with_lanes_needs_no_network_and_leaves_nothing_behind(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "site", SITE)
    process = command_line(tmp_path / ODD / "cache", {**watched.environment, WARM_UPS: "1"})
    ended_well(process)
    assert set(made(tmp_path / ODD / "cache")) == set(STAGES)
    assert watched.connections() == ""
    assert watched.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"*loky-{process.pid}-*"))  # noqa: S108 (its semaphores)


def test_a_run_that_is_asked_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM, as by `timeout` or a CI job that is cancelled."""
    watched, cache = Watched(tmp_path / "site", SITE), tmp_path / "cache"
    process = command_line(cache, {**watched.environment, DEATH: "first asked"})
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert said == ""
    assert begun(cache) == {"first": 1}
    assert watched.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"*loky-{process.pid}-*"))  # noqa: S108 (its semaphores)


@pytest.fixture
def odd_cache(pipeline: Pipeline, tmp_path: Path) -> Path:
    """The stand-in's cache, by a name with spaces and letters beyond ASCII."""
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "cache").symlink_to(pipeline.settings.cache_dir, target_is_directory=True)
    return tmp_path / ODD / "cache"


def test_the_acceptance_run_from_a_checkout_that_may_only_be_read(
    odd_cache: Path, tmp_path: Path, sealed: Callable[[Path], None]
) -> None:
    """Everything is made, the network is forbidden, and every name is odd."""
    watched = Watched(tmp_path / "site")
    checkout, reports = tmp_path / ODD / "checkout", tmp_path / ODD / "reports"
    for name in ("resnet8_eval", "tests", "fixtures"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copyfile(ROOT / name, checkout / name)
    sealed(checkout)
    options = ["--assets=stand-in", f"--cache-dir={odd_cache}", f"--reports-dir={reports}"]
    options += ["-k", "not eval_05"]  # speed is measured on an idle machine
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "pytest", "tests/acceptance", *options],
        cwd=checkout,
        env=watched.environment,
        preexec_fn=as_user,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((reports / "results.json").read_text())
    assert {stage["cache"] for stage in results["stages"].values()} == {"hit"}
    model = Path(results["configurations"][0]["files"]["model"])
    assert model.is_relative_to(checkout)
    assert {"report.html", "comparison.md", "comparison.csv", "junit.xml"} <= {
        path.name for path in reports.iterdir()
    }
    assert watched.connections() == ""
    assert watched.left_behind() == []


def test_the_command_line_with_odd_names(odd_cache: Path, tmp_path: Path) -> None:
    watched = Watched(tmp_path / "site")
    stages = ["scores/torch-int8-tuned", "structure/onnx"]
    options = ["--assets", "stand-in", "--cache-dir", str(odd_cache)]
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "resnet8_eval", "run", *stages, *options],
        env=watched.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(odd_cache / "artifacts")) == 2
    assert watched.connections() == ""
    assert watched.left_behind() == []


@pytest.mark.parametrize("row", CONFIGURATIONS, ids=lambda row: row.name)
def test_every_framework_reads_a_model_with_an_odd_name(
    pipeline: Pipeline, tmp_path: Path, standin_test: Split, row: Configuration
) -> None:
    source = model_path(pipeline, row)
    odd = tmp_path / ODD / f"{ODD}{source.suffix}"
    odd.parent.mkdir()
    shutil.copyfile(source, odd)
    found = scores(odd, standin_test.images[:8], threads=1, execution=row.execution)
    stored = np.load(pipeline.artifact(f"scores/{row.name}").path("scores.npy"))[:8]
    assert (found.argmax(axis=1) == stored.argmax(axis=1)).all()


SESSION: Final = """
import sys, time
from pathlib import Path
from resnet8_eval.backends.onnxruntime import open_session
open_session(Path(sys.argv[1]), 1)
time.sleep(0.5)
"""


def test_onnx_runtime_reports_to_nobody(pipeline: Pipeline, tmp_path: Path) -> None:
    """Its telemetry would leave a device's number, a session's number and what it is to send."""
    watched = Watched(tmp_path / "site")
    (tmp_path / "home").mkdir()
    model = pipeline.artifact("folded").path("folded.onnx")
    environment = {**watched.environment, "HOME": str(tmp_path / "home")}
    for name in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    words = [sys.executable, "-c", SESSION, str(model)]
    subprocess.run(words, env=environment, check=True, timeout=60)  # noqa: S603 (our own words)
    assert watched.left_behind() == []
    assert not list((tmp_path / "home").iterdir())


DESCRIPTORS: Final = """
import gc, os, sys
from pathlib import Path
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.inputs import Settings
from tests import small_flow

def run(name):
    made = Pipeline(Settings(small_flow.locate(), Path(sys.argv[1]) / name))
    made.prepare(small_flow.STAGES)
    assert all(map(made.peek, small_flow.STAGES))
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

print(run("first"), run("second"))
"""


def test_a_run_closes_what_it_opened(tmp_path: Path) -> None:
    """After the first, which starts what stays for the life of a process."""
    words = [sys.executable, "-c", DESCRIPTORS, str(tmp_path)]
    said = subprocess.check_output(words, env=site(tmp_path / "site"), timeout=60)  # noqa: S603 (our own words)
    first, second = said.split()
    assert first == second
