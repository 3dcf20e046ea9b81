"""Plant each fault of `tests/mutants.toml` in the package, and see that the tests kill it.

    python tools/mutate.py                      # all of them; some twenty minutes on two cores
    python tools/mutate.py analysis- checks-    # those whose id starts so

Each mutant lives in a copy of the checkout, in a temporary folder, with a cache of its own; the
checkout is never touched. The tests named for the mutants first run on an honest copy and must pass
there, so that a test that fails for another reason kills nothing. A mutant is killed if one of its
tests fails. One that stops pytest in any other way is broken, which counts as a survivor.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from rich.progress import track

ROOT: Final = Path(__file__).parents[1]
LIST: Final = ROOT / "tests" / "mutants.toml"
PACKAGE: Final = "resnet8_eval"
TIMEOUT_SECONDS: Final = 900
_LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "assets", "dist", "out", "reports"
)
_KILLER: Final = re.compile(r"^(?:FAILED|ERROR) (\S+\.py::.+?)(?: - .*)?$", re.MULTILINE)
"""A line of pytest's summary."""


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes
    ----------
    id
        Module and fault, such as ``"analysis-delta-sign"``.
    old, new
        Code that occurs once in the package, however its lines are broken, and what stands there
        instead. No file is named, so that a fault survives a move.
    fault
        What it is, in a line.
    tests
        What kills it: arguments for pytest.
    """

    id: str
    old: str
    new: str
    fault: str
    tests: tuple[str, ...]

    def place(self, package: Path) -> Path:
        """The one file of a package that has the code, once.

        Raises
        ------
        ValueError
            If there are none, or several.
        """
        found, tokens = [], self._tokens
        for path in sorted(package.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if all(token in text for token in tokens):  # far faster than the pattern
                found += len(self._pattern.findall(text)) * [path]
        if len(found) != 1:
            where = ", ".join(path.name for path in found) or "nowhere"
            raise ValueError(f"{self.id}: {self.old!r} must occur once; it occurs in {where}")
        return found[0]

    def applied(self, source: str) -> str:
        """The source with the fault in it."""
        return self._pattern.sub(lambda _: self.new, source)

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(
            r"(?<!\w)" * self.old[0].isidentifier() + r"\s*".join(map(re.escape, self._tokens))
        )

    @property
    def _tokens(self) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", self.old)


@dataclass(frozen=True)
class Outcome:
    """What the tests said: `verdict` is ``killed``, ``survived`` or ``broken``; `by` is why."""

    verdict: str
    by: str
    seconds: float


def load(path: Path = LIST) -> list[Mutant]:
    """Read the list of mutants."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def judge(
    checkout: Path, scratch: Path, tests: Iterable[str], mutant: Mutant | None, cache: Path | None
) -> Outcome:
    """Run tests on a copy of the checkout with a fault in it.

    Parameters
    ----------
    checkout
        What to copy.
    scratch
        An empty folder for the copy and its cache.
    tests
        Arguments for pytest.
    mutant
        The fault, or None to leave the copy honest.
    cache
        A cache to start from; its files are shared, and what lies under another key is not used.
    """
    copy, own = scratch / "checkout", scratch / "cache"
    shutil.copytree(checkout, copy, ignore=_LEFT_OUT)
    if cache is not None and cache.exists():
        shutil.copytree(cache, own, copy_function=os.link)
    if mutant is not None:
        path = mutant.place(copy / PACKAGE)
        path.write_text(mutant.applied(path.read_text(encoding="utf-8")), encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", *tests]
    started = time.perf_counter()
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter and words)
            words,
            cwd=copy,
            # The tests start processes of their own, and these must find the copy as well.
            env={**os.environ, "PYTHONPATH": str(copy), "RESNET8_EVAL_CACHE": str(own)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome("broken", f"no end after {TIMEOUT_SECONDS} s", TIMEOUT_SECONDS)
    seconds = time.perf_counter() - started
    killer = _KILLER.search(done.stdout)
    if done.returncode == pytest.ExitCode.TESTS_FAILED and killer:
        return Outcome("killed", killer[1], seconds)
    if done.returncode == pytest.ExitCode.OK:
        return Outcome("survived", "all tests passed", seconds)
    return Outcome("broken", " ".join(done.stdout.split()[-40:]), seconds)


def run(mutants: Sequence[Mutant], console: Console) -> int:
    """Judge each mutant, and say what came of it; return how many were not killed."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    alive = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        with console.status("the tests without a fault"):
            (folder / "honest").mkdir()
            honest = judge(ROOT, folder / "honest", ["--assets=stand-in", *tests], None, None)
        if honest.verdict != "survived":
            console.print(f"Without a fault the tests do not pass: {honest.by}", markup=False)
            return len(mutants)
        console.print(f"honest: all tests pass ({honest.seconds:.0f} s)")
        for mutant in track(mutants, "mutants", console=console):
            scratch = folder / mutant.id
            scratch.mkdir()
            words = ["--assets=stand-in", *mutant.tests]
            found = judge(ROOT, scratch, words, mutant, folder / "honest" / "cache")
            shutil.rmtree(scratch)
            alive += found.verdict != "killed"
            console.print(
                f"{found.verdict.upper() if found.verdict != 'killed' else 'killed':9}"
                f"{mutant.id:40} {found.seconds:4.0f} s  {found.by}",
                markup=False,
                soft_wrap=True,
                highlight=False,
            )
    minutes = (time.perf_counter() - started) / 60
    console.print(f"{len(mutants) - alive} of {len(mutants)} mutants killed in {minutes:.0f} min")
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ids", nargs="*", help="ids, or how they start (default: all)")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    arguments = parser.parse_args()
    starts = tuple(arguments.ids) or ("",)
    chosen = [mutant for mutant in load() if mutant.id.startswith(starts)]
    if not chosen:
        parser.error(f"no mutant has an id that starts with {', '.join(starts)}; see --list")
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.id:40} {mutant.fault}")
        return
    sys.exit(1 if run(chosen, Console()) else 0)


if __name__ == "__main__":
    main()
