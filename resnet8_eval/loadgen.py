"""One run of MLCommons LoadGen in this process.

LoadGen draws the images, takes the times and says whether a run is valid. What it cannot know is
measured beside it: a clock that jumps, a model that waits, a machine that others use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from resnet8_eval.backends import Runtime
from resnet8_eval.preprocess import Images, preprocess
from resnet8_eval.requirements import MIN_QUERIES
from resnet8_eval.store import Record

Scenario = Literal["SingleStream", "Offline"]
SCENARIOS: Final[tuple[Scenario, ...]] = ("SingleStream", "Offline")
LOADED: Final = 1000
"""Images that LoadGen has in memory at a time."""
FASTEST_NS: Final = 2_000
"""No model answers a single image in less: one that computes nothing takes 6,000 here."""
MAX_CLOCK_ERROR: Final = 0.1
"""Share of a run by which LoadGen's clock, which follows the system's time, may differ from the
steady clock."""
CALL_S: Final = 1e-4
"""Seconds of each call that only one of the two clocks may see."""
_clock: Callable[[], float] = time.monotonic


def load_test(
    runtime: Runtime,
    images: Images,
    scenario: Scenario,
    folder: Path,
    *,
    seconds: float = 0.0,
    queries: int = MIN_QUERIES,
    batch: int = 1,
    accuracy: bool = False,
) -> Record:
    """One run of LoadGen in this process.

    Parameters
    ----------
    scenario
        One query at a time, or all at once.
    folder
        Made, for LoadGen's logs.
    seconds, queries
        Least length of the run, in seconds (SingleStream) and in images.
    batch
        Images that the model is given at a time.
    accuracy
        Whether every image is asked for once and its scores go into LoadGen's log.

    Returns
    -------
    dict
        ``valid`` and ``reasons``; ``queries``; ``figures`` (``p50_ms``, ``p90_ms``, ``p99_ms``, or
        ``images_per_second``; none in accuracy mode); ``loadgen_s`` and ``clock_s``, what LoadGen
        and the steady clock say that the answers took; ``wall_s``, ``own_s``, ``others_s`` and
        ``capacity_s``, time of the run and processor time of this process, of others, and in all.
    """
    import mlperf_loadgen as loadgen

    loaded, place = preprocess(images[:0]), dict[int, int]()
    answered, clock_s = 0, 0.0

    def load(indices: list[int]) -> None:
        nonlocal loaded, place
        loaded, place = preprocess(images[indices]), {index: n for n, index in enumerate(indices)}

    def issue(samples: list[Any]) -> None:
        nonlocal answered, clock_s
        started = _clock()
        for first in range(0, len(samples), batch):
            part = samples[first : first + batch]
            fed = loaded[[place[sample.index] for sample in part]]
            scores = np.ascontiguousarray(runtime(fed), dtype=np.float32)
            address, size = scores.ctypes.data, scores.strides[0]
            done = (
                loadgen.QuerySampleResponse(sample.id, address + n * size, size)
                for n, sample in enumerate(part)
            )
            loadgen.QuerySamplesComplete(list(done))
        answered += len(samples)
        clock_s += _clock() - started

    settings, log = loadgen.TestSettings(), loadgen.LogSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    mode = "AccuracyOnly" if accuracy else "PerformanceOnly"
    settings.mode = getattr(loadgen.TestMode, mode)
    settings.min_duration_ms = round(1000 * seconds)
    settings.min_query_count = queries
    # From this, LoadGen decides how many queries to prepare; a run that uses them up is invalid.
    settings.single_stream_expected_latency_ns = FASTEST_NS
    folder.mkdir(parents=True)
    log.log_output.outdir = str(folder)
    log.enable_trace = False
    sut = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(len(images), min(LOADED, len(images)), load, lambda _: None)
    before = _times()
    try:
        loadgen.StartTestWithLogSettings(sut, library, settings, log)
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    wall, own, idle = (_times() - before).tolist()
    capacity = wall * (psutil.cpu_count() or 1)
    return {
        **_judged(folder / "mlperf_log_detail.txt", scenario, answered, clock_s, accuracy),
        "queries": answered,
        "clock_s": clock_s,
        "wall_s": wall,
        "own_s": own,
        "others_s": capacity - idle - own,
        "capacity_s": capacity,
    }


def _judged(
    detail: Path, scenario: Scenario, answered: int, clock_s: float, accuracy: bool
) -> Record:
    """What LoadGen's detailed log says of a run, and whether it can be believed."""
    marker = ":::MLLOG "
    lines = detail.read_text().splitlines()
    entries = [json.loads(line.removeprefix(marker)) for line in lines if line.startswith(marker)]
    said = {entry["key"]: entry["value"] for entry in entries}
    reasons = [str(e["value"]) for e in entries if e["metadata"]["is_error"]]
    if accuracy:
        return {"valid": not reasons, "reasons": reasons, "figures": {}, "loadgen_s": None}
    if said.get("result_validity") != "VALID":
        reasons.append(f"LoadGen calls the run {said.get('result_validity', 'nothing')}")
    if answered < MIN_QUERIES:
        reasons.append(f"{answered} queries, fewer than {MIN_QUERIES}")
    calls = 1
    if scenario == "SingleStream":
        calls = answered
        percentiles = {p: said.get(f"result_{p}.00_percentile_latency_ns", 0) for p in (50, 90, 99)}
        figures = {f"p{p}_ms": ns / 1e6 for p, ns in percentiles.items()}
        loadgen_s = answered * said.get("result_mean_latency_ns", 0) / 1e9
    else:
        figures = {"images_per_second": said.get("result_samples_per_second", 0)}
        loadgen_s = answered / (figures["images_per_second"] or np.inf)
    if abs(loadgen_s - clock_s) > MAX_CLOCK_ERROR * clock_s + CALL_S * calls:
        reasons.append(
            f"the clocks disagree: the answers took {loadgen_s:.3f} s by LoadGen's, which follows "
            f"the system's time, and {clock_s:.3f} s by the steady one"
        )
    valid = not reasons and all(figure > 0 for figure in figures.values())
    return {"valid": valid, "reasons": reasons, "figures": figures, "loadgen_s": loadgen_s}


def _times() -> NDArray[np.float64]:
    """Seconds: of the steady clock, of this process, and of processors with nothing to do."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return np.array([time.monotonic(), time.process_time(), idle])
