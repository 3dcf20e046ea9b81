"""The manifest: every file that the suite uses, and whether a file at hand is one of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet8_eval.download import in_one_line
from resnet8_eval.errors import AssetError
from resnet8_eval.store import file_sha256

State = Literal["verified", "missing", "damaged"]


@dataclass(frozen=True)
class Entry:
    """One file: its name, size in bytes, checksums (hexadecimal) and origin.

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


def fixtures_dir() -> Path:
    """Return the folder of the manifest and the stand-in, in a checkout or an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "fixtures"
    return inside if inside.is_dir() else package.parent / "fixtures"


def load_manifest() -> Manifest:
    """Read `fixtures/assets.json`; AssetError if it is missing or cannot be understood."""
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


def inspect(path: Path, entry: Entry) -> tuple[State, str]:
    """Whether a file is the manifest's, and what it is."""
    try:
        if not path.is_file():
            return "damaged" if os.path.lexists(path) else "missing", nature(path)
        found = _described(path.stat().st_size, file_sha256(path))
    except OSError as error:
        return "damaged", in_one_line(error)
    return "verified" if found == _described(entry.size, entry.sha256) else "damaged", found


def demand(path: Path, entry: Entry, remedy: str) -> None:
    """Raise AssetError unless a file is the manifest's; `remedy` may name {path} and {entry}."""
    state, detail = inspect(path, entry)
    if state != "verified":
        raise AssetError(
            f"{path} is {'missing' if state == 'missing' else 'damaged, or another file'}.",
            expected=_described(entry.size, entry.sha256),
            given=detail,
            next_step=remedy.format(path=path, entry=entry).strip(),
        )


def demand_folder(folder: Path, collection: Collection, remedy: str) -> None:
    """Raise AssetError unless a folder holds a whole data set."""
    for entry in collection.dataset:
        demand(folder / entry.name, entry, remedy)


def nature(path: Path) -> str:
    """What has that name, in words."""
    try:
        if path.is_file():
            return "a file"
        if path.is_dir():
            return "a folder"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "not a regular file" if os.path.lexists(path) else "no such file"


def _described(size: int, sha256: str) -> str:
    return f"{size:,} bytes, sha256 {sha256}"
