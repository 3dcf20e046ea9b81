"""The stages: what each is made from, by whom, and what decides it.

Each is an arrow of the flow: a function from files to a folder of files and a record of built-in
types. Everything that is particular to a row follows from `configurations`.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from resnet8_eval import backends, configurations, lanes
from resnet8_eval.advanced import stages as advanced
from resnet8_eval.configurations import Configuration, Recipe
from resnet8_eval.inputs import Inputs, Settings
from resnet8_eval.store import Record


@dataclass(frozen=True, eq=False)
class Stage:
    """One arrow of the flow.

    Attributes
    ----------
    name
        Such as ``"scores/torch-int8"``.
    lane
        The worker process that makes it.
    needs
        Stages that must exist first.
    make
        Writes files into a folder and returns the record.
    decided_by
        Everything besides `needs`, the code and the environment that decides its content.
    alone
        Whether nothing else may run meanwhile, because it measures time.
    by_processor
        Whether it counts only on the model of processor that it was made on.
    """

    name: str
    lane: str
    needs: tuple[str, ...]
    make: Callable[[Inputs, Path], Record]
    decided_by: dict[str, Any]
    alone: bool = False
    by_processor: bool = False


_FLOAT_MODELS: Final = {"onnxruntime": ("onnx", "model.onnx"), "torch": ("torch", "model.pt2")}
"""Stage and file of each framework's float32 model; Keras's is the asset."""


def table(settings: Settings) -> list[Stage]:
    """Every stage, each behind those that it needs, and those on the longest path first."""
    assets = settings.assets
    sums = assets.dataset_sha256
    test = {n: s for n, s in sums.items() if n in ("test_batch", "batches.meta")}
    train = {n: s for n, s in sums.items() if n.startswith("data_batch")}
    # Whatever is fed images descends from these; a file's name decides nothing.
    how = settings.preprocessing
    model = {"model": assets.model_sha256, "preprocessing": how.describe()}
    calibration = {
        **train,
        **test,
        "count": settings.calibration_count,
        "seed": settings.calibration_seed,
    }
    rows = configurations.CONFIGURATIONS
    calibrated, stock = configurations.calibrated(), configurations.stock()
    baseline = f"scores/{configurations.baseline().name}"
    float_scores = {row.framework: f"scores/{row.name}" for row in rows if row.recipe is None}
    stages = [
        Stage("onnx", "keras", (), _onnx, model),
        Stage("calibration", "onnxruntime", (), _calibration, calibration),
        Stage("folded", "onnxruntime", ("onnx",), _folded, {}),
        Stage("torch", "torch", ("folded",), _torch, {}),
    ]

    def of_recipes(
        kind: str,
        lane: str,
        needs: tuple[str, ...],
        make: Callable[..., Record],
        decided_by: dict[str, Any],
    ) -> None:
        for recipe in configurations.recipes():
            name = f"{kind}/{recipe.key}"
            own = functools.partial(make, recipe=recipe)
            known = {"recipe": recipe.key, "statistics": recipe.statistics}
            needed = tuple(need.format(**known) for need in needs)
            stages.append(Stage(name, lane, needed, own, decided_by | recipe.describe()))

    def of_rows(
        kind: str,
        chosen: Iterable[Configuration],
        needs: Callable[[Configuration], tuple[str, ...]],
        make: Callable[..., Record],
        decided_by: dict[str, Any],
        lane: str | None = None,
    ) -> None:
        for row in chosen:
            stages.append(
                Stage(
                    f"{kind}/{row.name}",
                    lane or row.framework,
                    tuple(dict.fromkeys(needs(row))),
                    functools.partial(make, row=row),
                    decided_by | row.describe(),
                )
            )

    for recipe in {recipe.statistics: recipe for recipe in configurations.recipes()}.values():
        make = functools.partial(_statistics, recipe=recipe)
        name, needs = f"statistics/{recipe.statistics}", ("onnx", "folded", "calibration")
        stages.append(Stage(name, "onnxruntime", needs, make, {}))
    of_recipes("parameters", "onnxruntime", ("statistics/{statistics}",), _parameters, {})
    of_rows("model", calibrated, _parameters_of, _model, {})
    of_rows("model", stock, lambda _: ("folded", "calibration"), _stock_model, {})
    of_rows("scores", rows, _source, _scores, test | model)
    of_rows(
        "integers",
        [row for row in calibrated if configurations.integers(row) == f"integers/{row.name}"],
        lambda row: (*_parameters_of(row), f"model/{row.name}"),
        _integers,
        test,
    )
    of_rows(
        "proof",
        stock,
        lambda row: ("folded", "calibration", f"model/{row.name}"),
        _stock_proof,
        {},
    )
    of_rows(
        "proof",
        calibrated,
        lambda row: (
            *_parameters_of(row),
            f"model/{row.name}",
            f"scores/{row.name}",
            *filter(None, [configurations.integers(row)]),
        ),
        _proof,
        test,
    )
    of_recipes("sensitivity", "torch", ("parameters/{recipe}",), _sensitivity, calibration)
    of_rows(
        "layers",
        calibrated,
        lambda row: (*_parameters_of(row), f"model/{row.name}", f"sensitivity/{_recipe(row).key}"),
        _layers,
        {},
    )
    # It needs no framework; torch's lane is the first to have nothing else to do.
    of_rows("compare", rows, lambda row: (baseline, f"scores/{row.name}"), _compare, test, "torch")
    for before, after in configurations.tunings():
        make = functools.partial(_tuning, stock=before.name, tuned=after.name)
        scored = (f"scores/{before.name}", f"scores/{after.name}")
        stages.append(Stage(f"tuning/{after.name}", "torch", scored, make, test))
    every = tuple(f"scores/{row.name}" for row in rows)
    stages.append(Stage("agreement", "torch", every, _agreement, {"rows": list(every)}))
    onnx_scores, torch_scores = (float_scores[name] for name in ("onnxruntime", "torch"))
    stages += [
        Stage("structure/onnx", "onnxruntime", ("onnx",), _structure_onnx, {}),
        Stage("structure/torch", "torch", ("folded", "torch"), _structure_torch, {}),
        _parity("onnx", "ONNX Runtime against Keras", baseline, onnx_scores),
        _parity("torch", "PyTorch against ONNX Runtime", onnx_scores, torch_scores),
    ]
    latency_needs = (stage for row in rows for stage in (*_source(row), f"scores/{row.name}"))
    stages.append(
        Stage(
            "latency",
            "onnxruntime",  # whose process is small; each framework is measured in one of its own
            tuple(dict.fromkeys(latency_needs)),
            _latency,
            {**test, **model, "rows": [row.describe() for row in rows]},
            alone=True,
            by_processor=True,
        )
    )
    named = {**train, **test, **model, "name": how.name}
    stages.append(Stage("preprocessings", "keras", (), _preprocessings, named))
    of_recipes("feed", "onnxruntime", ("calibration", "parameters/{recipe}"), _feed, {})
    stages += _of_further_seeds(stages, settings.further_seeds)
    stages += [Stage(*made) for made in advanced.table(settings, test, train)]
    names = Counter(stage.name for stage in stages)
    if twice := [name for name, n in names.items() if n > 1]:  # one would take the other's place
        raise ValueError(
            f"two stages are called {twice[0]}: rows and recipes that differ need names"
        )
    return stages


def of_seed(stage: str, seed: int) -> str:
    """A stage as it is called where it is made with a further calibration seed."""
    return f"{stage}@{seed}"


def _of_further_seeds(stages: list[Stage], seeds: Iterable[int]) -> list[Stage]:
    """What leads to each quantized row's comparison, once more for each seed, if it depends on it.

    The rest is shared: conversion, float32 rows, and the images themselves.
    """
    depend, wanted = {"calibration"}, {f"compare/{row.name}" for row in configurations.quantized()}
    for stage in stages:
        if not depend.isdisjoint(stage.needs):
            depend.add(stage.name)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.needs)
    chosen = [stage for stage in stages if stage.name in depend & wanted]
    return [
        replace(
            stage,
            name=of_seed(stage.name, seed),
            needs=tuple(of_seed(need, seed) if need in depend else need for need in stage.needs),
            make=functools.partial(_with_seed, make=stage.make, seed=seed),
            decided_by=stage.decided_by | {"seed": seed},
        )
        for seed in seeds
        for stage in chosen
    ]


def _with_seed(
    inputs: Inputs, out: Path, *, make: Callable[[Inputs, Path], Record], seed: int
) -> Record:
    artifacts = {name.partition("@")[0]: found for name, found in inputs.artifacts.items()}
    settings = replace(inputs.settings, calibration_seed=seed)
    return make(replace(inputs, settings=settings, artifacts=artifacts), out)


def _parity(name: str, title: str, expected: str, observed: str) -> Stage:
    make = functools.partial(_same_scores, title=title, expected=expected, observed=observed)
    return Stage(f"parity/{name}", "torch", (expected, observed), make, {"title": title})


def _recipe(row: Configuration) -> Recipe:
    if row.recipe is None:
        raise ValueError(f"{row.name} is not quantized")
    return row.recipe


def _parameters_of(row: Configuration) -> tuple[str, ...]:
    return (f"parameters/{_recipe(row).key}",)


def _source(row: Configuration) -> tuple[str, ...]:
    """The stage that makes a row's model; none for the baseline, whose model is an asset."""
    found = model_file(row)
    return () if found is None else (found[0],)


def model_file(row: Configuration) -> tuple[str, str] | None:
    """Stage and file name of a row's model; None for the baseline, whose model is an asset."""
    if row.recipe:
        backend = backends.backend(row.framework)
        return f"model/{row.name}", backend.STOCK_FILE if row.is_stock else backend.MODEL_FILE
    return _FLOAT_MODELS.get(row.framework)


def _onnx(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval.convert import keras_to_onnx, onnx_file

    with inputs.model() as model:
        if model.suffix == ".onnx":
            onnx_file.demand_readable(model)
            shutil.copyfile(model, out / "model.onnx")
            return {}
        return keras_to_onnx.convert(model, out)


def _preprocessings(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval import calibration, hints

    del out
    train = inputs.split("train")
    some = calibration.choose(train.labels, hints.IMAGES, 0).indices
    with inputs.model() as model:
        runtime = backends.open_runtime(model, inputs.threads)
        return hints.tried(runtime, train.images[some], train.labels[some], inputs.class_names)


def _folded(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval import network
    from resnet8_eval.convert.fold import fold

    record = fold(inputs.path("onnx", "model.onnx"), out / "folded.onnx")
    network.read(out / "folded.onnx", inputs.settings.assets.model.name)  # or refuse it
    return record


def _torch(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval.convert import onnx_to_torch

    module = onnx_to_torch.convert(inputs.path("folded", "folded.onnx"))
    onnx_to_torch.export(module, out / "model.pt2")
    return {"parameters": sum(parameter.numel() for parameter in module.parameters())}


def _calibration(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval import calibration

    train, test = inputs.split("train"), inputs.split("test")
    settings = inputs.settings
    chosen = calibration.choose(train.labels, settings.calibration_count, settings.calibration_seed)
    images, labels = train.images.pixels[chosen.indices], train.labels[chosen.indices]
    np.save(out / "indices.npy", chosen.indices)
    np.save(out / "images.npy", images)
    checks = calibration.verify(images, labels, settings.calibration_count, test.images.pixels)
    return {
        "source": "train",
        "count": len(images),
        "per_class": np.bincount(labels, minlength=10).tolist(),
        "indices_sha256": chosen.indices_sha256,
        "seed": chosen.seed,
        "checks": [check.as_dict() for check in checks],
    }


def _statistics(inputs: Inputs, out: Path, *, recipe: Recipe) -> Record:

    from resnet8_eval import network
    from resnet8_eval.calibrate.tuned import collect, same_function

    images = inputs.images("calibration")
    folded = network.read(inputs.path("folded", "folded.onnx"))
    found = collect(folded, images, recipe)
    found.save(out)
    checks = same_function(inputs.path("onnx", "model.onnx"), out, images, inputs.threads)
    return {
        "fed_sha256": found.observed.fed_sha256,
        "checks": [check.as_dict() for check in checks],
    }


def _parameters(inputs: Inputs, out: Path, *, recipe: Recipe) -> Record:
    from resnet8_eval.calibrate.tuned import Statistics, decide

    made = inputs.artifacts[f"statistics/{recipe.statistics}"]
    statistics = Statistics.load(made.folder, made.record["fed_sha256"])
    decided = decide(statistics, out, recipe, recipe.weight_limit)
    return {**decided, "checks": made.record["checks"]}


def _model(inputs: Inputs, out: Path, *, row: Configuration) -> Record:
    backend = backends.backend(row.framework)
    return backend.write(inputs.parameters(_recipe(row)), row, out / backend.MODEL_FILE)


def _stock_model(inputs: Inputs, out: Path, *, row: Configuration) -> Record:

    backend = backends.backend(row.framework)
    return backend.quantize(
        inputs.path("folded", "folded.onnx"),
        inputs.images("calibration"),
        row,
        out / backend.STOCK_FILE,
        inputs.threads,
    )


def _scores(inputs: Inputs, out: Path, *, row: Configuration) -> Record:
    import numpy as np

    from resnet8_eval.convert import keras_file
    from resnet8_eval.evaluate import evaluate
    from resnet8_eval.store import file_sha256

    test, made = inputs.split("test"), model_file(row)
    lent: AbstractContextManager[Path] = nullcontext(inputs.path(*made)) if made else inputs.model()
    with lent as path:
        scores = backends.scores(path, test.images, threads=inputs.threads, execution=row.session)
        model = {
            "weights_bytes": backends.backend(row.framework).weights_bytes(path),
            **({} if made else keras_file.array_bytes(path)),
            "size_bytes": path.stat().st_size,
            "model_sha256": file_sha256(path),
        }
    np.save(out / "scores.npy", scores)
    return {**evaluate(scores, test.labels, inputs.class_names), **model}


def _integers(inputs: Inputs, out: Path, *, row: Configuration) -> Record:
    import numpy as np

    from resnet8_eval.integers import ExactNetwork, rounding

    backend = backends.backend(row.framework)
    network = inputs.parameters(_recipe(row)).rounded
    stored = backend.read_back(inputs.path(f"model/{row.name}", backend.MODEL_FILE), network)
    images = inputs.split("test").images
    scores = ExactNetwork(network, stored, rounding(row.framework)).scores(images)
    np.save(out / "scores.npy", scores)
    return {"model": row.name, "images": len(images)}


def _proof(inputs: Inputs, out: Path, *, row: Configuration) -> Record:
    import numpy as np

    from resnet8_eval.proof import prove

    del out
    exact = configurations.integers(row)
    return prove(
        row,
        inputs.path(f"model/{row.name}", backends.backend(row.framework).MODEL_FILE),
        inputs.parameters(_recipe(row)),
        inputs.split("test"),
        np.load(inputs.path(f"scores/{row.name}", "scores.npy")),
        None if exact is None else np.load(inputs.path(exact, "scores.npy")),
    )


def _stock_proof(inputs: Inputs, out: Path, *, row: Configuration) -> Record:

    from resnet8_eval import network
    from resnet8_eval.stock import prove

    del out
    stage = f"model/{row.name}"
    return prove(
        row,
        inputs.path(stage, backends.backend(row.framework).STOCK_FILE),
        network.read(inputs.path("folded", "folded.onnx")),
        inputs.images("calibration"),
        inputs.record(stage),
    )


def _sensitivity(inputs: Inputs, out: Path, *, recipe: Recipe) -> Record:
    import numpy as np

    from resnet8_eval.calibration import split
    from resnet8_eval.layers import COST_IMAGES, NOISE_IMAGES, sensitivity

    train, settings = inputs.split("train"), inputs.settings
    count, seed = settings.calibration_count, settings.calibration_seed
    rest = len(train.labels) - count
    calibrating, validating = split(train.labels, count, seed, min(COST_IMAGES, rest // 10))
    images = train.images[validating]
    few = images[:: max(1, len(images) // NOISE_IMAGES)]
    np.save(out / "images.npy", few.pixels)
    parameters = inputs.parameters(recipe)
    return {
        "source": "train",
        "calibrated": len(np.intersect1d(calibrating.indices, validating)),
        "noise_images": len(few),
        **sensitivity(parameters, images, train.labels[validating], inputs.threads),
    }


def _layers(inputs: Inputs, out: Path, *, row: Configuration) -> Record:

    from resnet8_eval.layers import noise

    del out
    recipe = _recipe(row)
    measured = noise(
        row,
        inputs.path(f"model/{row.name}", backends.backend(row.framework).MODEL_FILE),
        inputs.parameters(recipe),
        inputs.images(f"sensitivity/{recipe.key}"),
        inputs.threads,
    )
    return {"layers": measured}


def _compare(inputs: Inputs, out: Path, *, row: Configuration) -> Record:
    import numpy as np

    from resnet8_eval import gallery
    from resnet8_eval.analysis import BASELINE, compare

    del out  # the record says it all
    test = inputs.split("test")
    scores, baseline = (
        np.load(inputs.path(f"scores/{name}", "scores.npy"))
        for name in (row.name, configurations.baseline().name)
    )
    return {
        **compare(scores, baseline, test.labels, inputs.class_names),
        **(BASELINE if row == configurations.baseline() else {}),
        "right_base64": gallery.right_base64(test.labels, scores),
        "changed": gallery.newly_wrong(test.images.pixels, test.labels, baseline, scores),
    }


def _tuning(inputs: Inputs, out: Path, *, stock: str, tuned: str) -> Record:
    import numpy as np

    from resnet8_eval.analysis import compare

    del out
    before, after = (
        np.load(inputs.path(f"scores/{name}", "scores.npy")) for name in (stock, tuned)
    )
    found = compare(after, before, inputs.split("test").labels, inputs.class_names)
    keys = ("delta_pp", "delta_ci95_pp", "lost", "gained", "mcnemar_p", "agreement_percent")
    return {"stock": stock, "tuned": tuned, **{key: found[key] for key in keys}}


def _agreement(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    del out
    answers = {
        stage.partition("/")[2]: np.load(inputs.path(stage, "scores.npy")).argmax(axis=1)
        for stage in inputs.artifacts
    }
    return {
        "rows": list(answers),
        "percent": [
            [100 * float((one == other).mean()) for other in answers.values()]
            for one in answers.values()
        ],
    }


def _latency(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval import latency

    rows = configurations.CONFIGURATIONS
    float32 = {row.framework: row.name for row in rows if row.recipe is None}
    with inputs.model() as model:
        targets = [
            latency.Target(
                row.name,
                row.framework,
                inputs.path(*made) if (made := model_file(row)) else model,
                row.session,
                scores=inputs.path(f"scores/{row.name}", "scores.npy"),
                float32=float32[row.framework],
            )
            for row in rows
        ]
        return latency.measure(
            targets,
            inputs.split("test").images,
            out,
            threads=(1, inputs.threads),
            logs=inputs.settings.cache_dir / "logs",
            announce=lanes.say,
        )


def _structure_onnx(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval.convert import structure

    del out
    with np.load(inputs.path("onnx", "keras_weights.npz")) as weights:
        checks, accounts = structure.verify_onnx(
            inputs.path("onnx", "model.onnx"), inputs.record("onnx")["layers"], dict(weights)
        )
    return {"checks": [check.as_dict() for check in checks], "accounts": accounts}


def _structure_torch(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval.convert import onnx_to_torch

    del out
    folded = inputs.path("folded", "folded.onnx")
    checks, record = onnx_to_torch.verify(folded, onnx_to_torch.convert(folded))
    exported = onnx_to_torch.verify_export(folded, inputs.path("torch", "model.pt2"))
    return {
        "checks": [check.as_dict() for check in checks],
        "export_checks": [check.as_dict() for check in exported],
        **record,
    }


def _same_scores(inputs: Inputs, out: Path, *, title: str, expected: str, observed: str) -> Record:
    import numpy as np

    from resnet8_eval.evaluate import parity
    from resnet8_eval.requirements import PARITY_ATOL

    del out
    before, after = (np.load(inputs.path(stage, "scores.npy")) for stage in (expected, observed))
    checks = parity(title, before, after, PARITY_ATOL)
    return {"checks": [check.as_dict() for check in checks]}


def _feed(inputs: Inputs, out: Path, *, recipe: Recipe) -> Record:

    from resnet8_eval.calibrate.tuned import compare_feeds

    del out
    images = inputs.images("calibration")
    return compare_feeds(images, inputs.record(f"parameters/{recipe.key}")["fed_sha256"])
