"""Runs of the product in a process group of their own: started, watched, and held against another.

Shared by the programs beside it that kill runs, start many at once, or measure their memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from resnet8_eval.store import Store

ROOT: Final = Path(__file__).parents[1]
ARTIFACTS_OF_TIME: Final = ("conversion.log",)
"""Files of artefacts that tell how long something took."""
FIELDS_OF_TIME: Final = frozenset({"cache", "command", "created", "ended", "seconds", "started"})
"""Fields of results.json and of records that tell when, how long, or what was there before."""


def acceptance(*words: str) -> list[str]:
    """The acceptance run as a command, with more words of the command line."""
    words_of_ours = ["tests/acceptance", "-q", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *words_of_ours, *words]


def start(command: list[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command in the checkout, as the leader of a process group of its own.

    Parameters
    ----------
    command
        What to run.
    folder
        Its output goes to ``output.txt`` here, its temporary files to ``tmp`` here.
    environment
        More environment variables.
    """
    scratch = folder / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(  # noqa: S603 (the caller's own words, no shell)
            command,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@dataclass(frozen=True)
class Member:
    """A process of a group.

    Attributes
    ----------
    pid
        Its number.
    kind
        ``controller`` (the group's leader), ``<name> lane``, or ``helper`` (of multiprocessing).
    rss
        Memory that it holds, bytes.
    """

    pid: int
    kind: str
    rss: int


def members(group: int) -> Iterator[Member]:
    """The living processes of a group, read from ``/proc``."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                pages = int((entry / "statm").read_text().split()[1])
                yield Member(
                    int(entry.name), _kind(entry, group), pages * os.sysconf("SC_PAGE_SIZE")
                )


def _kind(entry: Path, group: int) -> str:
    if int(entry.name) == group:
        return "controller"
    log = (entry / "fd" / "2").readlink()
    if log.parent.name == "logs":  # a lane's native code writes there
        return f"{log.name.partition('-')[0]} lane"
    return "helper"


def outcome(cache: Path) -> dict[str, Any]:
    """All artefacts of a cache, but for times, by name."""
    found: dict[str, Any] = {}
    for folder, artifact in Store(cache).artifacts():
        found[f"{folder.name}: whole"] = artifact is not None
        if artifact is not None:
            found[f"{folder.name}: record"] = _timeless(artifact.record)
            for name, sha256 in artifact.files.items():
                if name not in ARTIFACTS_OF_TIME:
                    found[f"{folder.name}: {name}"] = sha256
    return found


def results(cache: Path, reports: Path) -> dict[str, Any]:
    """All that a run's ``results.json`` says, but for times and places, by name."""
    said = json.loads((reports / "results.json").read_text().replace(str(cache), ""))
    return {f"results.json: {name}": value for name, value in _timeless(said).items()}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what two outcomes do not share."""
    return [name for name in sorted({*one, *other}) if one.get(name, one) != other.get(name, other)]


def leftovers(cache: Path) -> list[str]:
    """What a producer that ended before its time has left in a cache."""
    left = [*(cache / "artifacts").glob("*.partial"), *cache.glob(".making")]
    return sorted(path.name for path in left)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in FIELDS_OF_TIME}
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value
