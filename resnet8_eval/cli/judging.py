"""Commands that judge a model file: evaluate, compare, golden."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from resnet8_eval.assets import MODEL_SUFFIXES, expanded, given_model
from resnet8_eval.cli.options import (
    AsJson,
    AssetsDir,
    CacheDir,
    Kind,
    Output,
    PreprocessingName,
    locate,
    print_json,
    taken,
    whole_folder,
)
from resnet8_eval.environment import is_x86, usable_cores
from resnet8_eval.errors import SuiteError

if TYPE_CHECKING:
    from resnet8_eval.preprocess import Preprocessing


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model: .h5, .keras, .onnx, .pt2 or .pt.")],
    preprocessing: PreprocessingName = "raw",
    kind: Kind = "real",
    assets_dir: AssetsDir = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model's accuracy on the test images, in all and for each class."""
    from resnet8_eval.preprocess import chosen

    found = _judged(model, chosen(preprocessing), kind, assets_dir, cache_dir)
    record = found.record
    if as_json:
        print_json({**record, **found.fed})
        return
    typer.echo(
        f"{model.name}: {record['accuracy_percent']:.2f} % "
        f"({record['correct']}/{record['total']}, {found.fed['assets']} images)"
    )
    for entry in record["per_class"]:
        typer.echo(f"  {entry['name']:11} {entry['accuracy_percent']:6.2f} %")
    for line in _doubts(record):
        typer.echo(line)


def compare(
    baseline: Annotated[Path, typer.Argument(help="The model to compare with.")],
    models: Annotated[list[Path], typer.Argument(help="The models to compare.")],
    preprocessing: PreprocessingName = "raw",
    kind: Kind = "real",
    assets_dir: AssetsDir = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Hold models against a baseline, image by image: delta, interval, exact test, flag."""
    from resnet8_eval import analysis
    from resnet8_eval.preprocess import chosen
    from resnet8_eval.report import words

    how, paths = chosen(preprocessing), [baseline, *models]
    found = [_judged(model, how, kind, assets_dir, cache_dir) for model in paths]
    first = found[0]
    rows = [
        {
            **one.record,
            "size_bytes": expanded(model).stat().st_size,
            **analysis.compare(one.scores, first.scores, first.labels, first.names),
            **(analysis.BASELINE if one is first else {}),
        }
        for model, one in zip(paths, found, strict=True)
    ]
    if as_json:
        print_json({**first.fed, "models": rows})
        return
    titles = _told_apart(paths)
    for title, row in zip(titles, rows, strict=True):
        beside = ""
        if row["delta_ci95_pp"]:
            beside = (
                f"  delta {words.signed(row['delta_pp'])} pp"
                f" [{words.delta_interval(row['delta_ci95_pp'])}]  "
                f"p {words.p_value(row['mcnemar_p'])}  "
                f"agreement {row['agreement_percent']:.2f} %"
            )
        typer.echo(
            f"{title:28} {row['accuracy_percent']:6.2f} % "
            f"({row['correct']}/{row['total']}){beside}  {row['word']}"
            + (f"  FLAGGED: {row['flag_reason']}" if row["flagged"] else "")
            + "".join(f"\n  {line}" for line in _doubts(row))
        )


def _doubts(told: dict[str, Any]) -> list[str]:
    """What may be wrong with a model's figures, a line each."""
    found = told["saturation"]
    lines = [f"note: {note}" for note in told["notes"]]
    if told["hint"]:
        lines.append(f"hint: {told['hint']}")
    if told["batch_effect"]:
        lines.append(f"warning: {told['batch_effect']}")
    if told["runs_as"]:
        lines.append(
            f"note: run with {told['runs_as']}, as backends.onnxruntime.open_session opens it; a"
            " plain session leaves more in float, and may class a few images otherwise"
        )
    if found and found["warning"]:
        lines.append(f"warning: {found['warning']}")
    elif found and found["largest_weight"] is None:
        lines.append(
            f"note: its weights could not be read ({found['unread']}); on some x86 processors"
            " kernels may saturate on them and give other answers"
        )
    elif found:
        lines.append(
            f"note: signed weights up to ±{found['largest_weight']}: "
            + (
                f"on x86 without {found['needs']}, kernels saturate on them and give other answers"
                if found["needs"]
                else "no x86 kernel saturates on them"
            )
        )
    return lines


def _told_apart(paths: list[Path]) -> list[str]:
    """The names of files, with as many folders before them as tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-parts:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def golden(
    model: Annotated[Path, typer.Argument(help="Quantized ONNX model.")],
    output: Output,
    images: Annotated[str, typer.Option(help="Positions among the test images.")] = "0,1,2",
    preprocessing: PreprocessingName = "raw",
    kind: Kind = "real",
    assets_dir: AssetsDir = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Write what each layer reads, holds and gives, in integers, for a comparison bit by bit.

    One .npz for each layer, and index.json.
    """
    from resnet8_eval import golden as vectors
    from resnet8_eval import quantized_onnx
    from resnet8_eval.cifar10 import read_split
    from resnet8_eval.convert import onnx_file
    from resnet8_eval.preprocess import Feed, chosen

    onnx_file.demand_readable(given_model(model, (".onnx",)))
    earlier = vectors.earlier(output)
    if earlier is None:
        raise taken(output / vectors.INDEX, "which golden did not write")
    found = locate(kind, assets_dir, cache_dir, model, (".onnx",))
    test = read_split(found.dataset, "test", found.dataset_sha256).images
    words = images.split(",")
    positions = [int(word) for word in words if word.strip().isdecimal()]
    if len(positions) < len(words) or max(positions) >= len(test):
        raise typer.BadParameter(
            f"'{images}' is no list of positions from 0 to {len(test) - 1}, such as 0,1,2"
        )
    fed = Feed(test[positions], chosen(preprocessing))
    with whole_folder(output) as folder:
        index = vectors.write(quantized_onnx.read(found.model), fed, positions, folder)
        vectors.forget(output, earlier)
    if as_json:
        print_json(index)
    else:
        count = "1 image" if len(positions) == 1 else f"{len(positions)} images"
        typer.echo(f"{len(index['layers'])} layers, {count}; written to {output}")


class _Judged(NamedTuple):
    """Scores of a stored model, what they are held against, what is told of it, and how fed."""

    scores: Any
    labels: Any
    names: tuple[str, ...]
    record: dict[str, Any]
    fed: dict[str, Any]


def _judged(
    model: Path,
    how: Preprocessing,
    kind: Literal["real", "auto", "stand-in"],
    assets_dir: Path | None,
    cache_dir: Path | None,
) -> _Judged:
    """Run a stored model on the test images, and look for what may be wrong with it."""
    from resnet8_eval import backends, batch_effect, calibration, hints, saturation
    from resnet8_eval.cifar10 import read_class_names, read_split
    from resnet8_eval.convert import onnx_file
    from resnet8_eval.convert.keras_to_onnx import load_noted
    from resnet8_eval.evaluate import evaluate
    from resnet8_eval.preprocess import Feed

    suffixes = tuple(backends.SUFFIXES)
    path = given_model(model, suffixes)
    if path.suffix == ".onnx":
        onnx_file.demand_readable(path)
    found = locate(kind, assets_dir, cache_dir, model, suffixes)
    train, test = (read_split(found.dataset, n, found.dataset_sha256) for n in ("train", "test"))
    some = calibration.choose(train.labels, hints.IMAGES, 0)
    images, tried = Feed(test.images, how), Feed(train.images[some], how)
    names = read_class_names(found.dataset, found.dataset_sha256)
    with _working(f"evaluate {model.name}"):
        notes = load_noted(path)[1] if path.suffix in MODEL_SUFFIXES else []
        scores = backends.scores(path, images, threads=usable_cores())
        score = backends.scorer(path, usable_cores())
        record = {
            "model": str(model),
            "notes": notes,
            "hint": hints.tried(score, tried, train.labels[some], names)["hint"],
            "batch_effect": batch_effect.told(path, images, scores),
            "saturation": saturation.told(path, images, test.labels, scores),
            "runs_as": _runs_as(path),
            **evaluate(scores, test.labels, names),
        }
    fed = {"assets": found.kind, "preprocessing": {"name": how.name, **how.describe()}}
    return _Judged(scores, test.labels, names, record, fed)


def _runs_as(model: Path) -> str | None:
    """What was done to a model's activations before it ran; None where nothing was."""
    from resnet8_eval.backends import onnxruntime

    if model.suffix != ".onnx" or not is_x86() or onnxruntime.unsigned(model) == str(model):
        return None
    return onnxruntime.RUNS_AS_UNSIGNED


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere; nor what frameworks write while they start."""
    # They write to the descriptor, past sys.stderr. It is shown where the work stops for a reason
    # that has no words of its own.
    from rich.console import Console

    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as shown, TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            with Console(file=shown).status(what):
                yield
        except SuiteError:
            raise
        except BaseException:
            noise.seek(0)
            os.write(shown.fileno(), noise.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown.fileno(), 2)
