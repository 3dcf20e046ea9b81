"""Artefacts: keyed by all that decides them, locked, produced once, published whole.

An artefact is a folder of files with a record. Its key is a hash of all that decides its content,
and one that was made for another key or stage is not served. Its files are hashed when written and
again when read, so one that is damaged counts as missing. It is renamed into place only when
complete, so an interrupted producer leaves nothing that counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet8_eval.checks import Check
from resnet8_eval.errors import FULL, StageError, no_room

Record = dict[str, Any]
RECORD_FILE = "record.json"
SCHEDULING = "prepare"
"""The lock that a run holds while its lanes are at work."""
TRAINING = "training"
"""The folder beside the artefacts where trainings keep how far they are."""
_PARTIAL = ".partial"
_PATIENCE_SECONDS = 2
"""How long to wait for another process before saying so."""


@dataclass(frozen=True)
class Artifact:
    """One finished artefact.

    `key` is the hash of all that decided it; `record`, what its producer reported, in built-in
    types; `files`, the SHA-256 of each; `seconds`, how long it took; `created`, when it was
    finished, by the clock of `time.monotonic`, which all processes of a machine share; `run`, the
    run that made it, empty where older code did.
    """

    stage: str
    key: str
    folder: Path
    record: Record
    files: dict[str, str]
    seconds: float
    created: float
    run: str = ""

    def path(self, name: str) -> Path:
        """The file `name` of this artefact."""
        return self.folder / name


class Store:
    """A folder of artefacts, made with the first; safe to share between threads and processes.

    Parameters
    ----------
    root
        The folder.
    run
        Name of the run that asks, for what it makes.
    """

    def __init__(self, root: Path, run: str = "") -> None:
        self.root = root
        self.run = run

    def get(self, stage: str, key: str) -> Artifact | None:
        """The artefact, or None where there is none or it is damaged."""
        found = _read(self._folder(stage, key))
        # The folder's name has a part of the key, and no slash.
        return found if found and (found.stage, found.key) == (stage, key) else None

    def produce(self, stage: str, key: str, make: Callable[[Path], Record]) -> Artifact:
        """Return the artefact, making it first where it is missing or damaged.

        Parameters
        ----------
        stage
            A short name, such as ``"scores/torch-int8"``.
        key
            Hash of everything that decides the content.
        make
            Writes the files into the empty folder it is given and returns the record, of
            types that JSON has and checks. Called at most once at a time for one key, over
            all processes that share the store.

        Raises
        ------
        StageError
            If the store cannot be written to, or a disk is full. Whatever else `make` raises passes
            through. Nothing is left behind.
        """
        folder = self._folder(stage, key)
        with self.lock(folder.name):
            found = self.get(stage, key)
            if found is not None:
                return found
            partial = folder.with_name(folder.name + _PARTIAL)
            with self._writing():
                _remove(folder)
                _remove(partial)
                partial.mkdir()
            try:
                started = time.perf_counter()
                record = make(partial)
                seconds = time.perf_counter() - started
                _seal(partial, stage, key, record, seconds, self.run)
                partial.rename(folder)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise no_room(error, self.root) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            made = self.get(stage, key)  # while nobody can clear it
        if made is None:
            raise StageError(
                f"The artefact of stage {stage} was damaged as soon as it was written.",
                expected="files that read back as written",
                given=str(folder),
                next_step="check the disk, or choose another cache folder with --cache-dir",
            )
        return made

    @contextmanager
    def lock(self, name: str, announce: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Hold a lock across all processes; the operating system releases it if the holder dies.

        Who waits for another process is told so. StageError if the store cannot be written to.
        """
        path = self._lock(name)
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            (self.root / "artifacts").mkdir(exist_ok=True)
            held = hold(
                path,
                announce,
                "Waiting for another process, of this run or of another, which makes artefacts in "
                f"{self.root}.",
            )
        with held:
            yield

    def discard(self, stage: str, key: str) -> bool:
        """Remove an artefact if another run made it; return whether this run has yet to make it."""
        folder = self._folder(stage, key)
        with self.lock(folder.name):
            found = self.get(stage, key)
            made_by_this_run = found is not None and found.run == self.run
            if not made_by_this_run:
                with self._writing():
                    _remove(folder)
        return not made_by_this_run

    def discard_trainings(self) -> None:
        """Remove what trainings have kept; none is at work while the caller schedules."""
        with self._writing():
            _remove(self.root / TRAINING)

    def artifacts(self) -> Iterator[tuple[Path, Artifact | None]]:
        """Whatever stands where artefacts do, with None for what is damaged or none."""
        for path in self._paths():
            if path.suffix != _PARTIAL:
                found = _read(path)
                if found is not None or os.path.lexists(path):  # else removed meanwhile
                    yield path, found

    def unfinished(self) -> Iterator[Path]:
        """What is being made just now, or was left by a process that was killed."""
        return (path for path in self._paths() if path.suffix == _PARTIAL)

    def clear(self) -> int:
        """Remove all that no process is working on; return how many artefacts were removed.

        StageError if something may not be removed.
        """
        removed = 0
        with self._writing():
            for path in self._paths():
                with self._free(self._lock(path.name)) as free:
                    if free:
                        _remove(path)
                        removed += 1
            beside = [path for name in ("logs", TRAINING) if (path := self.root / name).exists()]
            if beside:
                with self._free(self._lock(SCHEDULING)) as free:
                    for path in beside if free else ():
                        _remove(path)
            for lock in self.root.glob("locks/*.lock"):
                with self._free(lock):
                    pass
        return removed

    def _paths(self) -> list[Path]:
        return sorted((self.root / "artifacts").glob("*"))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StageError(
                f"The cache folder cannot be written to: {error.strerror or error}.",
                expected="a writable folder",
                given=str(self.root),
                next_step="choose another with --cache-dir, which comes before RESNET8_EVAL_CACHE",
            ) from error

    @contextmanager
    def _free(self, path: Path) -> Iterator[bool]:
        """Whether nobody holds a lock; if so, hold it during the block, then remove its file."""
        from filelock import FileLock, Timeout

        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
            path.unlink(missing_ok=True)  # a waiting process notices, and makes a new one
        finally:
            lock.release()

    def _lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name.removesuffix(_PARTIAL)}.lock"

    def _folder(self, stage: str, key: str) -> Path:
        return self.root / "artifacts" / _folder_name(stage, key)


def hold(path: Path, announce: Callable[[str], None], waiting: str) -> AbstractContextManager[Any]:
    """Wait for a lock and hold it until the block ends; `waiting` is announced after a moment."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        return lock.acquire(timeout=_PATIENCE_SECONDS)
    except Timeout:
        announce(waiting)
        return lock.acquire()


def as_json(value: object) -> object:
    """A check as JSON holds it, for `json.dumps`; TypeError for anything else."""
    if isinstance(value, Check):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def digest(value: object) -> str:
    """SHA-256 of a value, in built-in types and checks, written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def signature(path: Path) -> tuple[int, ...]:
    """What changes whenever a file does; () if it is gone. A user can set back mtime, not ctime."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, which another process may change meanwhile.

    No link is followed, and what is gone has none.
    """
    inside = [] if path.is_symlink() else os.walk(path)
    total = 0
    for file in [path, *(Path(parent, name) for parent, _, names in inside for name in names)]:
        with suppress(OSError):
            status = file.lstat()
            total += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return total


def _folder_name(stage: str, key: str) -> str:
    return f"{stage.replace('/', '-')}-{key[:20]}"


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file beside the record."""
    paths = sorted(path for path in folder.iterdir() if path.name != RECORD_FILE)
    return {path.name: file_sha256(path) for path in paths}


def _seal(folder: Path, stage: str, key: str, record: Record, seconds: float, run: str) -> None:
    body = {
        "stage": stage,
        "key": key,
        "record": record,
        "files": _hashes(folder),
        "seconds": round(seconds, 3),
        "created": time.monotonic(),
        "run": run,
    }
    sealed = {"sha256": digest(body), **body}
    (folder / RECORD_FILE).write_text(json.dumps(sealed, indent=1, default=as_json))


def _read(folder: Path) -> Artifact | None:
    """Read an artefact back; None if anything in it was changed, removed or added."""
    try:
        # A link leads out of the cache, and a pipe has no end.
        regular = all(stat.S_ISREG(path.lstat().st_mode) for path in folder.iterdir())
        if folder.is_symlink() or not regular:
            return None
        body = json.loads((folder / RECORD_FILE).read_text())
        seal = body.pop("sha256")
        found = Artifact(folder=folder, **body)
        intact = (
            seal == digest(body)
            and folder.name == _folder_name(found.stage, found.key)
            and found.files == _hashes(folder)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if intact else None


def _remove(path: Path) -> None:
    """Remove a folder, or whatever stands in its place; a link is not followed."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
