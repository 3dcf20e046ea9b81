"""What a lane does in tests of lanes. It imports little, for every lane has to import it."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet8_eval import lanes
from resnet8_eval.errors import AssetError

GROWN: list[bytes] = []


def behave(folder: Path, name: str, threads: int) -> float:
    """What a lane does here, instead of making a stage: as the stage's name says."""
    with (folder / "made").open("a") as made:
        made.write(f"{name} {os.getpid()}\n")
    with (folder / "times").open("a") as times:
        times.write(f"begin {name} {threads} {os.environ['OMP_NUM_THREADS']}\n")
    _behave(folder, name)
    with (folder / "times").open("a") as times:
        times.write(f"end {name}\n")
    return 0.5


def has_share(wanted: int) -> bool:
    return lanes.share() == wanted


def wait_until(it_is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not it_is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def _behave(folder: Path, name: str) -> None:
    match name.split(maxsplit=1)[0]:
        case "crash":
            os.write(2, b"planted: last words of native code\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os.write(2, b"planted: last words of native code\n")
            os._exit(3)
        case "raise":
            raise ValueError("planted")
        case "refuse":
            raise AssetError("Planted.", expected="a", given="b", next_step="c")
        case "unpicklable":
            raise UnpicklableError(lambda: None)
        case "environment":
            text = "\n".join(f"{k}={v}" for k, v in os.environ.items())
            (folder / "environment").write_text(text)
            (folder / "modules").write_text(" ".join(sys.modules))
        case "share":  # such as "share 4 8": ends when it has had a share of 4, and then of 8
            for wanted in name.split()[1:]:
                wait_until(functools.partial(has_share, int(wanted)))
                (folder / f"had {wanted}").touch()
        case "had":
            wait_until((folder / name).exists)
        case "slow":
            time.sleep(0.3)
        case "kill":
            made = (folder / "made").read_text()
            os.kill(int(made.split("idle ")[1].split()[0]), signal.SIGKILL)
            time.sleep(1)  # until the crew knows
        case "tell":
            print("progress is not this", file=sys.stderr)
            lanes.say("half of it")
            time.sleep(1.2)
        case "grow":
            GROWN.append(b"x" * 400_000_000)
            time.sleep(1.1)  # loky measures once in a second


class UnpicklableError(Exception):
    def __init__(self, what: Any) -> None:
        super().__init__(what)


def warm_up(lane: str) -> float:
    """What a lane does here instead of importing its framework; the log's folder is the cache's."""
    cache = Path("/proc/self/fd/2").readlink().parents[1]
    with (cache / "warmed").open("a") as warmed:
        warmed.write(f"{lane} {os.getpid()}\n")
    return 0.0


def die(lane: str) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(lane)
