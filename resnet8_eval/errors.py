"""The errors a user can meet. Each says what was wrong, expected, given, and what to do next."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a full disk, a used-up quota, and a file larger than is allowed."""


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


def no_room(error: OSError, place: Path | str) -> StageError:
    """What to raise where a disk is full: that of the file that the error names, or one of two."""
    named = error.filename2 or error.filename  # the second is the one that is written
    return StageError(
        f"There is no room: {error.strerror}.",
        expected="a disk with some hundred megabytes free",
        given=str(named or f"{place}, or the folder of temporary files"),
        next_step="make room there (python -m resnet8_eval cache clear removes artefacts), or name"
        " another folder: --cache-dir is that of the cache, TMPDIR that of temporary files",
    )


def unreadable_model(path: Path, framework: str, error: Exception) -> ModelError:
    """What to raise where a framework refuses a model file."""
    return ModelError(
        f"{path.name} cannot be opened.",
        expected=f"a model that {framework} can load",
        given=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        next_step="check that the file is whole and was written by the pinned versions",
    )
