"""Kill cold runs at many moments, and see that the run after each gives the same numbers.

    python -m tools.kill_sweep --moments 50

A cold acceptance run on the stand-in is killed with SIGKILL: its whole process group, its parent
alone, or one of its lanes. The next run starts at once from the cache that was left, and all that
it says and leaves is held against an undisturbed run, but for times. Moments are spread over the
length of that run, one at random in each of equal slices. All of it happens in a folder whose name
has spaces and letters beyond ASCII. Exit status 1 if anything differs, if a
run does not end well, if something half made is left in a cache, or if a process outlives its
parent for longer than a minute.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from resnet8_eval.store import Store
from tools import cold_run

TARGETS: Final = ("group", "parent", "lane")
LONGEST_RUN: Final = 600
"""Seconds after which a run counts as hanging."""
LONGEST_ORPHAN: Final = 60
"""Seconds that a process may live after the kill of its parent."""


class RunError(Exception):
    """A run that was not killed did not end well."""


@dataclass
class Kill:
    """One kill, and what came after it.

    Attributes
    ----------
    moment
        Seconds after the start of the run.
    target
        ``group``, ``parent``, or the kind of lane.
    artifacts
        How many whole artefacts were there at that moment.
    left
        What half-made things were there.
    wrong
        What was not as it should be in the run after it.
    orphans
        Seconds until the last process of the killed run was gone.
    """

    moment: float
    target: str
    artifacts: int = 0
    left: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    orphans: float = 0.0


def command(folder: Path) -> list[str]:
    """A run on the stand-in with its cache and its reports in a folder."""
    return cold_run.acceptance(
        "--assets=stand-in",
        f"--cache-dir={folder / 'cache'}",
        f"--reports-dir={folder / 'reports'}",
    )


def whole_run(folder: Path) -> dict[str, Any]:
    """Run to the end, and return the outcome.

    Raises
    ------
    RunError
        If the run does not end well; with its output.
    """
    status = cold_run.start(command(folder), folder).wait(LONGEST_RUN)
    if status:
        raise RunError(f"exit status {status}\n{(folder / 'output.txt').read_text()}")
    cache = folder / "cache"
    return cold_run.outcome(cache) | cold_run.results(cache, folder / "reports")


def killed_run(folder: Path, kill: Kill) -> int:
    """Start a run, kill what is to be killed at its moment, and return the group."""
    process = cold_run.start(command(folder), folder)
    time.sleep(kill.moment)
    lanes = [one for one in cold_run.members(process.pid) if one.kind.endswith("lane")]
    if process.poll() is not None:
        kill.target = "(had ended)"
    elif kill.target == "lane" and lanes:
        lane = random.Random(kill.moment).choice(lanes)  # noqa: S311 (not for secrets)
        kill.target = lane.kind
        os.kill(lane.pid, signal.SIGKILL)
        process.wait(LONGEST_RUN)
    elif kill.target == "parent":
        process.kill()
        process.wait()
    else:
        kill.target = "group"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kill.left = cold_run.leftovers(folder / "cache")
    kill.artifacts = sum(found is not None for _, found in Store(folder / "cache").artifacts())
    return process.pid


def watch(group: int, kill: Kill) -> None:
    """Wait until nothing of a killed run is alive."""
    killed = time.monotonic()
    while any(cold_run.members(group)):
        kill.orphans = time.monotonic() - killed
        if kill.orphans > LONGEST_ORPHAN:
            kill.wrong.append(f"a process was alive {kill.orphans:.0f} s later")
            os.killpg(group, signal.SIGKILL)
            return
        time.sleep(0.5)


def sweep(kill: Kill, folder: Path, expected: dict[str, Any]) -> threading.Thread:
    """Kill one run, make the next, and return what still watches the remains of the first."""
    watcher = threading.Thread(target=watch, args=(killed_run(folder, kill), kill))
    watcher.start()
    try:
        kill.wrong += cold_run.differences(expected, whole_run(folder))
    except RunError as error:
        kill.wrong.append(str(error))
    kill.wrong += [f"left: {name}" for name in cold_run.leftovers(folder / "cache")]
    return watcher


def plan(moments: int, seconds: float, seed: int) -> list[Kill]:
    """Moments spread over a run, each target as often as the others."""
    chance = random.Random(seed)  # noqa: S311 (not for secrets)
    targets = [TARGETS[index % len(TARGETS)] for index in range(moments)]
    chance.shuffle(targets)
    return [
        Kill((index + chance.random()) * seconds / moments, target)
        for index, target in enumerate(targets)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=50, help="kills (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and targets (default 0)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kill sweep ü 日本 ") as scratch:
        folder = Path(scratch)
        started = time.monotonic()
        expected = whole_run(folder / "undisturbed")
        seconds = time.monotonic() - started
        print(f"undisturbed run: {seconds:.1f} s, {len(expected)} values to compare")
        print(
            f"{'kill':>4} {'moment':>8}  {'killed':17} {'artefacts':>9}  {'half made':9}  next run"
        )
        kills = plan(chosen.moments, seconds, chosen.seed)
        watchers = []
        for number, kill in enumerate(kills):
            watchers.append(sweep(kill, folder / str(number), expected))
            said = "; ".join(kill.wrong) or "the same"
            print(
                f"{number:4} {kill.moment:6.1f} s  {kill.target:17} {kill.artifacts:9}"
                f"  {len(kill.left):9}  {said}",
                flush=True,
            )
        for watcher in watchers:
            watcher.join()
    wrong = [kill for kill in kills if kill.wrong]
    longest = max((kill.orphans for kill in kills), default=0.0)
    print(f"{len(kills) - len(wrong)} of {len(kills)} kills made no difference")
    print(f"longest life of a process after the kill of its parent: {longest:.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
