"""Find, verify and download the model and the images. The only module that touches the network.

Nothing counts before its checksum does. A file that is missing is looked for elsewhere, and in the
end downloaded; a file that is there but damaged is an error, wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

from resnet8_eval.errors import AssetError, changed_asset

Kind = Literal["real", "stand-in"]
State = Literal["verified", "missing", "damaged"]
Announce = Callable[[str], None]

DATASET_FOLDER: Final = "cifar-10-batches-py"
MODEL_SUFFIXES: Final = (".h5", ".hdf5", ".H5", ".keras")

_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 30
_GRACE_SECONDS: Final = 60
_SLOWEST: Final = 50_000
"""Bytes a second, on the whole, that a download has to come at; CIFAR-10 may take an hour."""
_PATIENCE_SECONDS: Final = 2
"""How long another process is waited for without a word."""
_SETTLED_NS: Final = 2 * 10**9
"""A younger file could change again without its time stamp moving."""


@dataclass(frozen=True)
class Entry:
    """One file, as it must be.

    Attributes
    ----------
    name, size, sha256, md5
        The file name, its size in bytes and its checksums in hexadecimal.
    url
        Where it can be downloaded; None for what comes with another file.
    licence, note
        For the reader.
    """

    name: str
    size: int
    sha256: str
    md5: str
    url: str | None = None
    licence: str = ""
    note: str = ""

    def __str__(self) -> str:
        return _described(self.size, self.sha256)


@dataclass(frozen=True)
class Collection:
    """A model, and the files of a data set in the official layout."""

    model: Entry
    dataset: tuple[Entry, ...]


@dataclass(frozen=True)
class Manifest:
    """Every file that the suite can be fed; `archive` holds the real data set."""

    real: Collection
    archive: Entry
    standin: Collection


@dataclass(frozen=True)
class Assets:
    """What a run is fed, every byte of it verified.

    Attributes
    ----------
    kind
        Whether the images are CIFAR-10 or the embedded stand-in.
    model
        The Keras model, .h5 or .keras.
    model_sha256
        Its checksum.
    user_model
        Whether the user gave the model, in place of the manifest's.
    dataset
        Folder of `data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`.
    dataset_md5, dataset_sha256
        Checksum by file name.
    """

    kind: Kind
    model: Path
    model_sha256: str
    user_model: bool
    dataset: Path
    dataset_md5: dict[str, str]
    dataset_sha256: dict[str, str]


@dataclass(frozen=True)
class Finding:
    """Where one file of the manifest stands.

    Attributes
    ----------
    kind, name
        Which file.
    state
        Whether it is verified, missing or damaged.
    path
        Where it is, or would be made; None if it is nowhere.
    detail
        What was found there.
    """

    kind: Kind
    name: str
    state: State
    path: Path | None
    detail: str


class MissingAssetError(AssetError):
    """An asset is nowhere, and cannot be downloaded."""


def fixtures_dir() -> Path:
    """Return the folder of the manifest and the stand-in, in a checkout or an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "fixtures"
    return inside if inside.is_dir() else package.parent / "fixtures"


def default_cache_dir() -> Path:
    """Return the cache folder: RESNET8_EVAL_CACHE, else the one that the system gives the user."""
    given = os.environ.get("RESNET8_EVAL_CACHE")
    if given:
        return expanded(given).absolute()
    import pooch

    return Path(pooch.os_cache("resnet8-eval"))


def load_manifest() -> Manifest:
    """Read `fixtures/assets.json`.

    Raises
    ------
    AssetError
        If it is missing or cannot be understood.
    """
    path = fixtures_dir() / "assets.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(
            real=_collection(content["real"]),
            archive=Entry(**content["real"]["archive"]),
            standin=_collection(content["stand-in"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(
            f"The asset manifest {path} cannot be read.",
            expected="the manifest that resnet8-eval is delivered with",
            given=_in_one_line(error),
            next_step="Install resnet8-eval again, or restore the file from its repository.",
        ) from error


def _collection(content: dict[str, Any]) -> Collection:
    return Collection(
        model=Entry(**content["model"]),
        dataset=tuple(Entry(**entry) for entry in content["dataset"]),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def locate(
    kind: Literal["real", "auto", "stand-in"],
    *,
    assets_dir: Path | None,
    cache_dir: Path,
    keras_model: Path | None = None,
    download: bool = True,
    announce: Announce = _say,
    manifest: Manifest | None = None,
) -> Assets:
    """Find the assets, or get them, and verify them.

    Each file is looked for in `assets_dir` (else RESNET8_EVAL_ASSETS), in the checkout's `assets/`,
    in `shared/assets/` beside the checkout, and in the cache; last, it is downloaded into the
    cache. CIFAR-10 may be the official folder or the official archive.

    Parameters
    ----------
    kind : {"real", "auto", "stand-in"}
        "auto" is the real assets if they can be had, else the stand-in.
    assets_dir : Path or None
        A folder that holds assets.
    cache_dir : Path
        For downloads, unpacked files and the memory of what was verified; made when needed.
    keras_model : Path or None
        A .h5 or .keras file to judge in place of the manifest's model.
    download : bool
        Whether missing files may be downloaded. RESNET8_EVAL_OFFLINE=1 forbids it, too.
    announce : callable
        Told, in one line, when "auto" turns to the stand-in, and when another process is waited
        for.
    manifest : Manifest or None
        What to look for; by default, `load_manifest()`.

    Returns
    -------
    Assets
        With absolute paths.

    Raises
    ------
    MissingAssetError
        If real assets are wanted and are not to be had.
    AssetError
        If a file is damaged, wherever it was found; if `assets_dir` or `keras_model` is not there;
        or if the cache cannot be written and has to be.
    """
    search = _search(manifest, assets_dir, cache_dir, announce)
    user_model = None if keras_model is None else _user_model(keras_model)
    if kind != "stand-in":
        try:
            model, dataset = search.real(user_model, download)
            return search.assets("real", model, user_model, dataset)
        except MissingAssetError as error:
            if kind == "real" or user_model:
                raise  # a model of photographs has nothing to say of drawn shapes
            announce(f"Using the stand-in. {error.what} {' '.join(error.given.split())}")
    model, dataset = search.standin(user_model)
    return search.assets("stand-in", model, user_model, dataset)


def of_model(path: Path) -> Assets:
    """A model by itself, for what needs no images.

    Parameters
    ----------
    path
        .h5, .keras or .onnx.
    """
    path = expanded(path).absolute()
    return Assets("real", path, _sha256(path), True, path.parent, {}, {})


def survey(
    assets_dir: Path | None, cache_dir: Path, *, manifest: Manifest | None = None
) -> list[Finding]:
    """Say where every file of the manifest stands; nothing is downloaded, made or refused.

    Parameters
    ----------
    assets_dir, cache_dir, manifest
        As for `locate`.

    Returns
    -------
    list of Finding
        One for each file: the real model, data set and archive, then the stand-in's.

    Raises
    ------
    AssetError
        If `assets_dir` is not there.
    """
    return _search(manifest, assets_dir, cache_dir).survey()


def fetch(cache_dir: Path, *, manifest: Manifest | None = None) -> tuple[Path, Path]:
    """Complete the cache: download what it lacks of the real assets.

    Parameters
    ----------
    cache_dir, manifest
        As for `locate`. No other folder is looked into, so that the cache can be taken to a
        machine without network.

    Returns
    -------
    model : Path
        The verified model, in the cache.
    dataset : Path
        The folder of the verified CIFAR-10 files, in the cache.

    Raises
    ------
    MissingAssetError
        If something cannot be downloaded.
    AssetError
        If a file in the cache is damaged, or the cache cannot be written.
    """
    manifest = load_manifest() if manifest is None else manifest
    cache_dir = cache_dir.absolute()
    return _Search(manifest, [cache_dir], cache_dir, _say).real(None, download=True)


@contextmanager
def unchanged(path: Path, sha256: str) -> Iterator[Path]:
    """Lend a file to someone who reads it by its path, and vouch for what was read.

    Parameters
    ----------
    path
        The file.
    sha256
        What `locate` found it to be.

    Raises
    ------
    AssetError
        On entering, if it is another by now; on leaving, if it was written to meanwhile.
    """
    try:
        before, found = _signature(path), _sha256(path)
    except OSError as error:
        raise changed_asset(path, f"sha256 {sha256}", _in_one_line(error)) from error
    if found != sha256:
        raise changed_asset(path, f"sha256 {sha256}", f"sha256 {found}")
    try:
        yield path
    finally:
        # What a reader of half a file says is not to the point.
        if not path.exists() or _signature(path) != before:
            raise changed_asset(path, f"sha256 {sha256}", "written to while it was read")


def _search(
    manifest: Manifest | None,
    assets_dir: Path | None,
    cache_dir: Path,
    announce: Announce = _say,
) -> _Search:
    manifest = load_manifest() if manifest is None else manifest
    cache_dir = cache_dir.absolute()
    return _Search(manifest, _places(assets_dir, cache_dir), cache_dir, announce)


def _places(assets_dir: Path | None, cache_dir: Path) -> list[Path]:
    places = []
    given = assets_dir or os.environ.get("RESNET8_EVAL_ASSETS")
    if given:
        explicit = expanded(given)
        if _nature(explicit) != "a folder":
            raise AssetError(
                f"There is no folder {explicit}.",
                expected=f"a folder that holds assets, such as {DATASET_FOLDER}/",
                given=_nature(explicit),
                next_step="Correct --assets-dir or RESNET8_EVAL_ASSETS, or leave them out.",
            )
        places.append(explicit)
    for root in _checkouts():
        places += [root / "assets", root.parent / "shared" / "assets"]
    return list(dict.fromkeys(place.absolute() for place in [*places, cache_dir]))


def _checkouts() -> list[Path]:
    candidates = [Path(__file__).resolve().parents[1], Path.cwd()]
    return [root for root in candidates if (root / "fixtures" / "assets.json").is_file()]


def _user_model(path: Path) -> Path:
    path = expanded(path).absolute()
    if path.suffix in MODEL_SUFFIXES and _nature(path) == "a file" and os.access(path, os.R_OK):
        return path
    raise AssetError(
        f"{path} cannot be used as the Keras model.",
        expected=f"a readable file that ends in {' or '.join(MODEL_SUFFIXES)}",
        given=_nature(path),
        next_step="Correct --keras-model, or leave it out to use the MLPerf Tiny model.",
    )


class _Search:
    """One search, in order, through `places`; `cache_dir` is where anything new is put."""

    def __init__(
        self, manifest: Manifest, places: list[Path], cache_dir: Path, announce: Announce
    ) -> None:
        self._manifest = manifest
        self._places = places
        self._cache = cache_dir
        self._announce = announce
        self._memory = _Memory(cache_dir)

    def real(self, user_model: Path | None, download: bool) -> tuple[Path, Path]:
        """Find or download the model and the folder of CIFAR-10."""
        real, archive = self._manifest.real, self._manifest.archive
        model = user_model or self._real_model()
        dataset = self._real_dataset()
        absent = {} if model else {real.model.name: real.model}
        if not dataset:
            absent[DATASET_FOLDER] = archive
        obstacles = {}
        for name, entry in absent.items():
            obstacle = self._download(entry) if download else "no download was asked for"
            if obstacle:
                obstacles[name] = f"{entry.name}: {obstacle}"
        model, dataset = model or self._real_model(), dataset or self._real_dataset()
        if model and dataset:
            return model, dataset
        raise MissingAssetError(
            f"Missing: {', '.join(obstacles)}.",
            expected=f"{real.model.name}, and {DATASET_FOLDER}/ or {archive.name}, in any of"
            + _listed(self._places),
            given="found in no folder, and not downloaded:" + _listed(obstacles.values()),
            next_step="do one of these:"
            + _listed(
                [
                    "put the files into a folder, and name it with --assets-dir or"
                    " RESNET8_EVAL_ASSETS",
                    "run `python -m resnet8_eval assets fetch` on a machine with network, and copy"
                    f" its cache folder to {self._cache}",
                    "use the embedded stand-in: --assets stand-in",
                ]
            ),
        )

    def standin(self, user_model: Path | None) -> tuple[Path, Path]:
        """Find or make the stand-in's model and the folder of its images."""
        folder = self._standin_folder()
        self._make(folder, self._draw)
        self._demand_folder(folder, self._manifest.standin)
        if user_model:
            return user_model, folder
        model = self._standin_model()
        self._demand(model, self._manifest.standin.model, _RESTORE)
        return model, folder

    def assets(self, kind: Kind, model: Path, user_model: Path | None, dataset: Path) -> Assets:
        """Record what was found and verified."""
        files = (self._manifest.real if kind == "real" else self._manifest.standin).dataset
        return Assets(
            kind=kind,
            model=model,
            model_sha256=self._memory.sha256(model),
            user_model=user_model is not None,
            dataset=dataset,
            # A file of the manifest's sha256 has the manifest's md5.
            dataset_md5={entry.name: entry.md5 for entry in files},
            dataset_sha256={entry.name: entry.sha256 for entry in files},
        )

    def survey(self) -> list[Finding]:
        real, archive, standin = (
            self._manifest.real,
            self._manifest.archive,
            self._manifest.standin,
        )
        model_path, archive_path = self._first(real.model.name), self._first(archive.name)
        folder = self._first(DATASET_FOLDER)
        drawn = self._standin_folder()
        nowhere = f"not in {', '.join(map(str, self._places))}"
        packed = f"to be unpacked from {archive_path}" if archive_path else nowhere
        absent = "no such file" if folder else packed
        unneeded = "not needed beside the folder" if folder else nowhere
        return [
            self._finding("real", real.model, model_path, nowhere),
            *(
                self._finding("real", entry, folder and folder / entry.name, absent)
                for entry in real.dataset
            ),
            self._finding("real", archive, archive_path, unneeded),
            self._finding("stand-in", standin.model, self._standin_model(), "no such file"),
            *(
                self._finding("stand-in", entry, drawn / entry.name, "made when needed")
                for entry in standin.dataset
            ),
        ]

    def _finding(self, kind: Kind, entry: Entry, path: Path | None, if_missing: str) -> Finding:
        state, detail = self._inspect(path, entry) if path else ("missing", "")
        return Finding(kind, entry.name, state, path, if_missing if state == "missing" else detail)

    # --- finding ---

    def _first(self, name: str) -> Path | None:
        return next((p / name for p in self._places if _present(p / name)), None)

    def _real_model(self) -> Path | None:
        entry = self._manifest.real.model
        path = self._first(entry.name)
        if path is not None:
            self._demand(path, entry, _REPLACE)
        return path

    def _real_dataset(self) -> Path | None:
        archive = self._manifest.archive
        for place in self._places:
            folder, packed = place / DATASET_FOLDER, place / archive.name
            if not _present(folder) and _present(packed):
                self._demand(packed, archive, _REPLACE)
                folder = self._cache / DATASET_FOLDER
                self._make(folder, partial(_unpack, packed, self._manifest.real.dataset))
            if _present(folder):
                self._demand_folder(folder, self._manifest.real)
                return folder
        return None

    def _standin_model(self) -> Path:
        return fixtures_dir() / "standin" / self._manifest.standin.model.name

    def _standin_folder(self) -> Path:
        sums = "".join(entry.sha256 for entry in self._manifest.standin.dataset)
        edition = hashlib.sha256(sums.encode()).hexdigest()[:16]
        return self._cache / "stand-in" / edition / DATASET_FOLDER

    # --- verifying ---

    def _inspect(self, path: Path, entry: Entry) -> tuple[State, str]:
        try:
            if not path.is_file():
                return "damaged" if os.path.lexists(path) else "missing", _nature(path)
            found = _described(path.stat().st_size, self._memory.sha256(path))
        except OSError as error:
            return "damaged", _in_one_line(error)
        return "verified" if found == str(entry) else "damaged", found

    def _demand(self, path: Path, entry: Entry, remedy: str) -> None:
        state, detail = self._inspect(path, entry)
        if state != "verified":
            raise AssetError(
                f"{path} is {'missing' if state == 'missing' else 'damaged, or another file'}.",
                expected=str(entry),
                given=detail,
                next_step=remedy.format(path=path, entry=entry).strip(),
            )

    def _demand_folder(self, folder: Path, collection: Collection) -> None:
        for entry in collection.dataset:
            self._demand(folder / entry.name, entry, _COMPLETE)

    # --- making ---

    def _download(self, entry: Entry) -> str | None:
        """Download a file into the cache; in one line, why that failed."""
        if os.environ.get("RESNET8_EVAL_OFFLINE", "") not in ("", "0"):
            return "RESNET8_EVAL_OFFLINE forbids it"
        try:
            self._make(self._cache / entry.name, partial(_retrieve, entry))
        except _DownloadError as error:
            return str(error)
        except AssetError as error:
            return _in_one_line(error)
        return None

    def _draw(self, folder: Path) -> None:
        """Draw the stand-in, and see that it came out the same as everywhere."""
        from resnet8_eval.standin import materialise

        materialise(folder)
        for entry in self._manifest.standin.dataset:
            drawn = _described((folder / entry.name).stat().st_size, _sha256(folder / entry.name))
            if drawn != str(entry):
                raise AssetError(
                    f"The stand-in's {entry.name} came out different on this machine.",
                    expected=str(entry),
                    given=drawn,
                    next_step="Install the package versions of constraints.txt, or use the real"
                    " assets: --assets real.",
                )

    def _make(self, target: Path, make: Callable[[Path], None]) -> None:
        """Make `target` in the cache: whole or not at all, once for all processes.

        `make` writes it, under its own name, in an empty folder. If it is there, nothing happens.
        """
        if os.path.lexists(target):
            return
        # One fixed folder, so that what a killed process leaves there goes away with the next.
        scratch = self._cache / ".making"
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with self._locked(target.name):
                if os.path.lexists(target):
                    return
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                try:
                    make(scratch / target.name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (scratch / target.name).rename(target)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            raise AssetError(
                f"{target} cannot be made.",
                expected="a cache folder that can be written, with some hundred megabytes free",
                given=_in_one_line(error),
                next_step="Name another folder with RESNET8_EVAL_CACHE.",
            ) from error

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Keep other processes from making anything in the cache; say so if one has to wait."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._cache / "making.lock")
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            self._announce(
                f"Waiting for another process, which downloads or makes files in {self._cache},"
                f" before {name} can be."
            )
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


_REPLACE = "Delete {path}, or replace it by the original, {entry.url}. {entry.note}"
_COMPLETE = "Delete the folder {path.parent}, or put the original {entry.name} there."
_RESTORE = "Install resnet8-eval again, or restore {path} from its repository."


class _DownloadError(Exception):
    pass


def _retrieve(entry: Entry, target: Path) -> None:
    """Download a file, and end it when it is not what was promised in size or takes too long."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            _stream(entry, target)
        except Exception as error:  # raised below
            failures.append(error)

    # A thread of its own: a server that sends a byte now and then passes every limit on one read,
    # and one that does so in its head cannot be looked at from outside.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seconds = _GRACE_SECONDS + entry.size / _SLOWEST
    thread.join(seconds)
    if thread.is_alive():
        raise _DownloadError(f"not complete after {seconds:,.0f} s, so given up")
    if failures:
        raise failures[0]


def _stream(entry: Entry, target: Path) -> None:
    import pooch

    with ExitStack() as answers:

        def note(answer: Any, **_: object) -> None:
            answers.enter_context(answer)  # pooch leaves it open when something goes wrong
            if answer.is_redirect:
                answer.close()  # or its page would be read to the end, wherever that is

        downloader = pooch.HTTPDownloader(
            progressbar=True,
            chunk_size=2**18,
            timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            hooks={"response": note},
        )

        def limited(url: str, output: str, _: object) -> None:
            with Path(output).open("wb") as file:
                downloader(url, _Limited(file, entry.size), None)

        try:
            pooch.retrieve(
                entry.url,
                known_hash=f"sha256:{entry.sha256}",
                fname=target.name,
                path=target.parent,
                downloader=limited,
            )
        except (OSError, ValueError) as error:  # the errors of `requests` are OSErrors
            cause: BaseException = error
            while cause.__context__ is not None:  # "no such host" is deep in "too many retries"
                cause = cause.__context__
            raise _DownloadError(_in_one_line(cause)) from error


class _Limited:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def write(self, chunk: bytes) -> None:
        if self._file.tell() + len(chunk) > self._size:
            raise ValueError(f"more was sent than the {self._size:,} bytes of the file")
        self._file.write(chunk)

    def flush(self) -> None:
        self._file.flush()


def _unpack(archive: Path, entries: Iterable[Entry], folder: Path) -> None:
    """Write the files of `entries`, and nothing else that the archive may hold, to a new folder."""
    import tarfile
    import zlib

    awaited = {f"{DATASET_FOLDER}/{entry.name}": entry for entry in entries}
    folder.mkdir()
    problem = ""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                entry = awaited.get(member.name)
                # A link or a member of another size is not even opened.
                if entry is None or not member.isreg() or member.size != entry.size:
                    continue
                path = folder / entry.name
                source = cast("IO[bytes]", tar.extractfile(member))
                with source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                if _sha256(path) == entry.sha256:
                    del awaited[member.name]
                if not awaited:
                    return
    except (tarfile.TarError, EOFError, zlib.error) as error:
        problem = f" ({_in_one_line(error)})"
    raise AssetError(
        f"{archive} does not hold what it should.",
        expected=f"each file of CIFAR-10 in {DATASET_FOLDER}/, of the right size and checksum",
        given=f"not so for {', '.join(awaited)}{problem}",
        next_step=f"Delete {archive}, or replace it by the official one.",
    )


def _described(size: int, sha256: str) -> str:
    return f"{size:,} bytes, sha256 {sha256}"


def expanded(path: str | Path) -> Path:
    """The path with the user's home in the place of a tilde.

    A shell leaves the ~ alone in a variable, and behind an equals sign.

    Parameters
    ----------
    path
        As it was given.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # of a user that there is not, who has no such file either
        return Path(path)


def _present(path: Path) -> bool:
    """Whether anything has that name; a dangling link has, and must not pass in silence."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise AssetError(
            f"It cannot be seen what is in {path.parent}.",
            expected="a folder that may be read and searched",
            given=_in_one_line(error),
            next_step=f"Permit it with `chmod u+rx {path.parent}`, or name another folder with"
            " --assets-dir or --cache-dir.",
        ) from error
    return True


def _nature(path: Path) -> str:
    try:
        if path.is_file():
            return "a file"
        if path.is_dir():
            return "a folder"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "not a regular file" if os.path.lexists(path) else "no such file"


class _Memory:
    """Remembers checksums by path, as long as size, time stamps and inode stay as they were.

    It only saves time. Where the cache cannot be written, every file is read every time.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._path = cache_dir / "verified.json"

    def sha256(self, path: Path) -> str:
        path = path.absolute()
        signature = _signature(path)
        _, modified, changed, _ = signature
        match self._load().get(str(path)):
            case {"signature": known, "sha256": str(checksum)} if known == signature:
                return checksum
        checksum = _sha256(path)
        if time.time_ns() - max(modified, changed) > _SETTLED_NS:
            self._keep(str(path), {"signature": signature, "sha256": checksum})
        return checksum

    def _load(self) -> dict[str, object]:
        try:
            content = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _keep(self, path: str, fact: object) -> None:
        from filelock import FileLock

        scratch = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock")):
                scratch.write_text(json.dumps(self._load() | {path: fact}, indent=1))
                scratch.replace(self._path)
        except OSError:
            pass


def _signature(path: Path) -> list[int]:
    """What moves whenever a file does: ctime besides mtime, which can be set back by hand."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(items: Iterable[object]) -> str:
    return "".join(f"\n            - {item}" for item in items)


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
