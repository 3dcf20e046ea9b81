"""Start many runs at once on one cold cache, and see that each artefact is made once.

    python -m tools.cold_crowd 2 4 8

Half of each crowd are acceptance runs with two pytest workers, the others make the same stages from
the command line; all on the stand-in. Every artefact has to be made by one process and once, all
have to end well, and what the crowd left must be what one run alone leaves, but for times. Exit
status 1 if not.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from resnet8_eval.store import Store
from tools import cold_run

LONGEST_RUN: Final = 900
"""Seconds after which a crowd counts as hanging."""
_MADE: Final = re.compile(r"^  (\S+) \d+\.\d s$", re.MULTILINE)


def crowd(size: int, folder: Path, stages: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Run so many at once; return what each left or said, and what was wrong.

    Parameters
    ----------
    size
        Number of processes.
    folder
        For the cache, and for the reports and output of each.
    stages
        What the command line is asked for.
    """
    cache, wrong = folder / "cache", []
    places = [folder / str(number) for number in range(size)]
    commands = [
        cold_run.acceptance(
            "--assets=stand-in", f"--cache-dir={cache}", f"--reports-dir={place / 'reports'}", "-n2"
        )
        if number % 2 == 0
        else [
            *(sys.executable, "-m", "resnet8_eval", "run", *stages),
            *("--assets", "stand-in", "--cache-dir", str(cache)),
        ]
        for number, place in enumerate(places)
    ]
    processes = [
        cold_run.start(command, place) for command, place in zip(commands, places, strict=True)
    ]
    deadline = time.monotonic() + LONGEST_RUN
    for number, process in enumerate(processes):
        try:
            status = process.wait(max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        if status:
            said = (places[number] / "output.txt").read_text()
            wrong.append(f"process {number}: exit status {status}\n{said}")
    made = Counter(
        name for place in places for name in _MADE.findall((place / "output.txt").read_text())
    )
    wrong += [f"{name} was made {times} times" for name, times in made.items() if times != 1]
    wrong += [f"left: {name}" for name in cold_run.leftovers(cache)]
    found = cold_run.outcome(cache) | {"stages made": len(made)}
    for number, place in enumerate(places):
        if (place / "reports" / "results.json").exists():
            found[f"results of {number}"] = cold_run.results(cache, place / "reports")
    return found, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", type=int, nargs="*", default=[2, 4, 8], help="default 2 4 8")
    chosen = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory(prefix="cold crowd ü 日本 ") as scratch:
        alone, wrong = crowd(1, Path(scratch) / "alone", ())
        if wrong:
            print("alone: " + "\n".join(wrong))
            return 1
        results = alone.pop("results of 0")
        artifacts = Store(Path(scratch) / "alone" / "cache").artifacts()
        stages = [artifact.stage for _, artifact in artifacts if artifact]
        print(f"alone: {alone['stages made']} stages made")
        for size in chosen.sizes:
            started = time.monotonic()
            found, wrong = crowd(size, Path(scratch) / str(size), stages)
            for name in [name for name in found if name.startswith("results of")]:
                wrong += [f"{name}: {d}" for d in cold_run.differences(results, found.pop(name))]
            wrong += cold_run.differences(alone, found)
            failed |= bool(wrong)
            said = "\n".join(wrong) or "each made once, all the same as alone"
            print(f"{size} at once, {time.monotonic() - started:.0f} s: {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
