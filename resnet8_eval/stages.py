"""The stages: what each is made from, by whom, and what decides it.

Each is an arrow of the flow. Everything that is particular to a row follows from `configurations`;
what an arrow does is in `making`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from resnet8_eval import backends, configurations, making
from resnet8_eval.advanced import stages as advanced
from resnet8_eval.configurations import Configuration, Recipe
from resnet8_eval.inputs import Inputs, Settings
from resnet8_eval.lanes import Job
from resnet8_eval.store import Record


@dataclass(frozen=True, eq=False)
class Stage(Job):
    """One arrow of the flow.

    Attributes
    ----------
    make
        Writes files into ``inputs.out`` and returns the record.
    decided_by
        Everything besides `needs`, the code and the environment that decides its content.
    """

    make: Callable[[Inputs], Record]
    decided_by: dict[str, Any]


def table(settings: Settings) -> list[Stage]:
    """Every stage, each behind those that it needs, and those on the longest path first."""
    assets = settings.assets
    sums = assets.dataset_sha256
    test = {n: s for n, s in sums.items() if n in ("test_batch", "batches.meta")}
    train = {n: s for n, s in sums.items() if n.startswith("data_batch")}
    # Whatever is fed images descends from these; a file's name decides nothing.
    how = settings.preprocessing
    model = {"model": assets.model_sha256, "preprocessing": how.describe()}
    drawn = {"count": settings.calibration_count, "seed": settings.calibration_seed}
    calibration = train | test | drawn
    # What needs no framework goes to the lane that is the first to have nothing else to do.
    spare = "onnxruntime"
    rows, recipes = configurations.CONFIGURATIONS, configurations.recipes()
    calibrated, stock = configurations.calibrated(), configurations.stock()
    baseline = f"scores/{configurations.baseline().name}"
    float_scores = {row.framework: f"scores/{row.name}" for row in rows if row.recipe is None}
    stages = [
        Stage("onnx", "keras", (), making.onnx, model),
        Stage("calibration", "onnxruntime", (), making.calibration, calibration),
        Stage("folded", "onnxruntime", ("onnx",), making.folded, {}),
        Stage("torch", "torch", ("folded",), making.torch, {}),
    ]

    def of_each(
        kind: str,
        chosen: Iterable[Configuration | Recipe],
        needs: Callable[[Any], tuple[str, ...]],
        make: Callable[..., Record],
        decided_by: dict[str, Any],
        lane: str | None = None,
    ) -> None:
        for one in chosen:
            if isinstance(one, Configuration):
                name, own = one.name, functools.partial(make, row=one)
                lane_of = lane or one.framework
            else:
                name, own = one.key, functools.partial(make, recipe=one)
                lane_of = lane or spare
            needed = tuple(dict.fromkeys(needs(one)))
            stages.append(Stage(f"{kind}/{name}", lane_of, needed, own, decided_by | asdict(one)))

    for recipe in {recipe.statistics: recipe for recipe in recipes}.values():
        make = functools.partial(making.statistics, recipe=recipe)
        name, needs = f"statistics/{recipe.statistics}", ("onnx", "folded", "calibration")
        stages.append(Stage(name, spare, needs, make, {}))
    of_each("parameters", recipes, lambda r: (f"statistics/{r.statistics}",), making.parameters, {})
    of_each("model", calibrated, _parameters_of, making.model, {})
    of_each("model", stock, lambda _: ("folded", "calibration"), making.model, {})
    stages.append(Stage("spans", spare, ("folded", "calibration"), making.spans, {}))
    # PyTorch's lane has the most to do, so its rows come first.
    urgent_first = sorted(rows, key=lambda row: row.framework != "torch")
    of_each("scores", urgent_first, _source, making.scores, test | model)
    of_each(
        "integers",
        [row for row in calibrated if configurations.integers(row) == f"integers/{row.name}"],
        lambda row: (*_parameters_of(row), f"model/{row.name}"),
        making.integers,
        test,
    )
    of_each(
        "proof",
        stock,
        lambda row: ("folded", "calibration", "spans", f"model/{row.name}"),
        making.stock_proof,
        {},
    )
    of_each(
        "proof",
        calibrated,
        lambda row: (
            *_parameters_of(row),
            f"model/{row.name}",
            f"scores/{row.name}",
            *filter(None, [configurations.integers(row)]),
        ),
        making.proof,
        test,
    )
    of_each("sensitivity", recipes, _parameters_of, making.sensitivity, calibration, "torch")
    of_each(
        "layers",
        calibrated,
        lambda row: (
            *_parameters_of(row),
            f"model/{row.name}",
            f"sensitivity/{row.quantized_by.key}",
        ),
        making.layers,
        {},
    )
    of_each(
        "compare", rows, lambda row: (baseline, f"scores/{row.name}"), making.compare, test, spare
    )
    for before, after in configurations.tunings():
        make = functools.partial(making.tuning, stock=before.name, tuned=after.name)
        scored = (f"scores/{before.name}", f"scores/{after.name}")
        stages.append(Stage(f"tuning/{after.name}", spare, scored, make, test))
    every = tuple(f"scores/{row.name}" for row in rows)
    stages.append(Stage("agreement", spare, every, making.agreement, {"rows": list(every)}))
    onnx_scores, torch_scores = (float_scores[name] for name in ("onnxruntime", "torch"))
    stages += [
        Stage("structure/onnx", "onnxruntime", ("onnx",), making.structure_onnx, {}),
        Stage("structure/torch", "torch", ("folded", "torch"), making.structure_torch, {}),
        _parity("onnx", "ONNX Runtime against Keras", baseline, onnx_scores),
        _parity("torch", "PyTorch against ONNX Runtime", onnx_scores, torch_scores),
    ]
    latency_needs = (stage for row in rows for stage in (*_source(row), f"scores/{row.name}"))
    stages.append(
        Stage(
            "latency",
            "onnxruntime",  # whose process is small; each framework is measured in one of its own
            tuple(dict.fromkeys(latency_needs)),
            making.latency,
            {**test, **model, "rows": [asdict(row) for row in rows]},
            alone=True,
        )
    )
    named = {**train, **test, **model, "name": how.name}
    stages.append(Stage("preprocessings", "keras", (), making.preprocessings, named))
    of_each("feed", recipes, lambda r: ("calibration", *_parameters_of(r)), making.feed, {})
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
    """What leads to quantized rows' comparison, proof and feed and depends on the seed, anew."""
    depend = {"calibration"}
    wanted = {
        f"{kind}/{row.name}" for row in configurations.quantized() for kind in ("compare", "proof")
    }
    wanted |= {f"feed/{recipe.key}" for recipe in configurations.recipes()}
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


def _with_seed(inputs: Inputs, *, make: Callable[[Inputs], Record], seed: int) -> Record:
    artifacts = {name.partition("@")[0]: found for name, found in inputs.artifacts.items()}
    settings = replace(inputs.settings, calibration_seed=seed)
    return make(replace(inputs, settings=settings, artifacts=artifacts))


def _parity(name: str, title: str, expected: str, observed: str) -> Stage:
    make = functools.partial(making.same_scores, title=title, expected=expected, observed=observed)
    return Stage(f"parity/{name}", "torch", (expected, observed), make, {"title": title})


def _parameters_of(one: Configuration | Recipe) -> tuple[str, ...]:
    recipe = one.quantized_by if isinstance(one, Configuration) else one
    return (f"parameters/{recipe.key}",)


def _source(row: Configuration) -> tuple[str, ...]:
    """The stage that a row is scored after: its model's."""
    # The baseline's model is an asset. It waits until the network is parsed: what is refused is not
    # scored, and the other lanes start first.
    found = backends.model_file(row)
    return ("folded",) if found is None else (found[0],)
