"""Artefacts: keyed by all that decides them, locked, produced once, published whole.

An artefact is a folder of files with a record. Its key is a hash of everything that could change
its content, so a hit is never stale; its files are hashed when written and again when read, so a
damaged one is never served; it is renamed into place only when complete, so an interrupted
producer leaves nothing that counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet8_eval.errors import StageError

Record = dict[str, Any]
RECORD_FILE = "record.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Artifact:
    """One finished artefact.

    Attributes
    ----------
    stage, key
        What it is, and the hash of all that decided it.
    folder
        Where its files are.
    record
        What its producer reported, in built-in types.
    files
        SHA-256 of every file.
    seconds
        How long it took to produce.
    created
        When it was finished, in seconds since the epoch.
    """

    stage: str
    key: str
    folder: Path
    record: Record
    files: dict[str, str]
    seconds: float
    created: float

    def path(self, name: str) -> Path:
        """The file `name` of this artefact."""
        return self.folder / name


class Store:
    """A folder of artefacts, safe to share between threads and processes.

    Parameters
    ----------
    root
        The folder; it is made when the first artefact is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, stage: str, key: str) -> Artifact | None:
        """The artefact, or None where there is none or it is damaged.

        Parameters
        ----------
        stage, key
            As given to :meth:`produce`.
        """
        return _read(self._folder(stage, key))

    def produce(self, stage: str, key: str, make: Callable[[Path], Record]) -> Artifact:
        """Return the artefact, making it first where it is missing or damaged.

        Parameters
        ----------
        stage
            A short name, such as ``"scores/torch-int8"``.
        key
            Hash of everything that decides the content.
        make
            Writes the files into the empty folder it is given and returns the record, in
            JSON-able built-in types. Called at most once at a time for one key, over all
            processes that share the store.

        Raises
        ------
        StageError
            If the store cannot be written to, or is full. Whatever else `make` raises passes
            through. Nothing is left behind.
        """
        folder = self._folder(stage, key)
        with self.lock(folder.name):
            found = _read(folder)
            if found is not None:
                return found
            shutil.rmtree(folder, ignore_errors=True)
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                started = time.perf_counter()
                record = make(partial)
                _seal(partial, stage, key, record, time.perf_counter() - started)
                partial.rename(folder)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise StageError(
                    f"There is no room for the artefact of stage {stage}: {error.strerror}.",
                    expected="a disk with some hundred megabytes free",
                    given=str(self.root),
                    next_step="make room (python -m resnet8_eval cache clear removes artefacts), "
                    "or choose another cache folder with --cache-dir",
                ) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        made = _read(folder)
        if made is None:
            raise StageError(
                f"The artefact of stage {stage} was damaged as soon as it was written.",
                expected="files that read back as written",
                given=str(folder),
                next_step="check the disk, or choose another cache folder with --cache-dir",
            )
        return made

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock over all processes; the operating system releases that of a dead one.

        Parameters
        ----------
        name
            What is locked.

        Raises
        ------
        StageError
            If the store cannot be written to.
        """
        from filelock import FileLock

        path = self._lock(name)
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            (self.root / "artifacts").mkdir(exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise StageError(
                f"The cache folder cannot be written to: {error.strerror or error}.",
                expected="a writable folder",
                given=str(self.root),
                next_step="choose another with --cache-dir or RESNET8_EVAL_CACHE",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def discard(self, stage: str, key: str, made_before: float) -> None:
        """Remove an artefact if it was made before a moment, in seconds since the epoch."""
        folder = self._folder(stage, key)
        with self.lock(folder.name):
            found = _read(folder)
            if found is not None and found.created < made_before:
                shutil.rmtree(folder)

    def artifacts(self) -> Iterator[tuple[Path, Artifact | None]]:
        """Every artefact folder, with None for a damaged one."""
        for folder in sorted((self.root / "artifacts").glob("*/")):
            yield folder, _read(folder)

    def clear(self) -> int:
        """Remove every artefact that no process is making; return how many."""
        from filelock import FileLock, Timeout

        removed = 0
        for folder in (self.root / "artifacts").glob("*/"):
            try:
                with FileLock(self._lock(folder.name), timeout=0):
                    shutil.rmtree(folder)
            except Timeout:
                continue
            removed += 1
        return removed

    def _lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name.removesuffix('.partial')}.lock"

    def _folder(self, stage: str, key: str) -> Path:
        return self.root / "artifacts" / f"{stage.replace('/', '-')}-{key[:20]}"


def digest(value: object) -> str:
    """SHA-256 of `value` written as canonical JSON.

    Parameters
    ----------
    value
        Built-in JSON-able types.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _seal(folder: Path, stage: str, key: str, record: Record, seconds: float) -> None:
    body = {
        "stage": stage,
        "key": key,
        "record": record,
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        "seconds": round(seconds, 3),
        "created": time.time(),
    }
    (folder / RECORD_FILE).write_text(json.dumps({"sha256": digest(body), **body}, indent=1))


def _read(folder: Path) -> Artifact | None:
    """Read an artefact back, or None unless every byte is as it was written."""
    try:
        body = json.loads((folder / RECORD_FILE).read_text())
        seal = body.pop("sha256")
        intact = seal == digest(body) and all(
            file_sha256(folder / name) == sha256 for name, sha256 in body["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Artifact(folder=folder, **body) if intact else None
