"""Run stages, each framework in a process of its own.

A lane is one worker process for one framework. A framework is imported once in its lane and in
no other, so lanes overlap, memory stays bounded, the warnings of an import can be caught, and a
crash in native code ends one lane and not the suite. Threads are divided among the lanes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resnet8_eval.environment import usable_cores
from resnet8_eval.errors import StageError, SuiteError

if TYPE_CHECKING:
    from resnet8_eval.pipeline import Settings, Stage

Announce = Callable[[str], None]

LANES: Final = ("keras", "onnxruntime", "torch")
SLOTS: Final = max(1, min(len(LANES), usable_cores()))
"""Stages that run at the same time."""
THREADS: Final = max(1, usable_cores() // SLOTS)
"""Threads that each of them may use."""
IDLE_SECONDS: Final = 60
"""A lane without work ends after this long."""


def run(
    stages: Mapping[Stage, str], settings: Settings, done: Iterable[str], announce: Announce
) -> dict[str, SuiteError]:
    """Make every stage, as soon as those that it needs are made.

    Parameters
    ----------
    stages
        What is missing, in order of urgency, with the key of each.
    settings
        What they are made from.
    done
        Names of the stages that exist already.
    announce
        Told one line about each stage that ends.

    Returns
    -------
    dict
        The stages that could not be made, and why. The others are in the store.
    """
    waiting = list(stages)
    finished = set(done)
    failures: dict[str, SuiteError] = {}
    running: dict[Future[float], tuple[str, Stage | None]] = {}
    lanes: dict[str, Any] = {}
    warm: set[str] = set()
    leaving: list[threading.Thread] = []

    def free(lane: str) -> bool:
        return len(running) < SLOTS and lane not in {busy for busy, _ in running.values()}

    def start(lane: str, stage: Stage | None, function: Callable[..., float], *words: Any) -> None:
        if lane not in lanes:
            lanes[lane] = _lane(lane, settings)
        running[lanes[lane].submit(function, *words)] = (lane, stage)

    try:
        while waiting or running:
            for stage in list(waiting):
                broken = [need for need in stage.needs if need in failures]
                if broken:
                    waiting.remove(stage)
                    failures[stage.name] = _not_made(stage.name, broken[0], failures[broken[0]])
                elif free(stage.lane) and finished.issuperset(stage.needs):
                    waiting.remove(stage)
                    warm.add(stage.lane)
                    start(stage.lane, stage, _make, settings, stage.name, stages[stage])
            for lane in {stage.lane: None for stage in waiting if stage.lane in _WARM_UPS}:
                if lane not in warm and free(lane):
                    warm.add(lane)
                    start(lane, None, _warm_up, lane)
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                lane, made = running.pop(future)
                try:
                    seconds = future.result()
                except Exception as error:  # whatever a framework raises is this stage's failure
                    if not isinstance(error, SuiteError):
                        lanes.pop(lane).shutdown(wait=False, kill_workers=True)
                    if made is not None:
                        failures[made.name] = _explained(made, error, settings)
                        announce(f"{made.name} FAILED")
                else:
                    if made is not None:
                        finished.add(made.name)
                        announce(f"{made.name} {seconds:.1f} s")
            needed = {stage.lane for stage in waiting} | {lane for lane, _ in running.values()}
            for lane in set(lanes) - needed:
                # A framework takes its time to leave; what comes next need not wait for it.
                leaving.append(threading.Thread(target=lanes.pop(lane).shutdown))
                leaving[-1].start()
    finally:
        for executor in lanes.values():
            executor.shutdown(wait=True, kill_workers=bool(running))
        for thread in leaving:
            thread.join()
    return failures


def _warm_up(lane: str) -> float:
    """In a lane: import what its stages will need, while they wait for others.

    A framework that cannot be imported is the first stage's to report.
    """
    with contextlib.suppress(Exception):
        _WARM_UPS[lane]()
    return 0.0


def _import_onnxruntime() -> None:
    import onnxruntime.quantization  # noqa: F401


def _import_torch() -> None:
    import torch

    # Most of what torch.export needs is imported by the first call.
    torch.export.export(torch.nn.Identity(), (torch.zeros(1),))


_WARM_UPS: Final = {"onnxruntime": _import_onnxruntime, "torch": _import_torch}
"""Not Keras: conversion logs what TensorFlow says while it is imported."""


def _make(settings: Settings, name: str, key: str) -> float:
    """In a lane: make one stage and return how long it took."""
    from resnet8_eval.pipeline import Pipeline

    # A framework's half a million objects stay anyway; the collector need not walk them each time.
    gc.freeze()
    pipeline = Pipeline(settings)
    if pipeline.key(name) != key:
        raise StageError(
            f"Stage {name} was not made, because the suite changed while it was running.",
            expected="the code, packages and processor settings that the run started with",
            given="others in the process that was to make it",
            next_step="run again, and edit or install nothing meanwhile",
        )
    return pipeline.make(name).seconds


def _lane(name: str, settings: Settings) -> Any:
    from loky.process_executor import ProcessPoolExecutor

    log = log_path(name, settings)
    log.parent.mkdir(parents=True, exist_ok=True)
    return ProcessPoolExecutor(
        max_workers=1,
        timeout=IDLE_SECONDS,
        initializer=_open_lane,
        initargs=(str(log), os.getpid()),
        env=lane_environment(),
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


def log_path(lane: str, settings: Settings) -> Path:
    """Where a lane's native code writes what it has to say."""
    return settings.cache_dir / "logs" / f"{lane}-{os.getpid()}.log"


def _open_lane(log: str, parent: int) -> None:
    # Registered first, so called last.
    atexit.register(_leave)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # C++ libraries write to the descriptor, past sys.stderr.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _leave() -> None:
    """End without unloading the framework, which takes a second and frees nothing that stays."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with(parent: int) -> None:
    """End this lane soon after its parent was killed, and not only when it has idled."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _explained(stage: Stage, error: Exception, settings: Settings) -> SuiteError:
    if isinstance(error, SuiteError):
        return error
    log = log_path(stage.lane, settings)
    tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
    return StageError(
        f"Stage {stage.name} failed.",
        expected="a finished artefact",
        given="\n            ".join([f"{type(error).__name__}: {error}", *tail]),
        next_step=f"read {log}; run it alone with: python -m resnet8_eval run {stage.name}",
    )


def _not_made(name: str, need: str, cause: SuiteError) -> SuiteError:
    root = cause.what
    return StageError(
        f"Stage {name} was not run, because {need} could not be made. {root}",
        expected=cause.expected,
        given=cause.given,
        next_step=cause.next_step,
    )
