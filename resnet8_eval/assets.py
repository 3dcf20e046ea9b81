"""Find and verify the model and the images; what is missing is downloaded.

A file counts only when its checksum is the manifest's. One that is missing is looked for in the
next place, and in the end downloaded; one that is there but damaged is an error, wherever it is.
"""

from __future__ import annotations

import hashlib
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
from resnet8_eval.manifest import (
    Collection,
    Entry,
    Manifest,
    State,
    demand,
    demand_folder,
    fixtures_dir,
    inspect,
    load_manifest,
    nature,
)
from resnet8_eval.store import file_sha256, signature

Kind = Literal["real", "stand-in"]

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
class Assets:
    """The model and the images of a run, all verified.

    `dataset` is the folder of `data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`,
    with checksums by file name. `user_model`: whether the user gave the model, .h5 or .keras,
    instead of the manifest's.
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


def default_cache_dir() -> Path:
    """Return the cache folder: RESNET8_EVAL_CACHE, else the system's cache folder for the user."""
    given = os.environ.get("RESNET8_EVAL_CACHE")
    if given:
        return expanded(given).absolute()
    import pooch

    return Path(pooch.os_cache("resnet8-eval"))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def locate(
    kind: Literal["real", "auto", "stand-in"],
    *,
    assets_dir: Path | None,
    cache_dir: Path,
    keras_model: Path | None = None,
    suffixes: tuple[str, ...] = MODEL_SUFFIXES,
    announce: Announce = _say,
) -> Assets:
    """Find the assets, or download them, and verify them.

    Each file is looked for in `assets_dir` (else RESNET8_EVAL_ASSETS), in the checkout's `assets/`,
    in `shared/assets/` beside the checkout, and in the cache; last, it is downloaded into the
    cache, with one attempt for each, unless RESNET8_EVAL_OFFLINE=1 forbids it. CIFAR-10 may be the
    official folder or the official archive.

    Parameters
    ----------
    kind
        "auto" is the real assets if they can be had, else the stand-in.
    keras_model
        A file to judge instead of the manifest's model; its name ends in one of `suffixes`.
    announce
        Called with one line when "auto" takes the stand-in, and while another process is waited
        for.

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
    search = _search(assets_dir, cache_dir, announce)
    user_model = None if keras_model is None else given_model(keras_model, suffixes)
    if kind != "stand-in":
        try:
            return search.real(user_model)
        except MissingAssetError as error:
            if kind == "real" or user_model:
                raise  # the stand-in's drawn shapes say nothing about a model of photographs
            announce(f"Using the stand-in. {error.what} {' '.join(error.given.split())}")
    return search.standin(user_model)


def of_model(path: Path) -> Assets:
    """Return a model (.h5, .keras or .onnx) without images, for the stages that need none."""
    path = expanded(path).absolute()
    return Assets("real", path, file_sha256(path), True, path.parent, {}, {})


def survey(assets_dir: Path | None, cache_dir: Path) -> list[Finding]:
    """Look for every file of the manifest; nothing is downloaded, made or refused.

    Parameters are those of :func:`locate`. AssetError if `assets_dir` is not there.
    """
    return list(_search(assets_dir, cache_dir).survey())


def fetch(cache_dir: Path) -> tuple[Path, Path]:
    """Download the real assets that the cache lacks, and return the model and the folder of images.

    No other folder is searched, so that the cache is complete and can be copied to a machine
    without network. Errors are those of :func:`locate`.
    """
    cache = cache_dir.absolute()
    found = _Search(load_manifest(), [cache], cache).real(None)
    return found.model, found.dataset


@contextmanager
def unchanged(path: Path, sha256: str) -> Iterator[Path]:
    """Make sure that a file that is read by its path is still the one that was verified.

    AssetError on entering, if its checksum is another; on leaving, if it was written to since.
    """
    try:
        before, found = signature(path), file_sha256(path)
    except OSError as error:
        raise changed_asset(path, f"sha256 {sha256}", in_one_line(error)) from error
    if found != sha256:
        raise changed_asset(path, f"sha256 {sha256}", f"sha256 {found}")
    try:
        yield path
    finally:
        # This error replaces the reader's own, which half a file may have caused.
        if signature(path) != before:
            raise changed_asset(path, f"sha256 {sha256}", "written to while it was read")


def _search(given: Path | None, cache_dir: Path, announce: Announce = _say) -> _Search:
    explicit = given_folder(given)
    places = [explicit] if explicit else []
    for root in _checkouts():
        places += [root / "assets", root.parent / "shared" / "assets"]
    unique = list(dict.fromkeys(place.absolute() for place in [*places, cache_dir]))
    return _Search(load_manifest(), unique, cache_dir.absolute(), announce)


def _checkouts() -> list[Path]:
    candidates = [Path(__file__).resolve().parents[1], Path.cwd()]
    return [root for root in candidates if (root / "fixtures" / "assets.json").is_file()]


def given_folder(given: Path | None) -> Path | None:
    """The folder that holds assets, as the user names it; AssetError if it is not there."""
    folder = given or os.environ.get("RESNET8_EVAL_ASSETS")
    explicit = expanded(folder) if folder else None
    if explicit and nature(explicit) != "a folder":
        raise AssetError(
            f"There is no folder {explicit}.",
            expected=f"a folder that holds assets, such as {DATASET_FOLDER}/",
            given=nature(explicit),
            next_step="Correct --assets-dir or RESNET8_EVAL_ASSETS, or leave them out.",
        )
    return explicit


def given_model(path: Path, suffixes: tuple[str, ...] = MODEL_SUFFIXES) -> Path:
    """The model that the user names, as an absolute path.

    AssetError if it is not there, or its name has none of these suffixes.
    """
    path = expanded(path).absolute()
    what = nature(path)
    if path.suffix in suffixes and what == "a file" and os.access(path, os.R_OK):
        return path
    next_step = "Give such a file, or leave out --keras-model where that named it."
    if what == "a folder" and ".keras" in suffixes:
        next_step += " Load a SavedModel folder in the Keras that wrote it, and save it as .keras."
    raise AssetError(
        f"{path} cannot be used as the model.",
        expected=f"a readable file that ends in {' or '.join(suffixes)}",
        given=what,
        next_step=next_step,
    )


@dataclass(frozen=True)
class _Search:
    """A search through `places`, in order; new files are put into `cache`."""

    manifest: Manifest
    places: list[Path]
    cache: Path
    announce: Announce = _say

    def real(self, user_model: Path | None) -> Assets:
        """Find or download the model and the folder of CIFAR-10."""
        real, archive = self.manifest.real, self.manifest.archive
        missing, obstacles = [], []
        model, dataset = user_model or self._real_model(), self._real_dataset()
        for found, name, entry in (
            (model, real.model.name, real.model),
            (dataset, DATASET_FOLDER, archive),
        ):
            if found is None and (obstacle := self._download(entry)):
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
        demand_folder(folder, standin, _COMPLETE)
        if not user_model:
            demand(self._standin_model, standin.model, _RESTORE)
        model = user_model or self._standin_model
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
        yield _finding("stand-in", standin.model, self._standin_model, "no such file")
        for entry in standin.dataset:
            path = self._standin_folder() / entry.name
            yield _finding("stand-in", entry, path, "made when needed")

    def _first(self, name: str) -> Path | None:
        return next((p / name for p in self.places if _present(p / name)), None)

    def _real_model(self) -> Path | None:
        entry = self.manifest.real.model
        path = self._first(entry.name)
        if path is not None:
            demand(path, entry, _REPLACE)
        return path

    def _real_dataset(self) -> Path | None:
        archive = self.manifest.archive
        for place in self.places:
            # A user may name the folder of the batches itself.
            itself = _present(place / "test_batch")
            folder, packed = place if itself else place / DATASET_FOLDER, place / archive.name
            if not _present(folder) and _present(packed):
                demand(packed, archive, _REPLACE)
                folder = self.cache / DATASET_FOLDER
                make(folder, partial(unpack, packed), self.cache, self.announce)
            if _present(folder):
                demand_folder(folder, self.manifest.real, _COMPLETE)
                return folder
        return None

    @property
    def _standin_model(self) -> Path:
        return fixtures_dir() / "standin" / self.manifest.standin.model.name

    def _standin_folder(self) -> Path:
        sums = "".join(entry.sha256 for entry in self.manifest.standin.dataset)
        edition = hashlib.sha256(sums.encode()).hexdigest()[:16]
        return self.cache / "stand-in" / edition / DATASET_FOLDER

    def _draw(self, folder: Path) -> None:
        from resnet8_eval.standin import materialise

        materialise(folder)
        demand_folder(folder, self.manifest.standin, _REDRAW)

    def _download(self, entry: Entry) -> str | None:
        """Download a file into the cache; if that fails, return why, in one line."""
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


def _finding(kind: Kind, entry: Entry, path: Path | None, if_missing: str) -> Finding:
    state, detail = inspect(path, entry) if path else ("missing", "")
    return Finding(kind, entry.name, state, path, if_missing if state == "missing" else detail)


NAMELESS: Final = "expected a folder; got no name, as of an unset variable"
"""What to say of a folder without a name, which would be the current one."""


def expanded(path: str | Path) -> Path:
    """Replace a leading ~ by the user's home folder; a shell does not do so after a = sign.

    A path whose ~ names no user of this machine is returned as it is, where `Path.expanduser` would
    raise an error without the path.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


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


def _listed(items: Iterable[object]) -> str:
    return "".join(f"\n            - {item}" for item in items)
