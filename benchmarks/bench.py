"""Measure the suite: cold, warm, by stage, by runtime, and as the work grows.

    python -m benchmarks.bench [--repetitions 3] [--part NAME ...]

On the real assets. Every figure is the median of whole processes, with the least and the most; runs
that are compared take turns. Nothing else should run meanwhile: the load at the start is printed.
The table goes to standard output, the figures to reports/benchmark.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.plain import STEPS
from resnet8_eval import configurations as rows
from resnet8_eval import environment, network, onnx_graph
from resnet8_eval.assets import default_cache_dir, locate
from resnet8_eval.inputs import Settings
from resnet8_eval.lanes import lane_environment
from resnet8_eval.pipeline import Pipeline, model_path

ROOT: Final = Path(__file__).parents[1]
Lines = Iterator[str]
PRODUCT: Final = """
import time, torch
torch.set_num_threads({threads})
a, times = torch.rand(2048, 2048), []
for _ in range(8):
    start = time.perf_counter()
    a @ a
    times.append(time.perf_counter() - start)
print(2 * 2048**3 / min(times))
"""


class Bench:
    """Runs commands and keeps what they took.

    Parameters
    ----------
    folder
        For caches and reports.
    repetitions
        Of each command.
    """

    def __init__(self, folder: Path, repetitions: int) -> None:
        self.folder = folder
        self.repetitions = repetitions
        self.figures: dict[str, Any] = {}
        cache = default_cache_dir()
        self.assets = locate("real", assets_dir=None, cache_dir=cache, announce=print)
        # Every run is given this folder, wherever the files lie, so that none downloads them.
        self.assets_dir = folder / "assets"
        self.assets_dir.mkdir()
        for path in (self.assets.model, self.assets.dataset):
            (self.assets_dir / path.name).symlink_to(path)

    def said(self, *words: str, **environ: str) -> str:
        """What Python prints that is given these words; it must succeed."""
        done = subprocess.run(  # noqa: S603 (words of this file)
            [sys.executable, *words],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "",  # what Python compiles it keeps, as is usual
                "RESNET8_EVAL_ASSETS": str(self.assets_dir),
                "RESNET8_EVAL_CACHE": str(self.folder / "cache"),
                **environ,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def once(self, *words: str) -> float:
        """Seconds that Python takes with these words."""
        start = time.perf_counter()
        self.said(*words)
        return time.perf_counter() - start

    def in_turn(self, **commands: Callable[[], float]) -> dict[str, list[float]]:
        """Run each several times, in turn, so that a slow moment meets all of them."""
        taken: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.repetitions):
            for name, command in commands.items():
                taken[name].append(command())
        return dict(taken)

    def acceptance(self, *words: str) -> float:
        """A whole run of all milestones but v1_3, whose measurement of speed takes its own time."""
        words = ("-m", "not v1_3", *words)
        places = [f"--reports-dir={self.folder / 'reports'}", "-p", "no:cacheprovider"]
        return self.once("-m", "pytest", "tests/acceptance", *places, *words)

    def cold(self, *words: str) -> float:
        """The same with an empty cache."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        return self.acceptance(*words)

    def results(self) -> dict[str, Any]:
        """What the last run left."""
        found: dict[str, Any] = json.loads((self.folder / "reports" / "results.json").read_text())
        return found


def processor_seconds() -> float:
    """What all processes that were started here, and have ended, took of any core."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spread(taken: Sequence[float], digits: int = 1) -> str:
    """Median, least and most."""
    low, high = min(taken), max(taken)
    return f"{statistics.median(taken):.{digits}f} | {low:.{digits}f}–{high:.{digits}f}"


def whole_runs(bench: Bench) -> Lines:
    """Cold, warm, and the plain script."""
    stages: dict[str, list[float]] = defaultdict(list)

    processor: list[float] = []

    def cold() -> float:
        before = processor_seconds()
        taken = bench.cold()
        processor.append(processor_seconds() - before)
        for name, stage in bench.results()["stages"].items():
            stages[name].append(stage["seconds"])
        return taken

    steps: dict[str, list[float]] = defaultdict(list)

    def plain() -> float:
        folder = bench.folder / "plain"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for step in STEPS:
            words = [str(bench.assets_dir), str(folder), step]
            steps[step].append(bench.once("-m", "benchmarks.plain", *words))
        return sum(taken[-1] for taken in steps.values())

    def alike() -> float:
        """The plain script's rows in the suite, cold: each held against the baseline."""
        shutil.rmtree(bench.folder / "cache", ignore_errors=True)
        names = [
            f"compare/{row.name}" for row in rows.CONFIGURATIONS if row not in rows.calibrated()
        ]
        return bench.once("-m", "resnet8_eval", "run", *names)

    taken = bench.in_turn(cold=cold, warm=bench.acceptance, alike=alike, plain=plain)
    collect = ["tests/acceptance", "--collect-only", "-q", "-p", "no:cacheprovider"]
    taken |= bench.in_turn(
        collect=lambda: bench.once("-m", "pytest", *collect),
        help=lambda: bench.once("-m", "resnet8_eval", "--help"),
    )
    bench.figures["whole"] = {
        **taken,
        "processor": processor,
        "stages": dict(stages),
        "steps": dict(steps),
    }
    titles = {
        "cold": "suite, cold",
        "warm": "suite, warm",
        "alike": "suite, cold: the plain script's rows",
        "plain": "plain script",
        "collect": "`pytest --collect-only`",
        "help": "`python -m resnet8_eval --help`",
    }
    yield from (
        "| Whole process | Median, s | Least–most | Faster than the plain script |",
        "|---|--:|--:|--:|",
    )
    base = statistics.median(taken["plain"])
    for name, title in titles.items():
        ratio = base / statistics.median(taken[name])
        shown = f"{ratio:.1f} times" if name in ("cold", "warm", "alike") else ""
        yield f"| {title} | {spread(taken[name], 2)} | {shown} |"
    yield f"| suite, cold: processor time, all cores | {spread(processor, 2)} |  |"
    idle = [
        100 * (1 - busy / (wall * environment.usable_cores()))
        for busy, wall in zip(processor, taken["cold"], strict=True)
    ]
    yield f"| suite, cold: share of the processor left idle, % | {spread(idle)} |  |"
    yield from ("", "| Step of the plain script | Median, s | Least–most |", "|---|--:|--:|")
    for name, seconds in steps.items():
        yield f"| {name} | {spread(seconds)} |"
    yield from ("", "| Stage of the suite, cold | Median, s | Least–most |", "|---|--:|--:|")
    for name, seconds in sorted(stages.items(), key=lambda entry: -statistics.median(entry[1])):
        if statistics.median(seconds) >= 0.1:
            yield f"| {name} | {spread(seconds)} |"


def by_runtime(bench: Bench) -> Lines:
    """The suite's evaluation against each runtime alone, with all cores."""
    pipeline = Pipeline(Settings(bench.assets, bench.folder / "cache"))
    names = [row.name for row in rows.CONFIGURATIONS]
    pipeline.prepare(f"scores/{name}" for name in names)
    rates: dict[str, Any] = {}
    cases = [(n, "kernel") for n in names] + [("onnxruntime-int8-tuned", "signed kernel")]
    for name, execution in cases:
        found: dict[int, Any] = {}
        for threads in (1, environment.usable_cores()):
            said = bench.said(
                *("-W", "ignore", "-m", "benchmarks.runtime"),
                *(str(model_path(pipeline, rows.of(name))), str(bench.assets.dataset)),
                *(str(threads), execution),
                **lane_environment(threads),
            )
            found[threads] = json.loads(said.splitlines()[-1])
        rates[f"{name}, {execution}"] = found
    bench.figures["runtimes"] = rates
    yield (
        "| Configuration | Threads | Suite, images/s | Runtime alone, best batch | Share "
        "| Runtime alone, all at once |"
    )
    yield "|---|--:|--:|--:|--:|--:|"
    for name, by_threads in rates.items():
        for threads, figures in by_threads.items():
            suite, rate = figures["suite"], figures["alone"]
            best = f"{rate:.0f} at {figures['batch']} | {100 * suite / rate:.0f} %"
            yield f"| {name} | {threads} | {suite:.0f} | {best} | {figures['at_once']:.0f} |"


def growth(bench: Bench) -> Lines:
    """More images, more configurations, more workers."""
    from resnet8_eval import backends
    from resnet8_eval.cifar10 import read_split

    cache = bench.folder / "cache"
    pipeline = Pipeline(Settings(bench.assets, cache))
    pipeline.prepare(["folded", f"scores/{rows.baseline().name}"])
    model = model_path(pipeline, rows.of("onnxruntime-float32"))
    images = read_split(bench.assets.dataset, "test").images
    threads = environment.usable_cores()

    def evaluation(times: int) -> Callable[[], float]:
        def work() -> float:
            many = np.concatenate([images] * times)
            start = time.perf_counter()
            backends.scores(model, many, threads=threads)
            return time.perf_counter() - start

        return work

    seeds = itertools.count(100)

    def configurations(cells: int, *ranges: str) -> Callable[[], float]:
        """Calibrate, quantize, evaluate; with a seed of its own, nothing is in the cache."""
        options = {
            "--output": [str(bench.folder / "study")],
            "--on": ["test"],
            "--count": ["1000"],
            "--cell": [row.name for row in rows.calibrated()][:cells],
            "--ranges": ranges,
            "--granularity": ["per-channel", "per-tensor"][: len(ranges)],
        }
        words = [
            word for name, values in options.items() for value in values for word in (name, value)
        ]
        study = ("-m", "resnet8_eval", "study", *words)
        return lambda: bench.once(*study, "--seed", str(next(seeds)))

    def workers(count: int) -> Callable[[], float]:
        return lambda: bench.cold("-n", str(count))

    parts = {
        "images": bench.in_turn(**{str(n * len(images)): evaluation(n) for n in (1, 2, 4)}),
        "configurations": bench.in_turn(
            **{
                "1": configurations(1, "percentile"),
                "4": configurations(4, "percentile"),
                "16": configurations(4, "percentile", "minmax"),
            }
        ),
        "workers": bench.in_turn(**{str(n): workers(n) for n in (1, 2)}),
    }
    bench.figures["growth"] = parts
    titles = {
        "images": "images, ONNX Runtime float32",
        "configurations": "configurations of a study, one calibration set",
        "workers": "pytest-xdist workers, cold run",
    }
    yield from ("| What grows | To | Median, s | Least–most |", "|---|--:|--:|--:|")
    for part, taken in parts.items():
        for number, seconds in taken.items():
            yield f"| {titles[part]} | {number} | {spread(seconds)} |"


def floor(bench: Bench) -> Lines:
    """What the multiplications alone would take at the measured rate of matrix products."""
    pipeline = Pipeline(Settings(bench.assets, bench.folder / "cache"))
    path = pipeline.artifact("folded").path("folded.onnx")
    operations = 2 * multiplications(network.read(path))
    rates = {
        threads: float(bench.said("-c", PRODUCT.format(threads=threads)))
        for threads in (1, environment.usable_cores())
    }
    bench.figures["floor"] = {"operations": operations, "rates": rates}
    total = 10_000 * operations
    yield (
        f"One image takes {operations / 1e6:.1f} million operations (a multiplication and an "
        f"addition each count), 10,000 images {total / 1e9:.0f} billion."
    )
    yield from (
        "",
        "| Threads | float32 matrix product, Gop/s | 10,000 images, s |",
        "|--:|--:|--:|",
    )
    for threads, rate in rates.items():
        yield f"| {threads} | {rate / 1e9:.0f} | {total / rate:.2f} |"


def multiplications(folded: network.Network) -> int:
    """Multiplications of the convolutions and the matrix product for one image."""
    constants, shapes = folded.constants(), onnx_graph.shapes(folded.model)
    return sum(
        constants[layer.weight].size * math.prod(shapes[layer.output][2:])
        for layer in folded.weighted
    )


PARTS: Final = {"whole": whole_runs, "runtimes": by_runtime, "growth": growth, "floor": floor}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, action="append")
    chosen = parser.parse_args(arguments)
    described = environment.describe()
    print(f"{described['cpu']['model']}, {described['cpu']['cores']} cores, ", end="")
    print(f"{', '.join(described['cpu']['flags'])}; Python {described['python']}; ", end="")
    print(f"load {os.getloadavg()[0]:.2f}; {chosen.repetitions} repetitions")
    with tempfile.TemporaryDirectory(prefix="resnet8-bench-") as folder:
        bench = Bench(Path(folder), chosen.repetitions)
        for name in chosen.part or PARTS:
            print()
            for line in PARTS[name](bench):
                print(line, flush=True)
    target = ROOT / "reports" / "benchmark.json"
    target.write_text(json.dumps({"environment": described, **bench.figures}, indent=1))


if __name__ == "__main__":
    main()
