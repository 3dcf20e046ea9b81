"""``python -m resnet8_eval``: the same stages for people who do not want pytest.

Results go to standard output, progress and errors to standard error. The exit status is 0 when the
command did what it says, 1 when it refused or failed, 2 when it was called wrongly, 130 when Ctrl-C
ended it and 143 when SIGTERM did.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from resnet8_eval import assets, configurations, requirements
from resnet8_eval.cli import folders, judging
from resnet8_eval.cli.options import (
    CONVERSION_LOG,
    QUANTIZATION_LOG,
    AsJson,
    AssetsDir,
    CacheDir,
    Commands,
    Count,
    Kind,
    Output,
    PreprocessingName,
    Seed,
    cache_folder,
    demand_own,
    demand_writable,
    is_as_written,
    lines_of,
    locate,
    print_json,
    taken,
    whole_folder,
    wrote,
)
from resnet8_eval.environment import usable_cores
from resnet8_eval.errors import ModelError, ResultsError
from resnet8_eval.lanes import lane_environment
from resnet8_eval.store import Artifact

QUANTIZED = configurations.quantized()
if TYPE_CHECKING:
    from resnet8_eval.pipeline import Pipeline
    from resnet8_eval.preprocess import Preprocessing
OwnModel = Annotated[Path | None, typer.Option(help="Judge this Keras model instead.")]
CELLS = [row.name for row in QUANTIZED]
RANGES, GRANULARITIES = (
    list(get_args(kind)) for kind in (configurations.Ranges, configurations.Granularity)
)


def _among(names: Iterable[str], *flags: str, **more: Any) -> Any:
    """An option whose value, or each of whose values, is one of these names."""
    known = list(dict.fromkeys(names))

    def check(given: Any) -> Any:
        for value in [given] if isinstance(given, str) else given or ():
            if value not in known:
                raise typer.BadParameter(f"'{value}' is none of {', '.join(known)}")
        return given if isinstance(given, str) else _once(given)

    return typer.Option(*flags, callback=check, **{"metavar": "|".join(known)} | more)


def _once(values: list[Any] | None) -> list[Any] | None:
    """What a repeatable option was given, each value once."""
    return values and list(dict.fromkeys(values))


def _processes(jobs: int | None) -> int | None:
    if jobs == 0:
        raise typer.BadParameter("0 processes measure nothing; give 1 or more, or -1 for all cores")
    return jobs


def _address(scheduler: str | None) -> str | None:
    """Refuse what is none: a Dask client that cannot read its address never ends."""
    if scheduler and not re.fullmatch(r"((tcp|tls)://)?[^/\s]+:\d{1,5}", scheduler):
        raise typer.BadParameter(f"'{scheduler}' is no address such as tcp://host:8786")
    if scheduler and not find_spec("distributed"):
        raise typer.BadParameter("it needs Dask: pip install 'resnet8-eval[study]'")
    return scheduler


def _refuse_with(option: str, others: Mapping[str, object]) -> None:
    """Refuse what would do nothing beside an option."""
    given = [name for name, value in others.items() if value not in (None, [])]
    if given:
        raise typer.BadParameter(f"{' and '.join(given)} would do nothing with {option}")


app = typer.Typer(
    name="resnet8-eval",
    cls=Commands,
    help="Convert, evaluate and quantize a Keras ResNet8, and say what each step cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(folders.assets_app, name="assets")
app.add_typer(folders.cache_app, name="cache")


def main() -> None:
    """Run the command line."""
    _fill_streams()
    # Frameworks read these variables when they are imported. On the command line one framework
    # works at a time, on all cores.
    os.environ.update(lane_environment(usable_cores()))
    signal.signal(signal.SIGTERM, _terminated)
    app()


def _fill_streams() -> None:
    """Lead each standard stream that is closed nowhere: the next file would get its number."""
    for name in ("stdin", "stdout", "stderr"):  # by number, for the lowest free one is taken
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)  # lanes need it as well
            setattr(sys, name, os.fdopen(descriptor, "r+"))


def _terminated(*_: object) -> None:
    """End as Ctrl-C does, so that lanes and scratch folders go."""
    raise SystemExit(128 + signal.SIGTERM)


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="Keras model, .h5 or .keras.")],
    output: Output,
    to: Annotated[Literal["onnx", "torch"], typer.Option(help="How far.")] = "torch",
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Convert a Keras network to ONNX, and on to PyTorch.

    Writes model.onnx, conversion.log and, for PyTorch, folded.onnx and model.pt2. With --to onnx,
    the last two of an earlier conversion are removed: they would be of another model.
    """
    from resnet8_eval.convert.log import handed_out

    assets.given_model(model)
    files, checked = {"model.onnx": "onnx"}, ["structure/onnx", "folded"]
    for_torch = {"folded.onnx": "folded", "model.pt2": "torch"}
    if to == "torch":
        files |= for_torch
        checked.append("structure/torch")
    demand_own(output, files, CONVERSION_LOG)
    demand_writable(output)
    pipeline = _pipeline(assets.of_model(model), cache_dir)
    made = _sound(pipeline, [*files.values(), *checked])
    checks = [check for name in checked for check in made[name].record.get("checks", ())]
    with whole_folder(output) as folder:
        for name, stage in files.items():
            shutil.copyfile(made[stage].path(name), folder / name)
        log = made["onnx"].path(CONVERSION_LOG).read_text(encoding="utf-8")
        log = handed_out(log, model.name)
        log += "".join(f"{wrote(folder / name)}\n" for name in sorted(files))
        (folder / CONVERSION_LOG).write_text(log, encoding="utf-8")
        for path in (output / name for name in for_torch):
            if is_as_written(path, CONVERSION_LOG):
                path.unlink()
    if as_json:
        print_json({**made["onnx"].record, "checks": checks})
    else:
        typer.echo(f"{len(checks)} checks hold; written to {output}")


for command in (judging.evaluate, judging.compare, judging.golden):
    app.command()(command)


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="float32 model: .h5, .keras or .onnx.")],
    output: Output,
    framework: Annotated[str, _among(row.framework for row in QUANTIZED)] = "onnxruntime",
    dtype: Annotated[str, _among(row.dtype for row in QUANTIZED)] = "int8",
    recipe: Annotated[
        str, _among(row.quantized_by.name for row in QUANTIZED)
    ] = configurations.TUNED.name,
    preprocessing: PreprocessingName = "raw",
    calibration_count: Count = 1000,
    calibration_seed: Seed = 0,
    kind: Kind = "real",
    assets_dir: AssetsDir = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model statically, calibrated on training images.

    Writes model.onnx, model.pt or model.pt2, and says so in quantization.log.
    """
    from resnet8_eval.backends import file_of
    from resnet8_eval.preprocess import chosen

    suffixes = (*assets.MODEL_SUFFIXES, ".onnx")
    assets.given_model(model, suffixes)
    rows = configurations.quantized(framework, dtype)
    row = next((row for row in rows if row.quantized_by.name == recipe), None)
    if row is None:
        raise typer.BadParameter(
            f"there is no row {framework} × {dtype} × {recipe}; there are {', '.join(CELLS)}"
        )
    name = file_of(row)
    demand_own(output, [name], QUANTIZATION_LOG)
    settings = {
        "preprocessing": chosen(preprocessing),
        "calibration_count": calibration_count,
        "calibration_seed": calibration_seed,
    }
    given = locate(kind, assets_dir, cache_dir, model, suffixes)
    stage = f"model/{row.name}"
    converted = [] if given.model.suffix == ".onnx" else ["structure/onnx"]
    demand_writable(output)
    made = _sound(_pipeline(given, cache_dir, **settings), [*converted, stage])[stage]
    record = made.record
    with whole_folder(output) as folder:
        shutil.copyfile(made.path(name), folder / name)
        earlier = lines_of(output / QUANTIZATION_LOG)
        others = [line for line in earlier if not line.startswith(f"wrote {name},")]
        log = "\n".join([*others, wrote(folder / name), ""])
        (folder / QUANTIZATION_LOG).write_text(log, encoding="utf-8", errors="surrogateescape")
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{row.name}: {output / name}")
        typer.echo(f"  quantized: {_counts(record['quantized_ops'])}")
        typer.echo(f"  in float:  {_counts(record['float_ops'])}")
        typer.echo(f"  execution: {row.execution}")


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="results.json")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write. (default: beside it)")
    ] = None,
    diff: Annotated[
        Path | None, typer.Option(help="Show what moved from this older results.json to RESULTS.")
    ] = None,
    fail_on_change: Annotated[
        bool,
        typer.Option(
            help="With --diff: exit with 1 if a verdict, a requirement, an accuracy or what the "
            "comparison says of a row moved."
        ),
    ] = False,
    markdown: Annotated[bool, typer.Option(help="Print Markdown for a CI job summary.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild the report from results.json alone. Nothing is run."""
    from resnet8_eval.report import diff as differences
    from resnet8_eval.report import html
    from resnet8_eval.report import markdown as texts
    from resnet8_eval.results import encode, read

    asked = {"--output": output, "--diff": diff, "--markdown": markdown, "--json": as_json}
    given = [name for name, value in asked.items() if value]
    if len(given) > 1 and given != ["--diff", "--json"]:
        raise typer.BadParameter(
            f"{' and '.join(given)} do not go together: --diff and --markdown print Markdown, "
            "--json prints RESULTS or the difference, and --output names the HTML file"
        )
    if fail_on_change and diff is None:
        raise typer.BadParameter("--fail-on-change needs --diff with an older results.json")
    found, old = read(results), None if diff is None else read(diff)
    try:
        if old is not None:
            moved, is_changed = differences.changes(old, found), differences.is_changed(old, found)
            if as_json:
                head = {"summary": differences.summary(moved), "changed": is_changed}
                print_json(head | {part: list(map(asdict, each)) for part, each in moved.items()})
            else:
                typer.echo(texts.difference(old, found))
            if fail_on_change and is_changed:
                raise typer.Exit(1)
        elif markdown:
            typer.echo(texts.summary(found))
        elif as_json:
            typer.echo(encode(found), nl=False)
        else:
            target = output or results.with_name("report.html")
            if target.exists() and target.samefile(results):
                raise taken(target, "the file that is read")
            _write(target, html.page(found))
            typer.echo(f"written to {target}")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{results} has parts that do not fit one another.",
            expected="a results.json as this suite wrote it",
            given=f"{type(error).__name__}: {error}",
            next_step="make it anew with: make report",
        ) from error


def _write(target: Path, text: str) -> None:
    """Write a file whole or not at all; into a device or a pipe, which must not be replaced."""
    from resnet8_eval.report import written

    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
    else:
        written(target.resolve(), text)  # a link stays one


@app.command("requirements")
def show_requirements(as_json: AsJson = False) -> None:
    """List the requirements: what is measured, what is required, in which milestone and phase."""
    if as_json:
        print_json([asdict(requirement) for requirement in requirements.REGISTER])
        return
    for milestone, title in requirements.MILESTONES.items():
        typer.echo(f"{milestone}  {title}")
        for entry in requirements.of_milestone(milestone):
            typer.echo(f"  {entry.id:8} {entry.title}: {entry.quantity} {entry.required}")


@app.command()
def study(
    output: Output,
    bits: Annotated[
        bool, typer.Option("--bits", help="Map weight bits × activation bits, 2 to 8, instead.")
    ] = False,
    epochs: Annotated[
        list[int] | None,
        typer.Option(
            callback=_once,
            help="Measure 4 and 8 bits after so many epochs of fine-tuning instead; 0: none.",
            min=0,
        ),
    ] = None,
    budgets: Annotated[
        list[float] | None,
        typer.Option(
            "--budget",
            callback=_once,
            help="Choose bits of 4 or 8 for each layer instead, for this percentage of the bytes"
            " at 8 bits.",
            min=50,
            max=100,
        ),
    ] = None,
    on: Annotated[
        Literal["validation", "test"],
        typer.Option(help="Training images that did not calibrate, or the test split."),
    ] = "validation",
    images: Annotated[
        int | None,
        typer.Option(min=10, help="How many validation images judge. (default: 2000)"),
    ] = None,
    cells: Annotated[
        list[str] | None,
        _among(CELLS, "--cell", metavar="ROW", help="Row. (default: all quantized ones)"),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        _among(RANGES, help="Activation ranges. (default: all three)"),
    ] = None,
    granularity: Annotated[
        list[str] | None,
        _among(GRANULARITIES, help="Of weight scales. (default: both)"),
    ] = None,
    counts: Annotated[
        list[int] | None,
        typer.Option(
            "--count",
            callback=_once,
            help="Calibration images. (default: 250, 1000 for the grid, else 1000)",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed", callback=_once, help="Calibration seeds. (default: 0 to 4; with --bits 0)"
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(callback=_processes, help="Processes. (default: one for each core)"),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            callback=_address, help="Dask scheduler, such as tcp://host:8786, to use instead."
        ),
    ] = None,
    keras_model: OwnModel = None,
    preprocessing: PreprocessingName = "raw",
    kind: Kind = "real",
    assets_dir: AssetsDir = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure a grid of recipes over calibration seeds, or what fewer bits cost.

    Writes cells.csv (every measurement) and recipes.csv (mean, spread and worst of each recipe),
    bits.csv, few-bits.csv or mixed.csv, each with the same as JSON beside it. They hold the grid
    that was asked for. A calibration set that an earlier run measured is not measured again, unless
    for other rows or budgets.
    """
    from rich.console import Console
    from rich.progress import Progress

    from resnet8_eval import study as studies

    other = [
        name
        for name, value in {"--budget": budgets, "--epochs": epochs, "--bits": bits}.items()
        if value
    ]
    if len(other) > 1:
        raise typer.BadParameter("give one of --budget, --epochs and --bits: each is another study")
    if other:
        grid = {"--cell": cells, "--ranges": ranges, "--granularity": granularity}
        _refuse_with(other[0], grid)
    if cells and all(configurations.of(cell).is_stock for cell in cells):
        _refuse_with("stock rows alone", {"--ranges": ranges, "--granularity": granularity})
    if on == "test":
        _refuse_with("--on test", {"--images": images})
    if scheduler:
        _refuse_with("--scheduler", {"--jobs": jobs})
    found = locate(kind, assets_dir, cache_dir, keras_model)
    pipeline = _pipeline(found, cache_dir, preprocessing=_fed(preprocessing, keras_model))
    _sound(pipeline, ["structure/onnx", "folded"])
    counts = counts or ([1000] if other else [250, 1000])
    seeds = seeds or ([0] if bits else [0, 1, 2, 3, 4])
    if budgets:
        name, tasks = "mixed.csv", studies.mixed_tasks(budgets, counts, seeds)
    elif epochs:
        name, tasks = "few-bits.csv", studies.few_bit_tasks(epochs, counts, seeds)
    elif bits:
        name, tasks = "bits.csv", studies.bit_tasks(range(2, 9), counts, seeds)
    else:
        name, recipes = "cells.csv", (ranges or RANGES, granularity or GRANULARITIES)
        tasks = studies.recipe_tasks(*recipes, counts, seeds, cells or CELLS)
    demand_writable(output)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("study", total=len(tasks))
        rows = studies.measure_all(
            tasks,
            pipeline,
            on_test=on == "test",
            validation_count=2000 if images is None else images,
            jobs=jobs or -1,
            scheduler=scheduler,
            advance=lambda: progress.advance(bar),
        )
    with whole_folder(output) as folder:
        studies.write(rows, folder / name)
        if name == "cells.csv":
            studies.write(studies.summarize(rows), folder / "recipes.csv")
    if as_json:
        print_json(rows)
    else:
        typer.echo(f"{len(rows)} measurements; written to {output}")


@app.command("run")
def run_stages(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Stage names; none lists them.")
    ] = None,
    keras_model: OwnModel = None,
    preprocessing: PreprocessingName = "raw",
    calibration_count: Count = 1000,
    calibration_seed: Seed = 0,
    fresh: Annotated[bool, typer.Option(help="Make them anew, whatever the cache has.")] = False,
    kind: Kind = "real",
    assets_dir: AssetsDir = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Make single stages of the pipeline, and show their records."""
    further = [int(n) for name in stages or () if (n := name.partition("@")[2]).isdecimal()]
    if max(further, default=0) >= calibration_seed + requirements.MOST_SEEDS:
        raise typer.BadParameter(
            f"there is no stage of seed {max(further)}; seeds go from --calibration-seed to"
            f" {calibration_seed + requirements.MOST_SEEDS - 1}"
        )
    pipeline = _pipeline(
        locate(kind, assets_dir, cache_dir, keras_model),
        cache_dir,
        calibration_count=calibration_count,
        calibration_seed=calibration_seed,
        preprocessing=_fed(preprocessing, keras_model),
        seeds=max([calibration_seed, *further]) - calibration_seed + 1,
    )
    if not stages:
        _refuse_with("no stage named", {"--fresh": fresh or None})
        listed = [{"stage": n, "made": pipeline.peek(n) is not None} for n in pipeline.stages]
        if as_json:
            print_json(listed)
            return
        for one in listed:
            typer.echo(f"{'made' if one['made'] else 'missing':8} {one['stage']}")
        return
    unknown = [name for name in stages if name not in pipeline.stages]
    if unknown:
        raise typer.BadParameter(f"there is no stage {unknown[0]}; run without one lists them")
    if fresh:
        pipeline.forget(pipeline.closure(stages))
    pipeline.prepare(stages)
    made = {name: pipeline.artifact(name) for name in stages}
    if as_json:
        print_json({name: artifact.record for name, artifact in made.items()})
    else:
        for name, artifact in made.items():
            typer.echo(f"{name}  {artifact.folder}")


def _fed(preprocessing: str, own: Path | None) -> Preprocessing:
    """What the user's own model is fed; the pretrained one is fed raw pixels."""
    from resnet8_eval.preprocess import RAW, chosen

    if preprocessing != RAW.name and own is None:
        raise typer.BadParameter(
            "--preprocessing is for a model of your own; name it with --keras-model. The"
            " pretrained model is fed raw pixels"
        )
    return chosen(preprocessing)


def _pipeline(given: assets.Assets, cache_dir: Path | None, **settings: Any) -> Pipeline:
    from resnet8_eval.inputs import Settings
    from resnet8_eval.pipeline import Pipeline

    given_to_run = Settings(given, cache_folder(cache_dir), **settings)
    return Pipeline(given_to_run, lambda line: typer.echo(f"  {line}", err=True))


def _sound(pipeline: Pipeline, names: Iterable[str]) -> dict[str, Artifact]:
    """Stages, if the checks of all that they need hold; else ModelError."""
    pipeline.prepare(names)
    settings = pipeline.settings
    # In order, so that the error is of the stage that failed first, not of one that needs it.
    for name in pipeline.closure(names):
        for check in pipeline.artifact(name).record.get("checks", ()):
            if not check["ok"]:
                alone = settings.alone(name, "--json")
                raise ModelError(
                    f"What was made of {settings.assets.model.name} does not stand for it:"
                    f" {check['name']}.",
                    expected=check["expected"],
                    given=check["observed"],
                    next_step="do not use it"
                    + (f"; to see every check of that stage: {alone}" if alone else ""),
                )
    return {name: pipeline.artifact(name) for name in names}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"
