"""Find and verify the model and the images; what is missing is downloaded.

A file counts only when its checksum is the manifest's. One that is missing is looked for in the
next place, and in the end downloaded; one that is there but damaged is an error, wherever it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from resnet8_eval.download import Announce, DownloadError, in_one_line, make, retrieve, unpack
from resnet8_eval.errors import AssetError, changed_asset
from resnet8_eval.store import file_sha256

Kind = Literal["real", "stand-in"]
State = Literal["verified", "missing", "damaged"]

DATASET_FOLDER: Final = "cifar-10-batches-py"
MODEL_SUFFIXES: Final = (".h5", ".hdf5", ".H5", ".keras")

_REPLACE = "Delete {path}, or replace it by the original, {entry.url}. {entry.note}"
_COMPLETE = "Delete the folder {path.parent}, or put the original {entry.name} there."
_RESTORE = "Install resnet8-eval again, or restore {path} from its repository."
_REDRAW = (
    "The stand-in is drawn different on this machine. Install the package versions of"
    " constraints.txt, or use the real assets: --assets real."
)


@dataclass(frozen=True)
class Entry:
    """One file of the manifest: its name, size in bytes, checksums (hexadecimal) and origin.

    `url` is None for a file that comes inside another.
    """

    name: str
    size: int
    sha256: str
    md5: str
    url: str | None = None
    licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class Collection:
    """A model, and the files of a data set in the official layout."""

    model: Entry
    dataset: tuple[Entry, ...]


@dataclass(frozen=True)
class Manifest:
    """Every file that the suite uses; `archive` contains the real data set."""

    real: Collection
    archive: Entry
    standin: Collection


@dataclass(frozen=True)
class Assets:
    """The model and the images of a run, all verified.

    Attributes
    ----------
    kind
        Whether the images are CIFAR-10 or the embedded stand-in.
    model, model_sha256
        The Keras model, .h5 or .keras, and its checksum.
    user_model
        Whether the user gave the model, instead of the manifest's.
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
    """The state of one file of the manifest; `path` is None if it is in no folder."""

    kind: Kind
    name: str
    state: State
    path: Path | None
    detail: str


class MissingAssetError(AssetError):
    """An asset was found in no folder and cannot be downloaded."""


def fixtures_dir() -> Path:
    """Return the folder of the manifest and the stand-in, in a checkout or an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "fixtures"
    return inside if inside.is_dir() else package.parent / "fixtures"


def default_cache_dir() -> Path:
    """Return the cache folder: RESNET8_EVAL_CACHE, else the system's cache folder for the user."""
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
        real, standin = (
            Collection(Entry(**part["model"]), tuple(Entry(**file) for file in part["dataset"]))
            for part in (content["real"], content["stand-in"])
        )
        return Manifest(real, Entry(**content["real"]["archive"]), standin)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(
            f"The asset manifest {path} cannot be read.",
            expected="the manifest that resnet8-eval is delivered with",
            given=in_one_line(error),
            next_step="Install resnet8-eval again, or restore the file from its repository.",
        ) from error


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def locate(
    kind: Literal["real", "auto", "stand-in"],
    *,
    assets_dir: Path | None,
    cache_dir: Path,
    keras_model: Path | None = None,
    suffixes: tuple[str, ...] = MODEL_SUFFIXES,
    download: bool = True,
    announce: Announce = _say,
    manifest: Manifest | None = None,
) -> Assets:
    """Find the assets, or download them, and verify them.

    Each file is looked for in `assets_dir` (else RESNET8_EVAL_ASSETS), in the checkout's `assets/`,
    in `shared/assets/` beside the checkout, and in the cache; last, it is downloaded into the
    cache. CIFAR-10 may be the official folder or the official archive.

    Parameters
    ----------
    kind
        "auto" is the real assets if they can be had, else the stand-in.
    assets_dir, cache_dir
        A folder that holds assets; the folder for downloads and unpacked files.
    keras_model
        A .h5 or .keras file to judge instead of the manifest's model.
    suffixes
        What its name may end in, where another kind of model is to be judged.
    download
        Whether missing files may be downloaded, with one attempt for each. RESNET8_EVAL_OFFLINE=1
        also forbids it.
    announce
        Called with one line when "auto" takes the stand-in, and while another process is waited
        for.
    manifest
        What to look for; by default, `load_manifest()`.

    Returns
    -------
    Assets
        With absolute paths.

    Raises
    ------
    MissingAssetError
        If real assets are asked for, and are neither found nor downloaded.
    AssetError
        If a file is damaged, wherever it was found; if `assets_dir` or `keras_model` is not there;
        or if a file has to be made in the cache and cannot be.
    """
    search = _search(manifest, assets_dir, cache_dir, announce)
    user_model = None if keras_model is None else given_model(keras_model, suffixes)
    if kind != "stand-in":
        try:
            return search.real(user_model, download)
        except MissingAssetError as error:
            if kind == "real" or user_model:
                raise  # the stand-in's drawn shapes say nothing about a model of photographs
            announce(f"Using the stand-in. {error.what} {' '.join(error.given.split())}")
    return search.standin(user_model)


def of_model(path: Path) -> Assets:
    """Return a model (.h5, .keras or .onnx) without images, for the stages that need none."""
    path = expanded(path).absolute()
    return Assets("real", path, file_sha256(path), True, path.parent, {}, {})


def survey(
    assets_dir: Path | None, cache_dir: Path, *, manifest: Manifest | None = None
) -> list[Finding]:
    """Look for every file of the manifest; nothing is downloaded, made or refused.

    Parameters are those of `locate`.

    Raises
    ------
    AssetError
        If `assets_dir` is not there.
    """
    return list(_search(manifest, assets_dir, cache_dir).survey())


def fetch(cache_dir: Path, *, manifest: Manifest | None = None) -> tuple[Path, Path]:
    """Download the real assets that the cache lacks.

    No other folder is searched, so that the cache is complete and can be copied to a machine
    without network. Parameters are those of `locate`.

    Returns
    -------
    model, dataset : Path
        The verified model and the folder of the verified CIFAR-10 files, both in the cache.

    Raises
    ------
    MissingAssetError
        If something cannot be downloaded.
    AssetError
        If a file in the cache is damaged, or the cache cannot be written.
    """
    cache = cache_dir.absolute()
    found = _Search(manifest or load_manifest(), [cache], cache).real(None, download=True)
    return found.model, found.dataset


@contextmanager
def unchanged(path: Path, sha256: str) -> Iterator[Path]:
    """Make sure that a file that is read by its path is still the one that was verified.

    Parameters
    ----------
    path, sha256
        The file, and its checksum as `locate` returned it.

    Raises
    ------
    AssetError
        On entering, if its checksum is another; on leaving, if it was written to since then.
    """
    try:
        before, found = _signature(path), file_sha256(path)
    except OSError as error:
        raise changed_asset(path, f"sha256 {sha256}", in_one_line(error)) from error
    if found != sha256:
        raise changed_asset(path, f"sha256 {sha256}", f"sha256 {found}")
    try:
        yield path
    finally:
        # This error replaces the reader's own, which half a file may have caused.
        if not path.exists() or _signature(path) != before:
            raise changed_asset(path, f"sha256 {sha256}", "written to while it was read")


def _signature(path: Path) -> list[int]:
    """What changes whenever a file does. A user can set mtime back, but not ctime."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _search(
    manifest: Manifest | None, given: Path | None, cache_dir: Path, announce: Announce = _say
) -> _Search:
    explicit = given_folder(given)
    places = [explicit] if explicit else []
    for root in _checkouts():
        places += [root / "assets", root.parent / "shared" / "assets"]
    unique = list(dict.fromkeys(place.absolute() for place in [*places, cache_dir]))
    return _Search(manifest or load_manifest(), unique, cache_dir.absolute(), announce)


def _checkouts() -> list[Path]:
    candidates = [Path(__file__).resolve().parents[1], Path.cwd()]
    return [root for root in candidates if (root / "fixtures" / "assets.json").is_file()]


def given_folder(given: Path | None) -> Path | None:
    """The folder that holds assets, as the user names it; None if none is named.

    Raises
    ------
    AssetError
        If it is not there.
    """
    folder = given or os.environ.get("RESNET8_EVAL_ASSETS")
    explicit = expanded(folder) if folder else None
    if explicit and _nature(explicit) != "a folder":
        raise AssetError(
            f"There is no folder {explicit}.",
            expected=f"a folder that holds assets, such as {DATASET_FOLDER}/",
            given=_nature(explicit),
            next_step="Correct --assets-dir or RESNET8_EVAL_ASSETS, or leave them out.",
        )
    return explicit


def given_model(path: Path, suffixes: tuple[str, ...] = MODEL_SUFFIXES) -> Path:
    """The Keras model that the user names, as an absolute path.

    Raises
    ------
    AssetError
        If it is not there, or its name has none of these suffixes.
    """
    path = expanded(path).absolute()
    nature = _nature(path)
    if path.suffix in suffixes and nature == "a file" and os.access(path, os.R_OK):
        return path
    raise AssetError(
        f"{path} cannot be used as the Keras model.",
        expected=f"a readable file that ends in {' or '.join(suffixes)}",
        given=nature,
        next_step="Load a SavedModel folder in the Keras that wrote it, save it as .keras, and give"
        " that to --keras-model."
        if nature == "a folder"
        else "Correct --keras-model, or leave it out to use the MLPerf Tiny model.",
    )


@dataclass(frozen=True)
class _Search:
    """A search through `places`, in order; new files are put into `cache`."""

    manifest: Manifest
    places: list[Path]
    cache: Path
    announce: Announce = _say

    def real(self, user_model: Path | None, download: bool) -> Assets:
        """Find or download the model and the folder of CIFAR-10."""
        real, archive = self.manifest.real, self.manifest.archive
        missing, obstacles = [], []
        model, dataset = user_model or self._real_model(), self._real_dataset()
        for found, name, entry in (
            (model, real.model.name, real.model),
            (dataset, DATASET_FOLDER, archive),
        ):
            if found is None and (obstacle := self._download(entry, download)):
                missing.append(name)
                obstacles.append(f"{entry.name}: {obstacle}")
        model, dataset = model or self._real_model(), dataset or self._real_dataset()
        if model and dataset:
            return _found("real", model, user_model, dataset, real)
        raise MissingAssetError(
            f"Missing: {', '.join(missing)}.",
            expected=("" if user_model else f"{real.model.name}, and ")
            + f"{DATASET_FOLDER}/ or {archive.name}, in any of"
            + _listed(self.places),
            given="found in no folder, and not downloaded:" + _listed(obstacles),
            next_step="do one of these:"
            + _listed(
                [
                    "put the files into a folder, and name it with --assets-dir or"
                    " RESNET8_EVAL_ASSETS",
                    "run `python -m resnet8_eval assets fetch` on a machine with network, and copy"
                    f" its cache folder to {self.cache}",
                    "use the embedded stand-in: --assets stand-in",
                ]
            ),
        )

    def standin(self, user_model: Path | None) -> Assets:
        """Find or make the stand-in's model and the folder of its images."""
        standin, folder = self.manifest.standin, self._standin_folder()
        make(folder, self._draw, self.cache, self.announce)
        _demand_folder(folder, standin, _COMPLETE)
        model = user_model or fixtures_dir() / "standin" / standin.model.name
        if not user_model:
            _demand(model, standin.model, _RESTORE)
        return _found("stand-in", model, user_model, folder, standin)

    def survey(self) -> Iterator[Finding]:
        """Look at every file of the manifest."""
        real, archive, standin = self.manifest.real, self.manifest.archive, self.manifest.standin
        folder, packed = self._first(DATASET_FOLDER), self._first(archive.name)
        folder = next((p for p in self.places if _present(p / "test_batch")), folder)
        nowhere = f"not in {', '.join(map(str, self.places))}"
        absent = f"to be unpacked from {packed}" if packed else nowhere
        yield _finding("real", real.model, self._first(real.model.name), nowhere)
        for entry in real.dataset:
            path = folder and folder / entry.name
            yield _finding("real", entry, path, "no such file" if folder else absent)
        unneeded = "not needed beside the folder" if folder else nowhere
        yield _finding("real", archive, packed, unneeded)
        yield _finding(
            "stand-in",
            standin.model,
            fixtures_dir() / "standin" / standin.model.name,
            "no such file",
        )
        for entry in standin.dataset:
            path = self._standin_folder() / entry.name
            yield _finding("stand-in", entry, path, "made when needed")

    def _first(self, name: str) -> Path | None:
        return next((p / name for p in self.places if _present(p / name)), None)

    def _real_model(self) -> Path | None:
        entry = self.manifest.real.model
        path = self._first(entry.name)
        if path is not None:
            _demand(path, entry, _REPLACE)
        return path

    def _real_dataset(self) -> Path | None:
        archive = self.manifest.archive
        for place in self.places:
            # A user may name the folder of the batches itself.
            itself = _present(place / "test_batch")
            folder, packed = place if itself else place / DATASET_FOLDER, place / archive.name
            if not _present(folder) and _present(packed):
                _demand(packed, archive, _REPLACE)
                folder = self.cache / DATASET_FOLDER
                make(folder, partial(unpack, packed), self.cache, self.announce)
            if _present(folder):
                _demand_folder(folder, self.manifest.real, _COMPLETE)
                return folder
        return None

    def _standin_folder(self) -> Path:
        sums = "".join(entry.sha256 for entry in self.manifest.standin.dataset)
        edition = hashlib.sha256(sums.encode()).hexdigest()[:16]
        return self.cache / "stand-in" / edition / DATASET_FOLDER

    def _draw(self, folder: Path) -> None:
        from resnet8_eval.standin import materialise

        materialise(folder)
        _demand_folder(folder, self.manifest.standin, _REDRAW)

    def _download(self, entry: Entry, allowed: bool) -> str | None:
        """Download a file into the cache; if that fails, return why, in one line."""
        if not allowed:
            return "no download was asked for"
        if os.environ.get("RESNET8_EVAL_OFFLINE", "") not in ("", "0"):
            return "RESNET8_EVAL_OFFLINE forbids it"
        try:
            write = partial(retrieve, entry.url, entry.sha256)
            make(self.cache / entry.name, write, self.cache, self.announce)
        except DownloadError as error:
            return str(error)
        except AssetError as error:
            return in_one_line(error)
        return None


def _found(
    kind: Kind, model: Path, user_model: Path | None, dataset: Path, files: Collection
) -> Assets:
    return Assets(
        kind=kind,
        model=model,
        model_sha256=file_sha256(model),
        user_model=user_model is not None,
        dataset=dataset,
        # A file with the manifest's sha256 has the manifest's md5.
        dataset_md5={entry.name: entry.md5 for entry in files.dataset},
        dataset_sha256={entry.name: entry.sha256 for entry in files.dataset},
    )


def _inspect(path: Path, entry: Entry) -> tuple[State, str]:
    try:
        if not path.is_file():
            return "damaged" if os.path.lexists(path) else "missing", _nature(path)
        found = _described(path.stat().st_size, file_sha256(path))
    except OSError as error:
        return "damaged", in_one_line(error)
    return "verified" if found == _described(entry.size, entry.sha256) else "damaged", found


def _described(size: int, sha256: str) -> str:
    return f"{size:,} bytes, sha256 {sha256}"


def _finding(kind: Kind, entry: Entry, path: Path | None, if_missing: str) -> Finding:
    state, detail = _inspect(path, entry) if path else ("missing", "")
    return Finding(kind, entry.name, state, path, if_missing if state == "missing" else detail)


def _demand(path: Path, entry: Entry, remedy: str) -> None:
    state, detail = _inspect(path, entry)
    if state != "verified":
        raise AssetError(
            f"{path} is {'missing' if state == 'missing' else 'damaged, or another file'}.",
            expected=_described(entry.size, entry.sha256),
            given=detail,
            next_step=remedy.format(path=path, entry=entry).strip(),
        )


def _demand_folder(folder: Path, collection: Collection, remedy: str) -> None:
    for entry in collection.dataset:
        _demand(folder / entry.name, entry, remedy)


def expanded(path: str | Path) -> Path:
    """Replace a leading ~ by the user's home folder; a shell does not do so after a = sign.

    A path whose ~ names no user of this machine is returned as it is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _present(path: Path) -> bool:
    """Whether anything has that name. A dangling link does: it is an error, and not missing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise AssetError(
            f"The folder {path.parent} cannot be searched.",
            expected="a folder that this user may read and search",
            given=in_one_line(error),
            next_step=f"Allow it with `chmod u+rx {path.parent}`, or name another folder with"
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


def _listed(items: Iterable[object]) -> str:
    return "".join(f"\n            - {item}" for item in items)
