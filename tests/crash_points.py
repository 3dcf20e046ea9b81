"""Kill a process at each step that it takes in the cache, and tell what the next one makes of it.

    python -m tests.crash_points FOLDER

The process makes every stage of :mod:`tests.small_flow`. It is forked again and again; the first is
killed before its first step, the second before its second, until one comes to its end. Steps are
what Python's audit hooks tell: files opened, folders made, listed, renamed, removed.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet8_eval.inputs import Settings
from resnet8_eval.pipeline import Pipeline
from tests import small_flow


def make_all(cache: Path) -> None:
    """Make every stage, here."""
    made = Pipeline(Settings(small_flow.locate(), cache))
    for name in small_flow.STAGES:
        made.make(name, 1)


def killed(folder: Path, step: int, work: Callable[[], object]) -> bool:
    """Fork a process that works and is killed at a step in a folder; whether it came that far."""
    child = os.fork()
    if not child:
        steps = itertools.count(1)

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            first = arguments[0] if arguments else None
            inside = isinstance(first, str | os.PathLike) and str(first).startswith(f"{folder}/")
            if inside and next(steps) == step:  # what is told is about to happen
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def crashes(root: Path) -> Iterator[dict[str, Any]]:
    """What each kill left, and what the run after it made."""
    expected_cache = root / "undisturbed"
    expected_cache.mkdir()
    make_all(expected_cache)
    expected = small_flow.made(expected_cache)
    for step in itertools.count(1):
        cache = root / str(step)
        cache.mkdir()
        if not killed(cache, step, functools.partial(make_all, cache)):
            return
        trusted = small_flow.made(cache)
        partial = {
            folder.name: {path.name: path.stat().st_size for path in folder.iterdir()}
            for folder in cache.glob("artifacts/*.partial")
        }
        locks = [path.name for path in cache.glob("locks/*")]
        (cache / "notes").write_text("")
        make_all(cache)
        yield {
            "trusted": list(trusted),
            "trusted as made": all(expected[name] == found for name, found in trusted.items()),
            "half made": partial,
            "locks": locks,
            "made by the next": list(small_flow.begun(cache)),
            "the same": small_flow.made(cache) == expected,
            "left": [path.name for path in cache.glob("artifacts/*.partial")],
        }


if __name__ == "__main__":
    small_flow.plant()
    small_flow.PAUSE = 0
    print(json.dumps(list(crashes(Path(sys.argv[1])))))
