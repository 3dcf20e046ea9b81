"""The flow: which stage is made from which, and what decides each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from resnet8_eval import environment, lanes
from resnet8_eval.assets import Assets, unchanged
from resnet8_eval.errors import StageError, SuiteError
from resnet8_eval.quantize.parameters import exact_weight_limit
from resnet8_eval.quantize.recipes import RECIPES, Method
from resnet8_eval.requirements import MIN_CALIBRATION_IMAGES
from resnet8_eval.store import SCHEDULING, Artifact, Record, Store, digest

if TYPE_CHECKING:
    from resnet8_eval.cifar10 import Split


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Attributes
    ----------
    assets
        Model and images.
    cache_dir
        Where artefacts are kept.
    calibration_count, calibration_seed
        Size and seed of the calibration set.
    """

    assets: Assets
    cache_dir: Path
    calibration_count: int = MIN_CALIBRATION_IMAGES
    calibration_seed: int = 0


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
    """

    name: str
    lane: str
    needs: tuple[str, ...]
    make: Callable[[Inputs, Path], Record]
    decided_by: dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a stage may read: the assets and the artefacts that it needs.

    The stage's key names the assets by checksum, so each is held against it when it is read: what
    was verified before the run may have changed since.
    """

    settings: Settings
    artifacts: dict[str, Artifact]

    def model(self) -> AbstractContextManager[Path]:
        """The Keras model, for as long as it is being read."""
        return unchanged(self.settings.assets.model, self.settings.assets.model_sha256)

    def split(self, name: Literal["train", "test"]) -> Split:
        """Images and labels of a split."""
        from resnet8_eval.cifar10 import read_split

        assets = self.settings.assets
        return read_split(assets.dataset, name, assets.dataset_sha256)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the index is the label."""
        from resnet8_eval.cifar10 import read_class_names

        assets = self.settings.assets
        return read_class_names(assets.dataset, assets.dataset_sha256)

    def path(self, stage: str, name: str) -> Path:
        """A file of a needed artefact."""
        return self.artifacts[stage].path(name)

    def record(self, stage: str) -> Record:
        """The record of a needed artefact."""
        return self.artifacts[stage].record


BASELINE: Final = "keras-float32"
FLOAT_CONFIGURATIONS: Final = {
    BASELINE: "keras",
    "onnxruntime-float32": "onnxruntime",
    "torch-float32": "torch",
}
CONFIGURATIONS: Final = (*FLOAT_CONFIGURATIONS, *RECIPES)
"""Names of all configurations, in the order of the comparison table."""

_REFERENCE_MODEL: Final = "onnxruntime-int8"
REFERENCE: Final = {"onnxruntime": "reference/onnxruntime", "torch": "scores/torch-uint8"}
"""Where the scores in reference arithmetic of a framework's models come from. Both of its models
stand for the same numbers, so there is one for each framework; PyTorch's is a configuration."""


class Pipeline:
    """The stages of one run, and the store that they are kept in.

    Parameters
    ----------
    settings
        What the run is asked for.
    announce
        Told one line about each stage that had to be made.
    """

    def __init__(self, settings: Settings, announce: lanes.Announce = lambda _: None) -> None:
        self.settings = settings
        self.store = Store(settings.cache_dir)
        self.stages = {stage.name: stage for stage in _stages(settings)}
        self._announce = announce
        self._failures: dict[str, SuiteError] = {}
        self._made: dict[str, Artifact] = {}

    def prepare(self, names: Iterable[str]) -> None:
        """Make whatever of these stages, and of those they need, is missing.

        Parameters
        ----------
        names
            Stage names. A stage that fails is not reported here; :meth:`artifact` raises its
            error.
        """
        wanted = self._closure(names)
        if all(self.peek(name) for name in wanted):
            return
        # One process schedules at a time; another that wants the same finds it made.
        with self.store.lock(SCHEDULING):
            missing = [name for name in wanted if not self.peek(name)]
            self._failures.update(
                lanes.run(
                    {self.stages[name]: self.key(name) for name in missing},
                    self.settings,
                    set(wanted).difference(missing),
                    self._announce,
                )
            )

    def forget(self, names: Iterable[str], made_before: float) -> None:
        """Remove these stages and those that they need from the cache, to have them made anew.

        Parameters
        ----------
        names
            Stage names.
        made_before
            Seconds since the epoch; what was made later stays, for another process of the same
            run may have made it.
        """
        for name in self._closure(names):
            self._made.pop(name, None)
            self.store.discard(name, self.key(name), made_before)

    def artifact(self, name: str) -> Artifact:
        """The artefact of a stage, made now if it is missing.

        Parameters
        ----------
        name
            A stage name.

        Raises
        ------
        SuiteError
            Why it could not be made.
        """
        if not self.peek(name) and name not in self._failures:
            self.prepare([name])
        found = self.peek(name)
        if found is None:
            raise self._failures.get(name) or _vanished(name)
        return found

    def peek(self, name: str) -> Artifact | None:
        """The artefact of a stage if it exists; nothing is made."""
        if name not in self._made:
            found = self.store.get(name, self.key(name))
            if found is None:
                return None
            self._made[name] = found
        return self._made[name]

    def make(self, name: str) -> Artifact:
        """Make one stage in this process.

        Raises
        ------
        StageError
            If something that it needs does not exist; nothing else is made here.
        """
        stage = self.stages[name]
        needed = {need: self.peek(need) for need in stage.needs}
        missing = next((need for need, found in needed.items() if found is None), None)
        if missing:
            raise _vanished(missing)
        inputs = Inputs(self.settings, {need: found for need, found in needed.items() if found})
        return self.store.produce(name, self.key(name), lambda out: stage.make(inputs, out))

    @functools.cache  # noqa: B019 (a pipeline lives as long as its process)
    def key(self, name: str) -> str:
        """Hash of everything that decides a stage's content."""
        stage = self.stages[name]
        return digest(
            {
                "stage": name,
                "decided_by": stage.decided_by,
                "needs": {need: self.key(need) for need in stage.needs},
                "environment": environment.fingerprint(),
            }
        )

    def _closure(self, names: Iterable[str]) -> list[str]:
        """These stages and all that they need, in table order."""
        wanted: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending += self.stages[name].needs
        return [name for name in self.stages if name in wanted]


def _stages(settings: Settings) -> list[Stage]:
    """The table of stages, those on the longest path first."""
    assets = settings.assets
    test = {name: assets.dataset_sha256[name] for name in ("test_batch", "batches.meta")}
    train = {n: s for n, s in assets.dataset_sha256.items() if n.startswith("data_batch")}
    model = {"model": assets.model_sha256}
    calibration = {
        **train,
        **test,
        "count": settings.calibration_count,
        "seed": settings.calibration_seed,
    }
    stages = [
        Stage("onnx", "keras", (), _onnx, model),
        Stage("calibration", "onnxruntime", (), _calibration, calibration),
        Stage("folded", "onnxruntime", ("onnx",), _folded, {}),
        Stage("torch", "torch", ("folded",), _torch, {}),
        Stage(
            "parameters",
            "onnxruntime",
            ("folded", "calibration"),
            _parameters,
            {"weight_limit": exact_weight_limit(), **asdict(Method())},
        ),
    ]
    stages += [
        Stage(
            f"model/{name}",
            recipe.framework,
            ("parameters",),
            functools.partial(_quantized, recipe=name),
            asdict(recipe),
        )
        for name, recipe in RECIPES.items()
    ]
    sources = {
        BASELINE: (),
        "onnxruntime-float32": ("onnx",),
        "torch-float32": ("torch",),
        **{name: (f"model/{name}",) for name in RECIPES},
    }
    for name, source in sources.items():
        framework = FLOAT_CONFIGURATIONS.get(name) or RECIPES[name].framework
        decided_by = {**test, **(model if name == BASELINE else {})}
        stages.append(
            Stage(
                f"scores/{name}",
                framework,
                source,
                functools.partial(_scores, configuration=name),
                decided_by,
            )
        )
    stages.append(
        Stage(
            REFERENCE["onnxruntime"],
            "onnxruntime",
            (f"model/{_REFERENCE_MODEL}",),
            _reference,
            test,
        )
    )
    stages += [
        Stage(
            f"proof/{name}",
            recipe.framework,
            ("parameters", f"model/{name}", f"scores/{name}", REFERENCE[recipe.framework]),
            functools.partial(_proof, recipe=name),
            test,
        )
        for name, recipe in RECIPES.items()
    ]
    stages.append(Stage("sensitivity", "torch", ("parameters",), _sensitivity, calibration))
    stages += [
        Stage(
            f"layers/{name}",
            recipe.framework,
            ("parameters", f"model/{name}", "sensitivity"),
            functools.partial(_layers, recipe=name),
            {},
        )
        for name, recipe in RECIPES.items()
    ]
    stages += [
        Stage(
            f"compare/{name}",
            "torch",  # needs no framework; this lane is the first to have nothing else to do
            tuple({f"scores/{BASELINE}": None, f"scores/{name}": None}),
            functools.partial(_compare, configuration=name),
            test,
        )
        for name in CONFIGURATIONS
    ]
    stages += [
        Stage(
            "verify/onnx",
            "onnxruntime",
            ("onnx", f"scores/{BASELINE}", "scores/onnxruntime-float32"),
            _verify_onnx,
            {},
        ),
        Stage(
            "verify/torch",
            "torch",
            ("folded", "torch", "scores/onnxruntime-float32", "scores/torch-float32"),
            _verify_torch,
            {},
        ),
        Stage(
            "verify/preprocessing", "onnxruntime", ("calibration", "parameters"), _verify_feed, {}
        ),
    ]
    return stages


def model_path(pipeline: Pipeline, configuration: str) -> Path:
    """The stored model that a configuration's numbers come from."""
    if configuration == BASELINE:
        return pipeline.settings.assets.model
    stage, name = _model_file(configuration)
    return pipeline.artifact(stage).path(name)


def _model_file(configuration: str) -> tuple[str, str]:
    """Stage and file name of a configuration's model."""
    if configuration in RECIPES:
        return f"model/{configuration}", RECIPES[configuration].file_name
    return {"onnxruntime-float32": ("onnx", "model.onnx"), "torch-float32": ("torch", "model.pt2")}[
        configuration
    ]


def _onnx(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval.convert import keras_to_onnx

    with inputs.model() as model:
        return keras_to_onnx.convert(model, out)


def _folded(inputs: Inputs, out: Path) -> Record:
    from resnet8_eval.convert.fold import fold

    return fold(inputs.path("onnx", "model.onnx"), out / "folded.onnx")


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
    images, labels = train.images[chosen.indices], train.labels[chosen.indices]
    np.save(out / "indices.npy", chosen.indices)
    np.save(out / "images.npy", images)
    checks = calibration.verify(images, labels, settings.calibration_count, test.images)
    return {
        "source": "train",
        "count": len(images),
        "per_class": np.bincount(labels, minlength=10).tolist(),
        "indices_sha256": chosen.indices_sha256,
        "seed": chosen.seed,
        "checks": [check.as_dict() for check in checks],
    }


def _parameters(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval.quantize.calibrate import calibrate

    images = np.load(inputs.path("calibration", "images.npy"))
    return calibrate(inputs.path("folded", "folded.onnx"), images, out, lanes.THREADS)


def _quantized(inputs: Inputs, out: Path, *, recipe: str) -> Record:
    from resnet8_eval import quantize

    return quantize.quantize(inputs.artifacts["parameters"].folder, RECIPES[recipe], out)


def _scores(inputs: Inputs, out: Path, *, configuration: str) -> Record:
    import numpy as np

    from resnet8_eval import runtimes
    from resnet8_eval.convert import keras_file
    from resnet8_eval.evaluate import evaluate
    from resnet8_eval.store import file_sha256

    recipe = RECIPES.get(configuration)
    test = inputs.split("test")
    lent: AbstractContextManager[Path] = (
        inputs.model()
        if configuration == BASELINE
        else nullcontext(inputs.path(*_model_file(configuration)))
    )
    with lent as path:
        scores = runtimes.scores(
            path,
            test.images,
            threads=lanes.THREADS,
            execution=recipe.execution if recipe else "kernel",
        )
        model = {
            **(keras_file.array_bytes(path) if configuration == BASELINE else {}),
            "size_bytes": path.stat().st_size,
            "model_sha256": file_sha256(path),
        }
    np.save(out / "scores.npy", scores)
    return {**evaluate(scores, test.labels, inputs.class_names), **model}


def _reference(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval import runtimes

    model = inputs.path(*_model_file(_REFERENCE_MODEL))
    images = inputs.split("test").images
    np.save(
        out / "scores.npy",
        runtimes.scores(model, images, threads=lanes.THREADS, execution="reference"),
    )
    return {"model": _REFERENCE_MODEL, "images": len(images)}


def _proof(inputs: Inputs, out: Path, *, recipe: str) -> Record:
    import numpy as np

    from resnet8_eval.quantize.proof import prove

    del out
    return prove(
        RECIPES[recipe],
        inputs.path(*_model_file(recipe)),
        inputs.artifacts["parameters"].folder,
        inputs.split("test"),
        np.load(inputs.path(f"scores/{recipe}", "scores.npy")),
        np.load(inputs.path(REFERENCE[RECIPES[recipe].framework], "scores.npy")),
    )


def _sensitivity(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval.calibration import split
    from resnet8_eval.quantize.layers import NOISE_IMAGES, sensitivity

    train, settings = inputs.split("train"), inputs.settings
    count, seed = settings.calibration_count, settings.calibration_seed
    rest = len(train.labels) - count
    calibrating, validating = split(train.labels, count, seed, min(5000, rest // 10))
    images = train.images[validating]
    few = images[:: max(1, len(images) // NOISE_IMAGES)]
    np.save(out / "images.npy", few)
    folder = inputs.artifacts["parameters"].folder
    return {
        "source": "train",
        "calibrated": len(np.intersect1d(calibrating.indices, validating)),
        "noise_images": len(few),
        **sensitivity(folder, images, train.labels[validating], lanes.THREADS),
    }


def _layers(inputs: Inputs, out: Path, *, recipe: str) -> Record:
    import numpy as np

    from resnet8_eval.quantize.layers import noise

    del out
    measured = noise(
        RECIPES[recipe],
        inputs.path(*_model_file(recipe)),
        inputs.artifacts["parameters"].folder,
        np.load(inputs.path("sensitivity", "images.npy")),
        lanes.THREADS,
    )
    costs = {entry["name"]: entry for entry in inputs.record("sensitivity")["layers"]}
    return {"layers": [{**costs[entry["name"]], **entry} for entry in measured]}


def _compare(inputs: Inputs, out: Path, *, configuration: str) -> Record:
    import numpy as np

    from resnet8_eval import gallery
    from resnet8_eval.analysis import compare

    del out  # the record says it all
    test = inputs.split("test")
    scores, baseline = (
        np.load(inputs.path(f"scores/{name}", "scores.npy")) for name in (configuration, BASELINE)
    )
    return {
        **compare(scores, baseline, test.labels, inputs.class_names),
        "right_base64": gallery.right_base64(test.labels, scores),
        "changed": gallery.newly_wrong(test.images, test.labels, baseline, scores),
    }


def _verify_onnx(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval.convert import structure
    from resnet8_eval.requirements import PARITY_ATOL

    del out
    with np.load(inputs.path("onnx", "keras_weights.npz")) as weights:
        checks, accounts = structure.verify_onnx(
            inputs.path("onnx", "model.onnx"), inputs.record("onnx")["layers"], dict(weights)
        )
    checks += structure.parity(
        "ONNX Runtime against Keras",
        np.load(inputs.path(f"scores/{BASELINE}", "scores.npy")),
        np.load(inputs.path("scores/onnxruntime-float32", "scores.npy")),
        PARITY_ATOL,
    )
    return {"checks": [check.as_dict() for check in checks], "accounts": accounts}


def _verify_torch(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval.convert import onnx_to_torch, structure
    from resnet8_eval.requirements import PARITY_ATOL

    del out
    folded = inputs.path("folded", "folded.onnx")
    checks, record = onnx_to_torch.verify(folded, onnx_to_torch.convert(folded))
    exported = onnx_to_torch.verify_export(folded, inputs.path("torch", "model.pt2"))
    checks += structure.parity(
        "PyTorch against ONNX Runtime",
        np.load(inputs.path("scores/onnxruntime-float32", "scores.npy")),
        np.load(inputs.path("scores/torch-float32", "scores.npy")),
        PARITY_ATOL,
    )
    return {
        "checks": [check.as_dict() for check in checks],
        "export_checks": [check.as_dict() for check in exported],
        **record,
    }


def _verify_feed(inputs: Inputs, out: Path) -> Record:
    import numpy as np

    from resnet8_eval.quantize.calibrate import compare_feeds

    del out
    images = np.load(inputs.path("calibration", "images.npy"))
    return compare_feeds(images, inputs.record("parameters")["fed_sha256"])


def _vanished(name: str) -> SuiteError:
    return StageError(
        f"The artefact of stage {name} was there and is gone.",
        expected="artefacts that stay while a run reads them",
        given="a folder removed or damaged in the meantime",
        next_step="run again, and leave the cache alone meanwhile",
    )
