"""The errors a user can meet. Each says what was wrong, expected, given, and what to do next."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from typing import Final

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a full disk, a used-up quota, and a file larger than is allowed."""
_LITTLE: Final = 16 * 2**20
"""Bytes free. What did not fit into the temporary folder is some megabytes, and already gone."""


class SuiteError(Exception):
    """An error that says what was wrong, expected and given, and what to do next."""

    def __init__(self, what: str, expected: str, given: str, next_step: str) -> None:
        # All four, from which a copy is made where the error crosses to another process.
        super().__init__(what, expected, given, next_step)
        self.what, self.expected, self.given, self.next_step = what, expected, given, next_step

    def __str__(self) -> str:
        return (
            f"{self.what}\n"
            f"  expected: {self.expected}\n"
            f"  given:    {self.given}\n"
            f"  next:     {self.next_step}"
        )


class AssetError(SuiteError):
    """The model or the images are missing, damaged or not what they should be."""


class ModelError(SuiteError):
    """A model is not one that this suite can judge."""


class StageError(SuiteError):
    """A step of the pipeline could not be carried out."""


class ResultsError(SuiteError):
    """A results file cannot be read, or does not keep its contract."""


def changed_asset(path: Path, expected: str, given: str) -> AssetError:
    """What to raise where a file is no longer what was verified before."""
    return AssetError(
        f"{path} changed after it had been verified.",
        expected=expected,
        given=given,
        next_step="run again, and leave the file alone meanwhile; what was read is not kept",
    )


def full_temporary_folder(error: Exception, cache: Path | None = None) -> StageError | None:
    """What to raise where it is the temporary folder that has no room; None where it is not.

    Where the error names no file, what is free tells: little there, and more in the cache.
    """
    try:
        folder = Path(tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
    except OSError:  # no folder can be used as one, so none was
        return None
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if named is None:
        is_cause = free < _LITTLE and not (cache and shutil.disk_usage(cache).free < _LITTLE)
    else:
        path = Path(str(named))
        is_cause = path.is_relative_to(folder) and not (cache and path.is_relative_to(cache))
    if not is_cause:
        return None
    return StageError(
        "The temporary folder is full.",
        expected="a folder with some hundred megabytes free",
        given=f"{folder}, with {free / 1e6:,.1f} MB free",
        next_step="make room in it, or name another folder in the variable TMPDIR",
    )


def unreadable_model(path: Path, framework: str, error: Exception) -> ModelError:
    """What to raise where a framework refuses a model file."""
    return ModelError(
        f"{path.name} cannot be opened.",
        expected=f"a model that {framework} can load",
        given=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        next_step="check that the file is whole and was written by the pinned versions",
    )
