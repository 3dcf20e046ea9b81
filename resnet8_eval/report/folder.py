"""The folder of the report files: those of one run, and the last complete ones beside it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resnet8_eval import results as results_json
from resnet8_eval.errors import ResultsError
from resnet8_eval.record import Results
from resnet8_eval.report import history

REPORT_FILES: Final = (
    "results.json",
    "report.html",
    "comparison.csv",
    "comparison.md",
    "summary.md",
    "junit.xml",
    "conversion.log",
)
HISTORY: Final = "history.json"
LAST_COMPLETE: Final = "last-complete"
KINDS: Final = {
    "real": "the real assets",
    "own-model": "a model of your own",
    "stand-in": "the stand-in",
}
"""Kinds of runs, which never take each other's place; each is the name of a folder."""


@dataclass(frozen=True)
class Earlier:
    """Complete runs on the same assets: the last one, and what the last ten came to."""

    last: Results | None
    runs: tuple[history.Run, ...]


class ReportFolder:
    """Where a run leaves its files, and the last complete run of each kind is never lost.

    The files directly in it are always those of the run that was started last. Before that one, the
    files of a complete run go to ``last-complete/<kind>/``; they stay there until another complete
    run of that kind stands in their place.

    Parameters
    ----------
    path
        The folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def hold(self) -> Callable[[], None]:
        """Keep every other run out of the folder, which is made if need be.

        Returns
        -------
        callable
            Lets others in again. So does the end of this process, however it ends.

        Raises
        ------
        BlockingIOError
            If another run holds the folder.
        OSError
            If it cannot be made or opened.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # The folder itself is locked: a file to lock would lie among the reports.
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return functools.partial(os.close, descriptor)

    def demand_writable(self) -> None:
        """Make the folder if need be; OSError if no report file can be written into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path):
            pass
        for name in REPORT_FILES:
            if (self.path / name).is_dir():
                raise IsADirectoryError(f"{self.path / name} is a folder")

    def clear(self) -> dict[str, bytes]:
        """Leave no file of an earlier run, so that none is taken for one of this run.

        Returns
        -------
        dict
            What was removed, by name, for :meth:`restore`.

        Raises
        ------
        OSError
            If no file could be written either; nothing is moved then.
        """
        self.demand_writable()
        kind = self._complete()
        if kind is not None:
            self._keep(kind)
        found = [path for name in REPORT_FILES if (path := self.path / name).exists()]
        cleared = {path.name: path.read_bytes() for path in found}
        for path in found:
            path.unlink()
        return cleared

    def restore(self, cleared: dict[str, bytes]) -> None:
        """Put back what was cleared for a run that then ran nothing."""
        for name in REPORT_FILES:
            (self.path / name).unlink(missing_ok=True)
        for name, content in cleared.items():
            (self.path / name).write_bytes(content)
        if kind := self._complete():  # it stands here again
            self._drop(kind)

    def earlier(self, results: Results) -> Earlier:
        """What is known of complete runs before this one, on the same assets."""
        kept = self._kept(_kind(results.assets.kind, results.assets.user_model))
        last = None
        with contextlib.suppress(ResultsError):
            last = results_json.read(kept / "results.json")
        if last and history.fingerprint(last.assets) != history.fingerprint(results.assets):
            last = None
        return Earlier(last, history.of_same_assets(history.read(self.path / HISTORY), results))

    def settle(self, results: Results) -> None:
        """Add a complete run to the history, and remove the one that it replaces."""
        if results.complete:
            history.written(self.path / HISTORY, results)
            self._drop(_kind(results.assets.kind, results.assets.user_model))

    def _drop(self, kind: str) -> None:
        shutil.rmtree(self._kept(kind), ignore_errors=True)
        with contextlib.suppress(OSError):
            self._kept(kind).parent.rmdir()

    def kept(self) -> Iterable[str]:
        """What is kept of earlier runs, a sentence for each."""
        for kind, words in KINDS.items():
            if self._kept(kind).exists():
                yield f"The last complete run on {words} is kept in {self._kept(kind)}"

    def _kept(self, kind: str) -> Path:
        return self.path / LAST_COMPLETE / kind

    def _complete(self) -> str | None:
        """The kind of the complete run whose files are here; None if there is none."""
        try:
            results = json.loads((self.path / "results.json").read_text(encoding="utf-8"))
            assets = results["assets"]
            kind = _kind(assets["kind"], assets["user_model"])
            return kind if results["complete"] is True and kind in KINDS else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def _keep(self, kind: str) -> None:
        """Copy the files aside, so that a kill at any moment leaves them whole in one place."""
        kept = self._kept(kind)
        copy = kept.with_name(f"{kind}.partial")
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for name in REPORT_FILES:
            if (self.path / name).exists():
                shutil.copy2(self.path / name, copy)
        shutil.rmtree(kept, ignore_errors=True)
        copy.rename(kept)


def _kind(assets: str, user_model: bool) -> str:
    return "own-model" if user_model and assets == "real" else assets
