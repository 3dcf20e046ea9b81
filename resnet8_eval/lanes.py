"""Run jobs, each framework in a process of its own.

A lane is one worker process for one framework. A framework is imported once in its lane and in
no other, so lanes overlap, memory stays bounded, the warnings of an import can be caught, and a
crash in native code ends one lane and not the suite. Threads are divided among the lanes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final

from resnet8_eval.configurations import FRAMEWORKS
from resnet8_eval.environment import usable_cores
from resnet8_eval.errors import StageError, SuiteError

Announce = Callable[[str], None]
Make = Callable[[str, int], float]
"""Makes the named job with a given number of threads, and returns how many seconds that took. It
must be picklable: it is called in the lane."""

CORES: Final = usable_cores()
SLOTS: Final = max(1, min(len(FRAMEWORKS), CORES))
"""Jobs that run at the same time."""
THREADS: Final = max(1, CORES // SLOTS)
"""Threads that each of them may use."""
_SHARE: Final = "RESNET8_EVAL_SHARE"
"""Variable of a lane that names the file from which :func:`share` reads."""
IDLE_SECONDS: Final = 60
"""A lane without work ends after this long."""
_PROGRESS: Final = "progress: "
_TICK: Final = 0.5
"""Seconds between two looks at what the running stages have said."""


@dataclass(frozen=True)
class Job:
    """One thing to make.

    Attributes
    ----------
    name
        What :data:`Make` is told, such as ``"scores/torch-int8"``.
    lane
        The worker process that makes it.
    needs
        Jobs that must be done first.
    alone
        Whether nothing else may run meanwhile. It then has every core.
    """

    name: str
    lane: str
    needs: tuple[str, ...]
    alone: bool = field(default=False, kw_only=True)


def run(
    jobs: Sequence[Job],
    make: Make,
    logs: Path,
    announce: Announce,
    alone: Callable[[str], str | None] = lambda _: None,
) -> dict[str, SuiteError]:
    """Do every job as soon as those that it needs are done.

    Parameters
    ----------
    jobs
        What to do, each behind those that it needs; of those that could run, the first is the most
        urgent. Needs that are not among them are done already.
    make
        Does one.
    logs
        Folder for what native code writes to standard error.
    announce
        Told one line about each job that ends.
    alone
        Gives the command that does a named job by itself; None where there is none.

    Returns
    -------
    dict
        The jobs that could not be done, and why.
    """
    TopologicalSorter({job.name: job.needs for job in jobs}).prepare()  # or raise CycleError
    known, done, left = {job.name for job in jobs}, set[str](), list(jobs)
    failures: dict[str, SuiteError] = {}
    crew = _Crew(logs, announce, alone)
    try:
        while True:
            ready = [job for job in left if done.issuperset(known.intersection(job.needs))]
            for job in sorted(ready, key=lambda job: job.alone):
                if crew.has_room_for(job):
                    left.remove(job)
                    crew.start(job, make)
            crew.warm_up({job.lane: None for job in left})
            if not crew.running:
                break
            for ended, result in crew.ended():
                if isinstance(result, SuiteError):
                    failures[ended.name] = result
                    announce(f"{ended.name} FAILED")
                else:
                    done.add(ended.name)
                    announce(f"{ended.name} {result:.1f} s")
            _spread(failures, jobs)
            left = [job for job in left if job.name not in failures]
            crew.dismiss_but({job.lane for job in left})
    except BaseException as error:
        making = [job.name for _, job in crew.running.values() if job is not None]
        error.add_note(f"while it made {', '.join(making)}" if making else "between two stages")
        raise
    finally:
        crew.disband()
    return failures


def _spread(failures: dict[str, SuiteError], jobs: Iterable[Job]) -> None:
    """Add the jobs that need a failed job."""
    for job in jobs:
        broken = next((need for need in job.needs if need in failures), None)
        if broken and job.name not in failures:
            cause = failures[broken]
            failures[job.name] = StageError(
                f"Stage {job.name} was not run, because {broken} could not be made. {cause.what}",
                expected=cause.expected,
                given=cause.given,
                next_step=cause.next_step,
            )


class _Crew:
    """The lanes of a run: worker processes, each with one job at a time."""

    def __init__(self, logs: Path, announce: Announce, alone: Callable[[str], str | None]) -> None:
        self._logs = logs
        self._announce = announce
        self._alone = alone
        self._heard: dict[Path, int] = {}
        self._lanes: dict[tuple[str, int], Any] = {}
        self._leaving: list[threading.Thread] = []
        self._warm: set[str] = set()
        self.running: dict[Future[float], tuple[tuple[str, int], Job | None]] = {}

    def has_room_for(self, job: Job) -> bool:
        """Whether a job could start now."""
        return not self.running if job.alone else self._is_free(job.lane)

    def start(self, job: Job, make: Make) -> None:
        """Begin a job in its lane."""
        threads = CORES if job.alone else THREADS
        self._warm.add(job.lane)
        self._submit((job.lane, threads), job, make, job.name, threads)

    def warm_up(self, lanes: Iterable[str]) -> None:
        """Import the frameworks of lanes that have to wait for others."""
        for lane in lanes:
            if lane in _WARM_UPS and lane not in self._warm and self._is_free(lane):
                self._warm.add(lane)
                self._submit((lane, THREADS), None, _warm_up, lane)

    def ended(self) -> Iterable[tuple[Job, float | SuiteError]]:
        """Wait until something ends; yield each job that did, with its seconds or why it failed."""
        done: set[Future[float]] = set()
        while not done:
            done = wait(self.running, _TICK, FIRST_COMPLETED).done
            self._hear()
        ended = [(future, *self.running.pop(future)) for future in done]
        self._share_out()
        for future, lane, job in ended:
            try:
                result: float | SuiteError = future.result()
            except SuiteError as error:
                result = error
            except Exception as error:  # whatever a framework raises is this job's failure
                self._lanes.pop(lane).shutdown(wait=False, kill_workers=True)
                log = log_path(lane[0], self._logs)
                result = explained(job.name, error, log, self._alone(job.name)) if job else 0.0
            if job is not None:
                yield job, result

    def dismiss_but(self, needed: set[str]) -> None:
        """End the lanes that have nothing left to do."""
        busy = {lane for lane, _ in self.running.values()}
        for lane in [lane for lane in self._lanes if lane not in busy and lane[0] not in needed]:
            # A framework takes its time to leave; what comes next need not wait for it.
            thread = threading.Thread(target=self._lanes.pop(lane).shutdown)
            self._leaving.append(thread)
            thread.start()

    def disband(self) -> None:
        """End every lane; one that is at work is killed."""
        for executor in self._lanes.values():
            executor.shutdown(wait=True, kill_workers=bool(self.running))
        for thread in self._leaving:
            thread.join()
        with contextlib.suppress(OSError):
            _share_file(self._logs).unlink()

    def _share_out(self) -> None:
        """Tell the running jobs how many cores each has, in one byte, so that none reads half."""
        each = max(1, CORES // max(1, len(self.running)))
        # Where nothing can be written, as on a full disk, a share is missing or an old one.
        with contextlib.suppress(OSError):
            file = os.open(_share_file(self._logs), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, bytes([min(255, each)]), 0)
            finally:
                os.close(file)

    def _hear(self) -> None:
        """Announce what stages have said with :func:`say` since the last call."""
        for path, heard in self._heard.items():
            with contextlib.suppress(OSError), path.open("rb") as log:
                log.seek(heard)
                new = log.read()
                whole = new[: new.rfind(b"\n") + 1]
                self._heard[path] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    if line.startswith(_PROGRESS):
                        self._announce(line.removeprefix(_PROGRESS))

    def _is_free(self, lane: str) -> bool:
        alone = any(job is not None and job.alone for _, job in self.running.values())
        busy = {name for (name, _), _ in self.running.values()}
        return len(self.running) < SLOTS and lane not in busy and not alone

    def _submit(
        self, lane: tuple[str, int], job: Job | None, call: Callable[..., float], *words: Any
    ) -> None:
        if lane not in self._lanes:
            self._lanes[lane] = open_lane(*lane, self._logs)
            log = log_path(lane[0], self._logs)
            self._heard.setdefault(log, log.stat().st_size if log.exists() else 0)
        try:
            future = self._lanes[lane].submit(call, *words)
        except BrokenExecutor:  # its process was killed while it had nothing to do
            self._lanes.pop(lane).shutdown(wait=False, kill_workers=True)
            self._submit(lane, job, call, *words)
        else:
            self.running[future] = (lane, job)
            self._share_out()


def _warm_up(lane: str) -> float:
    """In a lane: import what its stages will need; if that fails, the first of them reports it."""
    with contextlib.suppress(Exception):
        _WARM_UPS[lane]()
    return 0.0


def _import_torch() -> None:
    import torch

    # Most of what torch.export needs is imported by the first call.
    torch.export.export(torch.nn.Identity(), (torch.zeros(1),))


_WARM_UPS: Final[dict[str, Callable[[], object]]] = {
    "onnxruntime": lambda: importlib.import_module("onnxruntime.quantization"),
    "torch": _import_torch,
}
"""Not Keras: conversion logs what TensorFlow says while it is imported."""


def open_lane(name: str, threads: int, logs: Path) -> Any:
    """A worker process, as an executor; it ends with the process that opened it.

    Parameters
    ----------
    name
        Names its log.
    threads
        Threads that a framework may use in it.
    logs
        Folder for what native code writes to standard error.
    """
    from loky.process_executor import ProcessPoolExecutor

    log = log_path(name, logs)
    log.parent.mkdir(parents=True, exist_ok=True)
    return ProcessPoolExecutor(
        max_workers=1,
        timeout=IDLE_SECONDS,
        initializer=_enter,
        initargs=(str(log), os.getpid()),
        env={
            **lane_environment(threads),
            _SHARE: str(_share_file(logs)),
            # torch.export makes this folder, in the system's temporary one if not told where.
            "TORCHINDUCTOR_CACHE_DIR": str(logs / "inductor"),
        },
    )


def lane_environment(threads: int = THREADS) -> Mapping[str, str]:
    """Environment variables that a process with a framework is started with.

    Parameters
    ----------
    threads
        Threads that the framework may use.
    """
    return {
        "CUDA_VISIBLE_DEVICES": "",  # every figure here is a CPU figure
        "KERAS_BACKEND": "tensorflow",
        "KERAS_HOME": os.devnull,  # nor what the user's keras.json says
        # loky takes a lane that imports a framework late for one that leaks, ends it, and warns.
        "LOKY_MAX_MEMORY_LEAK_SIZE": "1e15",
        # Large arrays that are freed stay with the process, for all its threads; else glibc maps
        # each one anew.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",  # tf2onnx numbers its constants in the order of a set
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "1",
        # TensorFlow takes a number of threads once, before the conversion that runs first.
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # torch.export.load would fall back to unpickling whatever a file holds.
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }


def log_path(lane: str, logs: Path) -> Path:
    """Where a lane's native code writes what it has to say."""
    return logs / f"{lane}-{os.getpid()}.log"


def say(line: str) -> None:
    """In a lane: have one line of progress announced while the stage is at work."""
    print(f"{_PROGRESS}{line}", file=sys.stderr, flush=True)


def share() -> int:
    """In a lane: cores that a stage has now, with those that no other stage needs.

    Batches that are computed at once change no result; operators with more threads may.
    """
    try:
        return Path(os.environ[_SHARE]).read_bytes()[0]
    except (KeyError, OSError, IndexError):  # no lane of a run, or not written yet
        return 1


def _share_file(logs: Path) -> Path:
    return logs / f"share-{os.getpid()}"


def _enter(log: str, parent: int) -> None:
    # A framework's half a million objects stay; the collector need not walk them again and again.
    gc.set_threshold(50_000)
    # Registered first, so called last.
    atexit.register(_leave)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # C++ libraries write to the descriptor, past sys.stderr.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _leave() -> None:
    """End without unloading the framework: unloading takes a second and gains nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with(parent: int) -> None:
    """End this lane soon after its parent was killed, and not only when it has idled."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def explained(name: str, error: Exception, log: Path, alone: str | None) -> SuiteError:
    """What to raise for a job that failed with an error that has no words of its own."""
    tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
    return StageError(
        f"Stage {name} failed.",
        expected="a finished artefact",
        given="\n            ".join([f"{type(error).__name__}: {error}", *tail]),
        next_step=f"read {log}" + (f"; run it alone with: {alone}" if alone else ""),
    )
