"""Options, output and errors that every command shares."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from typer.core import TyperGroup

from resnet8_eval import assets
from resnet8_eval.errors import FULL, SuiteError, no_room
from resnet8_eval.store import file_sha256


def _folder(text: str) -> Path:
    """A folder from the command line."""
    if not text:
        raise typer.BadParameter(assets.NAMELESS)
    return assets.expanded(text)


AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Kind = Annotated[
    Literal["real", "auto", "stand-in"],
    typer.Option("--assets", help="Which images (and baseline model)."),
]
AssetsDir = Annotated[
    Path | None,
    typer.Option(
        envvar="RESNET8_EVAL_ASSETS",
        help="Look for the assets here first.",
        show_default=False,
        parser=_folder,
        metavar="DIR",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        envvar="RESNET8_EVAL_CACHE",
        parser=_folder,
        metavar="DIR",
        help="Where downloads and artefacts are kept. (default: the user's cache folder)",
        show_default=False,
    ),
]
PreprocessingName = Annotated[
    str,
    typer.Option(
        "--preprocessing",
        metavar="raw|unit|standard|caffe|FILE",
        help="What the model is fed: raw pixels 0-255, unit [0, 1], standardised, caffe's BGR less"
        " the mean, or as a TOML file says.",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        parser=_folder,
        metavar="DIR",
        help="Folder to write to. Files of an earlier run are replaced.",
    ),
]
Count = Annotated[int, typer.Option(help="Calibration images, stratified over the ten classes.")]
Seed = Annotated[int, typer.Option(help="Seed of the calibration set.")]
CONVERSION_LOG: Final = "conversion.log"
QUANTIZATION_LOG: Final = "quantization.log"


class Commands(TyperGroup):
    """Commands that end with exit status 1 and a message where the suite refuses something."""

    def invoke(self, ctx: Any) -> Any:
        """Run one; the system's errors about files are told in the same way."""
        try:
            return super().invoke(ctx)
        except (SuiteError, OSError) as error:
            told = error if isinstance(error, SuiteError) else _in_words(error)
            if told is None:
                raise
        _let_go_of_output()
        typer.echo(f"error: {told}", err=True)
        raise typer.Exit(1)


def _in_words(error: OSError) -> SuiteError | None:
    """An error of the system about a file or a full disk; None for any other."""
    named = error.filename2 or error.filename
    if error.errno in FULL:
        return no_room(error, "standard output")
    if named is None:
        return None
    return SuiteError(
        f"A file or folder cannot be used: {error.strerror}.",
        expected="files that can be read, and folders that can be written to",
        given=str(named),
        next_step="check the path and its permissions, or give another",
    )


def _let_go_of_output() -> None:
    """Close standard output if it still holds what does not fit: Python would try once more."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            sys.stdout.close()


def cache_folder(cache_dir: Path | None) -> Path:
    """The folder that was named, or the user's."""
    return (cache_dir or assets.default_cache_dir()).absolute()


def print_json(value: object) -> None:
    """Write JSON to standard output, in the same order each time."""
    json.dump(value, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
    sys.stdout.flush()  # here a full disk is told in words


def locate(
    kind: Literal["real", "auto", "stand-in"],
    assets_dir: Path | None,
    cache_dir: Path | None,
    model: Path | None = None,
    suffixes: tuple[str, ...] = assets.MODEL_SUFFIXES,
) -> assets.Assets:
    """The assets, wherever they are, and the model that the user named in the place of theirs."""
    return assets.locate(
        kind,
        assets_dir=assets_dir,
        cache_dir=cache_folder(cache_dir),
        keras_model=model,
        suffixes=suffixes,
        announce=lambda line: typer.echo(line, err=True),
    )


def demand_own(output: Path, names: Iterable[str], log: str) -> None:
    """Refuse to replace a file that is not as the command wrote it, by its log in that folder."""
    for target in (output / name for name in names):
        if target.exists() and not is_as_written(target, log):
            raise taken(target, f"which is not as {log} beside it says that it was written")


def wrote(path: Path) -> str:
    """The line of a log that says which file a command wrote."""
    return f"wrote {path.name}, SHA-256 {file_sha256(path)}"


def is_as_written(path: Path, log: str) -> bool:
    """Whether the log beside a file says that a command wrote it as it is."""
    return path.is_file() and wrote(path) in lines_of(path.with_name(log))


def lines_of(log: Path) -> list[str]:
    """The lines of a log; none where there is no such file."""
    if not log.is_file():
        return []
    return log.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def taken(target: Path, what: str) -> SuiteError:
    """What to raise where a file would be replaced that may still be needed."""
    return SuiteError(
        f"{target.name} would be replaced.",
        expected="another place to write to than that of a file that may still be needed",
        given=f"{target}, {what}",
        next_step="give another --output, or move the file away first",
    )


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A scratch folder whose files move to `output` only when all went well.

    It is inside `output`: on the same disk, and in the one folder that must be writable. Folders
    that were made for it do not stay where something fails.
    """
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _scratch(output) as scratch:
            folder = Path(scratch)
            yield folder
            for path in folder.iterdir():
                path.replace(output / path.name)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            error.filename = str(output)  # a write that fails names no file
        for folder in new:
            with suppress(OSError):  # it was not made yet, or another process uses it
                folder.rmdir()
        raise


def demand_writable(output: Path) -> None:
    """Refuse a folder that cannot be made or written to before the work for it; leave nothing.

    What is to be written gets its scratch folder after the work: a process that is killed at work
    cannot remove one.
    """
    there = next(folder for folder in (output, *output.parents) if os.path.lexists(folder))
    with _scratch(there) as probe:
        (Path(probe) / output.relative_to(there)).mkdir(parents=True, exist_ok=True)


def _scratch(output: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=output, prefix=".resnet8-")
    except OSError as error:
        error.filename = str(output)  # nobody knows the name of the scratch folder
        raise
