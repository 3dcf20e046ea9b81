"""Grids of recipes and of bit widths, measured on every core or on a Dask cluster.

A task carries all that it needs, so a worker may be any process on any machine that has this
package; the caller alone keeps the results. Each is one artefact in the store: an interrupted
study goes on where it stopped, and a task that a dying worker had taken is measured by another,
and kept once.
"""

from __future__ import annotations

import csv
import functools
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import (
    backends,
    calibration,
    configurations,
    environment,
    network,
    preprocess,
    proof,
)
from resnet8_eval.advanced import lowbit, mixed
from resnet8_eval.advanced.bits import Bits
from resnet8_eval.advanced.stages import CHOSEN, SENSITIVITY_IMAGES
from resnet8_eval.analysis import alike
from resnet8_eval.calibrate import tuned
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.checks import Check, failed, from_records, said
from resnet8_eval.cifar10 import read_split
from resnet8_eval.configurations import STOCK, TUNED, Configuration, Recipe
from resnet8_eval.download import in_one_line
from resnet8_eval.errors import StageError
from resnet8_eval.evaluate import softmax
from resnet8_eval.inputs import Labelled
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.preprocess import Feed, Preprocessing
from resnet8_eval.store import Store, digest

Row = dict[str, Any]
METHOD_KEYS: Final = (
    "ranges",
    "granularity",
    "rounding",
    "equalize",
    "correct_bias",
    "percentile",
    "moment_stride",
)
"""How parameters were found."""
RECIPE_KEYS: Final = ("framework", "dtype", "recipe", *METHOD_KEYS, "count")
"""What a recipe of the study is known by; seeds are repetitions of it."""


@dataclass(frozen=True)
class Task:
    """One calibration, and everything that is measured with it.

    Attributes
    ----------
    kind
        ``"recipes"``: `cells`, names of rows, are quantized and run. The others are simulated:
        ``"bits"``, and as v1_4 makes them ``"few"`` bits, after `epochs` of fine-tuning, and
        ``"mixed"`` ones, within `budgets` in percent of the bytes at 8 bits.
    count, seed
        Of the calibration set; a seed is that of fine-tuning as well.
    """

    kind: str
    count: int
    seed: int
    recipe: Recipe
    cells: tuple[str, ...] = ()
    weight_bits: int = 8
    activation_bits: int = 8
    epochs: int = 0
    budgets: tuple[float, ...] = ()


_NONE: Final = Labelled(Feed(np.zeros((0, 32, 32, 3), np.uint8)), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Images:
    """What a task is fed: images to calibrate with, and N others that are judged.

    Attributes
    ----------
    reference
        Scores (N, 10) of the float32 network for `judged`: probabilities or logits.
    training
        To fine-tune on, or to choose bits by; none of them is judged. Other tasks need none.
    """

    calibration: preprocess.Images
    judged: preprocess.Images
    labels: NDArray[np.integer]
    reference: NDArray[np.float32]
    training: Labelled = _NONE


def recipe_tasks(
    ranges: Sequence[str],
    granularities: Sequence[str],
    counts: Sequence[int],
    seeds: Sequence[int],
    cells: Sequence[str],
) -> list[Task]:
    """The grid of recipes: one task for each calibration of the rows named by `cells`.

    A framework's own quantizer keeps its defaults, so its rows are made once for each calibration
    set.
    """
    stock = tuple(cell for cell in cells if configurations.of(cell).is_stock)
    own = tuple(cell for cell in cells if cell not in stock)
    grid = [
        (replace(TUNED, ranges=cut, granularity=granularity), own)  # type: ignore[arg-type]
        for cut, granularity in product(ranges, granularities)
    ]
    return [
        Task("recipes", count, seed, recipe, chosen)
        # Tasks of one calibration set follow one another, and share what is collected on it.
        for count, seed, (recipe, chosen) in product(counts, seeds, [*grid, (STOCK, stock)])
        if chosen
    ]


def bit_tasks(bits: Sequence[int], counts: Sequence[int], seeds: Sequence[int]) -> list[Task]:
    """The accuracy map: weights at each of `bits` × activations at each of `bits`."""
    recipe = replace(TUNED, ranges="mse")  # with few bits, rounding weighs more than clipping
    return [
        Task("bits", count, seed, recipe, (), weights, activations)
        for count, seed, weights, activations in product(counts, seeds, bits, bits)
    ]


def few_bit_tasks(epochs: Sequence[int], counts: Sequence[int], seeds: Sequence[int]) -> list[Task]:
    """Weights and activations of 4 and 8 bits, each with so many epochs of fine-tuning, or none."""
    return [
        Task("few", count, seed, TUNED, (), weights, activations, some)
        for count, some, seed, weights, activations in product(
            counts, epochs, seeds, (4, 8), (4, 8)
        )
    ]


def mixed_tasks(
    budgets: Sequence[float], counts: Sequence[int], seeds: Sequence[int]
) -> list[Task]:
    """Bits of each layer, chosen for each budget: of weights alone, and of weights and maps.

    A budget is in percent of the bytes at 8 bits, of the weights or of these and one image's maps.
    """
    return [
        Task("mixed", count, seed, TUNED, budgets=tuple(budgets))
        for count, seed in product(counts, seeds)
    ]


def measure(task: Task, folded: bytes, images: Images) -> list[Row]:
    """Calibrate, quantize and judge; runs in a worker and touches nothing but scratch files.

    `folded` is the folded float32 network, as the bytes of its ONNX file.

    Returns
    -------
    list of dict
        For each configuration what it is, and what :func:`judge` says of it.
    """
    measured = _quantized if task.kind == "recipes" else _simulated
    with tempfile.TemporaryDirectory() as scratch:
        return [
            {**what, "count": task.count, "seed": task.seed, **judge(scores, images)}
            for what, scores in measured(task, folded, images, Path(scratch))
        ]


def _quantized(
    task: Task, folded: bytes, images: Images, folder: Path
) -> Iterator[tuple[Row, NDArray[np.float32]]]:
    """Each row of the task, and its scores."""

    @functools.cache
    def parameters(limit: int) -> Parameters:
        return tuned.decide(_collected(folded, images, task.recipe), task.recipe, limit)

    source = folder / "folded.onnx"
    source.write_bytes(folded)
    for row in map(configurations.of, task.cells):
        backend = backends.backend(row.framework)
        model = folder / row.name / backends.file_of(row)
        model.parent.mkdir()
        if row.is_stock:
            backend.quantize(source, images.calibration, row, model, 1)
        else:
            _write(parameters(row.quantized_by.weight_limit), row, model)
        method = {} if row.is_stock else asdict(task.recipe)
        what: Row = {"framework": row.framework, "dtype": row.dtype, "recipe": task.recipe.name}
        what |= {key: method.get(key) for key in METHOD_KEYS}
        yield what, backends.scores(model, images.judged, threads=1, execution=row.session)


def _write(parameters: Parameters, row: Configuration, path: Path) -> None:
    """Write a model, and hold what it stores against its parameters."""
    backend = backends.backend(row.framework)
    backend.write(parameters, row, path)
    found = backend.read_back(path, parameters.rounded)
    what = f"The model of {row.name} does not hold what was decided"
    _demand(proof.compare(found, parameters, row), what)


def _demand(checks: Iterable[Check], what: str) -> None:
    if wrong := failed(checks):
        raise StageError(
            f"{what}: {wrong[0].name}.",
            expected=wrong[0].expected,
            given=wrong[0].observed,
            next_step="report it, with the model: the fault is this suite's; what was measured"
            " before is kept",
        )


def _simulated(
    task: Task, folded: bytes, images: Images, folder: Path
) -> Iterator[tuple[Row, NDArray[np.float32]]]:
    """Each choice of bits, and its scores."""
    import torch

    from resnet8_eval.simulate import Simulation

    torch.set_num_threads(1)
    collected = _collected(folded, images, task.recipe)
    choices = {"bits": _map_cell, "few": _few_bits, "mixed": _mixed}[task.kind]
    for what, parameters, levels in choices(task, collected, images, folder):
        yield what, softmax(Simulation(parameters, levels).logits(images.judged))


def _collected(folded: bytes, images: Images, recipe: Recipe) -> Any:
    fed = preprocess.fed(images.calibration)
    pixels, how = fed.pixels.tobytes(), fed.preprocessing
    return _collected_once(folded, pixels, how, recipe.equalize, recipe.moment_stride)


@functools.lru_cache(maxsize=1)
def _collected_once(
    folded: bytes, pixels: bytes, how: Preprocessing, equalize: bool, moment_stride: int
) -> Any:
    """What tasks with the same calibration set share, once for each process."""
    import onnx

    return tuned.collect(
        network.parse(onnx.load_from_string(folded)),
        Feed(np.frombuffer(pixels, np.uint8).reshape(-1, 32, 32, 3), how),
        replace(TUNED, equalize=equalize, moment_stride=moment_stride),
    )


def judge(scores: NDArray[np.float32], images: Images) -> Row:
    """Hold scores (N, 10), probabilities or logits, against the labels and the float32 network's.

    ``divergence`` is the mean Kullback–Leibler divergence from float32, in nats.
    """
    found = alike(scores, images.reference)
    return {
        "correct": int((scores.argmax(axis=1) == images.labels).sum()),
        "float_correct": int((images.reference.argmax(axis=1) == images.labels).sum()),
        "total": len(scores),
        "agreement_percent": found["agreement_percent"],
        "divergence": found["kl_nats"],
    }


_Choices = Iterator[tuple[Row, Parameters, int | Mapping[str, int]]]
"""What was chosen, the parameters, and the largest integers of the activations' grids."""


def _map_cell(task: Task, collected: Any, images: Images, folder: Path) -> _Choices:
    del images, folder
    levels = 2**task.activation_bits - 1
    what = {"weight_bits": task.weight_bits, "activation_bits": task.activation_bits}
    limit = 2 ** (task.weight_bits - 1) - 1
    yield what, tuned.decide(collected, task.recipe, limit, levels), levels


def _few_bits(task: Task, collected: Any, images: Images, folder: Path) -> _Choices:
    from resnet8_eval.advanced.training import Course, train

    variants = mixed.variants(collected)
    bits = Bits.all(variants.exact, task.weight_bits, task.activation_bits)
    parameters = variants.at(bits)
    if task.epochs:
        course, watched = Course(task.epochs, seed=task.seed), preprocess.fed(images.calibration)
        learned, _ = train(parameters, bits, images.training, watched, course, folder)
        parameters = lowbit.with_whole_biases(learned, bits)
    told = ("weight_bits", "activation_bits", "epochs")
    yield {key: getattr(task, key) for key in told}, parameters, bits.levels()


def _mixed(task: Task, collected: Any, images: Images, folder: Path) -> _Choices:
    del folder
    variants = mixed.variants(collected)
    every = mixed.sensitivities(variants, images.training.images)
    for name, kinds in CHOSEN.items():
        parts = [part for part in every if part.kind in kinds]
        front, whole = mixed.front(parts), sum(max(part.sizes.values()) for part in parts)
        for percent in task.budgets:
            within = [c for c in front if 100 * c.bytes <= percent * whole]
            # Of few odd weights, 4 bits everywhere may be a little more than half.
            chosen = (within or front[:1])[-1]
            bits = mixed.as_bits(variants.exact, parts, chosen)
            what = {
                "recipe": name,
                "budget_percent": percent,
                "bytes": chosen.bytes,
                "weight_bits": " ".join(map(str, bits.weights.values())),
                "activation_bits": " ".join(map(str, bits.activations.values())),
                "predicted": chosen.predicted,
            }
            yield what, variants.at(bits), bits.levels()


def run(
    tasks: Sequence[Task],
    folded: bytes,
    feed: Callable[[Task], Images],
    store: Store,
    source: Mapping[str, Any],
    *,
    jobs: int = -1,
    scheduler: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Measure every task that the store does not hold yet; return the rows of all, in their order.

    Parameters
    ----------
    feed
        The images of a task.
    source
        What decides results besides the task and the environment: checksums of model and images.
    jobs
        Processes on this machine; -1 means one for each core.
    scheduler
        Address of a Dask scheduler, such as ``tcp://host:8786``, to use its workers instead.
    advance
        Called once for each finished task.
    """
    from joblib import Parallel, delayed

    known = _computed_with()
    keys = {task: digest([asdict(task), dict(source), known]) for task in tasks}
    found = {task: kept.record for task in keys if (kept := store.get(_STAGE, keys[task]))}
    for _ in found:
        advance()
    missing = [task for task in keys if task not in found]
    calls = (delayed(_measured)(task, folded, feed(task), known) for task in missing)
    with _backend(scheduler, jobs):
        for task, rows in Parallel(return_as="generator_unordered", batch_size=1)(calls):
            made = {"rows": rows}
            kept = store.produce(_STAGE, keys[task], lambda _: made)  # noqa: B023 (called at once)
            found[task] = kept.record
            advance()
    return [row for task in keys for row in found[task]["rows"]]


def measure_all(
    tasks: Sequence[Task],
    pipeline: Pipeline,
    *,
    on_test: bool,
    validation_count: int,
    **how: Any,
) -> list[Row]:
    """Measure tasks on a pipeline's model and images, and keep the results in its store.

    Training images that did not calibrate judge, `validation_count` of them, or the test split if
    `on_test`; each row tells it as ``judged_on``. `how` is as for :func:`run`.
    """
    made = pipeline.artifact("folded")
    _demand(from_records(made.record["checks"]), "Folding changed what the network computes")
    folded = made.path("folded.onnx")
    assets, fed = pipeline.settings.assets, pipeline.settings.preprocessing
    train = read_split(assets.dataset, "train", assets.dataset_sha256)
    test = read_split(assets.dataset, "test", assets.dataset_sha256) if on_test else None
    references: dict[bytes, NDArray[np.float32]] = {}

    def training(places: NDArray[np.integer]) -> Labelled:
        return Labelled(Feed(train.images[places], fed), train.labels[places])

    def feed(task: Task) -> Images:
        count, seed, given = task.count, task.seed, {"--count": task.count}
        if test is not None:
            calibrating = calibration.choose(train.labels, count, seed, OPTIONS)
            validating = calibrating[:0]
            judged = Labelled(Feed(test.images, fed), test.labels)
        else:
            calibrating, validating = calibration.split(
                train.labels, count, seed, validation_count, OPTIONS
            )
            judged = training(validating)
            given["--images"] = validation_count
        which = validating.tobytes()
        if which not in references:
            references[which] = backends.scores(folded, judged.images, threads=1)
        rest = np.setdiff1d(np.arange(len(train.labels)), validating)
        if task.budgets:  # costs are measured on images that did not calibrate
            rest = np.setdiff1d(rest, calibrating)
            rest = np.sort(np.random.default_rng(seed).permutation(rest)[:SENSITIVITY_IMAGES])
        elif not task.epochs:
            rest = rest[:0]
        if (task.budgets or task.epochs) and len(rest) < FEWEST:
            raise StageError(
                "Too few training images are left to fine-tune on, or to choose bits by.",
                expected=f"{FEWEST} that do not judge; to choose bits by, that do not calibrate"
                " either",
                given=f"{' and '.join(f'{name} {n}' for name, n in given.items())}:"
                f" {len(rest)} are left",
                next_step=f"choose another {' or '.join(given)}",
            )
        return Images(training(calibrating).images, *judged, references[which], training(rest))

    judged_on = "test" if on_test else f"{validation_count} training images"
    source = {
        "model": assets.model_sha256,
        "dataset": assets.dataset_sha256,
        "preprocessing": fed.describe(),
        "judged_on": judged_on,
    }
    rows = run(tasks, folded.read_bytes(), feed, pipeline.store, source, **how)
    return [{**row, "judged_on": judged_on} for row in rows]


FEWEST: Final = 100
"""Training images that are learned from, or that costs are measured on: a batch of fine-tuning."""
OPTIONS: Final = ("--count", "--seed", "--images")
"""What decides which images calibrate and which judge, as a user gives it."""
_CONNECT_SECONDS: Final = 10
_STAGE: Final = "study"


def _measured(
    task: Task, folded: bytes, images: Images, expected: dict[str, Any]
) -> tuple[Task, list[Row]]:
    """In a worker: measure a task, if it computes as the caller does, who keeps the result."""
    found = _computed_with()
    if others := [name for name in expected if expected[name] != found[name]]:
        raise StageError(
            "A worker of the study computes otherwise than the process that keeps its results.",
            expected="; ".join(f"{name} {said(expected[name])}" for name in others),
            given="; ".join(f"{name} {said(found[name])}" for name in others),
            next_step="use workers with the same packages, and instructions of the processor",
        )
    return task, measure(task, folded, images)


def _computed_with() -> dict[str, Any]:
    """What decides results besides task and images.

    A worker may have any number of cores, and any processor of the same instructions.
    """
    found = environment.fingerprint()
    kept = {name: value for name, value in found["cpu"].items() if name not in ("cores", "model")}
    return {**found, "cpu": kept}


@contextmanager
def _backend(scheduler: str | None, jobs: int) -> Iterator[None]:
    """Make joblib use this machine's cores, or a Dask cluster."""
    from joblib import parallel_config

    if scheduler is None:
        with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
            yield
        return
    from distributed import Client

    try:  # making a client for an address registers joblib's Dask backend
        client = Client(scheduler, set_as_default=False, timeout=_CONNECT_SECONDS)
    except OSError as error:
        raise StageError(
            f"No Dask scheduler answers at {scheduler}.",
            expected="the address of one that runs, such as tcp://host:8786",
            given=in_one_line(error),
            next_step="start it with `dask scheduler`, or leave out --scheduler to use the cores"
            " of this machine",
        ) from error
    with client, parallel_config("dask", client=client, n_jobs=-1):
        yield


def summarize(rows: Iterable[Row], keys: Sequence[str] = RECIPE_KEYS) -> list[Row]:
    """Mean, spread (standard deviation) and worst over the seeds of each recipe.

    A recipe is known by `keys`; the least mean divergence comes first.
    """
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    table, mean = [], statistics.fmean
    for values, members in groups.items():
        accuracy = [100 * row["correct"] / row["total"] for row in members]
        deltas = [100 * (row["correct"] - row["float_correct"]) / row["total"] for row in members]
        agreement = [row["agreement_percent"] for row in members]
        spread = round(statistics.stdev(accuracy), 4) if len(members) > 1 else None
        table.append(
            {
                **dict(zip(keys, values, strict=True)),
                "seeds": len(members),
                "accuracy_mean_percent": round(mean(accuracy), 4),
                "accuracy_spread_pp": spread,
                "accuracy_worst_percent": round(min(accuracy), 4),
                "delta_mean_pp": round(mean(deltas), 4),
                "agreement_mean_percent": round(mean(agreement), 4),
                "agreement_worst_percent": round(min(agreement), 4),
                "divergence_mean": round(mean(row["divergence"] for row in members), 7),
            }
        )
    return sorted(table, key=lambda row: row["divergence_mean"])


def write(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV to `path`, and as JSON beside it."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = json.dumps(list(rows), indent=1)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
