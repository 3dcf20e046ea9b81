"""What each stage does: a function from files to a folder of files and a record.

Which of them make a run, and in which order, is in `stages`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

import numpy as np

from resnet8_eval import backends, configurations, gallery, hints, lanes, network
from resnet8_eval.analysis import BASELINE
from resnet8_eval.analysis import compare as beside
from resnet8_eval.calibrate import histograms
from resnet8_eval.calibrate.parameters import EXACT
from resnet8_eval.calibrate.tuned import collect, compare_feeds, decide, in_words
from resnet8_eval.calibration import choose, indices_sha256, split, verify
from resnet8_eval.configurations import Configuration, Recipe
from resnet8_eval.convert import keras_file, keras_to_onnx, onnx_file, onnx_to_torch
from resnet8_eval.evaluate import evaluate, parity, same_function
from resnet8_eval.inputs import Inputs
from resnet8_eval.integers import ExactNetwork, rounding
from resnet8_eval.layers import COST_IMAGES, NOISE_IMAGES, noise
from resnet8_eval.layers import sensitivity as costs
from resnet8_eval.preprocess import Feed
from resnet8_eval.proof import held
from resnet8_eval.proof import prove as prove_tuned
from resnet8_eval.requirements import PARITY_ATOL
from resnet8_eval.statistics import percent
from resnet8_eval.stock import prove as prove_stock
from resnet8_eval.stock import spans as stock_spans
from resnet8_eval.store import Record, file_sha256

_FOLDED_IMAGES: Final = 100
"""On which a folded network is held against what it was made of; a wrong constant shows on each."""


def onnx(inputs: Inputs) -> Record:
    """Convert the Keras model, or take an ONNX one."""
    with inputs.model() as model:
        if model.suffix == ".onnx":
            onnx_file.demand_readable(model)
            onnx_file.take(model, inputs.out / "model.onnx")
            return {}
        return keras_to_onnx.convert(model, inputs.out)


def preprocessings(inputs: Inputs) -> Record:
    """Try the usual preprocessings on a few training images."""
    train = inputs.split("train")
    some = choose(train.labels, hints.IMAGES, 0)
    with inputs.model() as model:
        score = backends.scorer(model, inputs.threads, lanes.share)
        return hints.tried(score, train.images[some], train.labels[some], inputs.class_names)


def folded(inputs: Inputs) -> Record:
    """Fold batch normalisation, and parse what comes out or refuse it."""
    from resnet8_eval.convert.fold import fold

    source, target = inputs.path("onnx", "model.onnx"), inputs.out / "folded.onnx"
    fold(source, target)
    network.read(target, inputs.settings.assets.model.name)  # or refuse it
    # Patches of noise: a model is folded where there is no data set, too.
    dice = np.random.default_rng(0)
    patches = dice.integers(0, 256, (_FOLDED_IMAGES, 8, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    images = Feed(patches, inputs.settings.preprocessing)
    is_given = inputs.settings.assets.model.suffix == ".onnx"  # and was taken in another form
    name = f"folded network against the {'one that was given' if is_given else 'converted one'}"
    lent: AbstractContextManager[Path] = inputs.model() if is_given else nullcontext(source)
    with lent as first:
        return {"checks": same_function(name, first, target, images, inputs.threads)}


def torch(inputs: Inputs) -> Record:
    """Convert the folded network to PyTorch and export it."""
    module = onnx_to_torch.convert(inputs.path("folded", "folded.onnx"))
    onnx_to_torch.export(module, inputs.out / "model.pt2")
    return {}


def calibration(inputs: Inputs) -> Record:
    """Draw the calibration set from the training images."""
    train, test = inputs.split("train"), inputs.split("test")
    count, seed = inputs.settings.calibration_count, inputs.settings.calibration_seed
    chosen = choose(train.labels, count, seed)
    images, labels = train.images.pixels[chosen], train.labels[chosen]
    np.save(inputs.out / "indices.npy", chosen)
    np.save(inputs.out / "images.npy", images)
    checks = verify(images, labels, count, test.images.pixels)
    return {
        "source": "train",
        "count": len(images),
        "per_class": np.bincount(labels, minlength=10).tolist(),
        "indices_sha256": indices_sha256(chosen),
        "seed": seed,
        "checks": checks,
    }


def statistics(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Collect what a recipe needs to know of the calibration images."""
    images = inputs.images("calibration")
    folded = network.read(inputs.path("folded", "folded.onnx"))
    found = collect(folded, images, recipe)
    found.save(inputs.out)
    name, source = "equalized network against the converted one", inputs.path("onnx", "model.onnx")
    checks = same_function(name, source, inputs.out / EXACT, images, inputs.threads)
    return {"fed_sha256": found.observed.fed_sha256, "checks": checks}


def parameters(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Decide a recipe's scales, zero points and integers."""
    stage = f"statistics/{recipe.statistics}"
    statistics = inputs.statistics(stage)
    decided = decide(statistics, recipe, recipe.weight_limit)
    decided.save(inputs.out)
    return {
        "method": in_words(recipe, decided),
        "fed_sha256": statistics.observed.fed_sha256,
        "checks": inputs.record(stage)["checks"],
        "drawn": histograms.layers(decided, statistics.observed, recipe.weight_limit),
    }


def model(inputs: Inputs, *, row: Configuration) -> Record:
    """Write a row's model, from its recipe's parameters or by the framework's own quantizer.

    What is written from parameters is read back and held against them at once: commands hand it
    out without its proof, which needs the test images.
    """
    backend, path = backends.backend(row.framework), inputs.out / backends.file_of(row)
    if not row.is_stock:
        parameters = inputs.parameters(row.quantized_by)
        written = backend.write(parameters, row, path)
        found = backend.read_back(path, parameters.rounded)
        return written | {"checks": held(found, parameters, row)}
    folded, images = inputs.path("folded", "folded.onnx"), inputs.images("calibration")
    made = backend.quantize(folded, images, row, path, inputs.threads)
    return made | {"lowering": backend.lower(path, row, images)}


def _stored(inputs: Inputs, row: Configuration) -> Path:
    return inputs.path(f"model/{row.name}", backends.file_of(row))


def scores(inputs: Inputs, *, row: Configuration) -> Record:
    """Run a row's stored model over the test images."""
    test, made = inputs.split("test"), backends.model_file(row)
    lent: AbstractContextManager[Path] = nullcontext(inputs.path(*made)) if made else inputs.model()
    with lent as path:
        scores = backends.scores(
            path,
            test.images,
            threads=inputs.threads,
            share=lanes.share,
            execution=row.session,
        )
        model = {
            "weights_bytes": backends.backend(row.framework).weights_bytes(path),
            **({} if made else keras_file.array_bytes(path)),
            "size_bytes": path.stat().st_size,
            "model_sha256": file_sha256(path),
        }
    np.save(inputs.out / "scores.npy", scores)
    return {**evaluate(scores, test.labels, inputs.class_names), **model}


def integers(inputs: Inputs, *, row: Configuration) -> Record:
    """Compute a row's stored model in exact integers over the test images."""
    network = inputs.parameters(row.quantized_by).rounded
    stored = backends.backend(row.framework).read_back(_stored(inputs, row), network)
    images = inputs.split("test").images
    exact = ExactNetwork(network, stored, rounding(row.framework))
    scores = exact.scores(images, lanes.share)
    np.save(inputs.out / "scores.npy", scores)
    return {"model": row.name, "images": len(images)}


def proof(inputs: Inputs, *, row: Configuration) -> Record:
    """Hold a tuned model against its parameters, its scores against exact integers."""
    exact = configurations.integers(row)
    return prove_tuned(
        row,
        _stored(inputs, row),
        inputs.parameters(row.quantized_by),
        inputs.split("test"),
        inputs.scores(f"scores/{row.name}"),
        None if exact is None else inputs.scores(exact),
    )


def spans(inputs: Inputs) -> Record:
    """See what every tensor of the float32 network spans on the calibration images."""
    parsed = network.read(inputs.path("folded", "folded.onnx"))
    return dict(stock_spans(parsed, inputs.images("calibration")))


def stock_proof(inputs: Inputs, *, row: Configuration) -> Record:
    """Hold a stock model against what the framework's quantizer is said to make."""
    found = prove_stock(
        row,
        _stored(inputs, row),
        network.read(inputs.path("folded", "folded.onnx")),
        inputs.images("calibration"),
        inputs.record(f"model/{row.name}"),
        inputs.record("spans"),
    )
    return {**found, "checks": [*inputs.record("folded")["checks"], *found["checks"]]}


def sensitivity(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Measure what 8 bits cost each layer, on training images."""
    train, settings = inputs.split("train"), inputs.settings
    count, seed = settings.calibration_count, settings.calibration_seed
    rest = len(train.labels) - count
    calibrating, validating = split(train.labels, count, seed, min(COST_IMAGES, rest // 10))
    few = validating[:: max(1, len(validating) // NOISE_IMAGES)]
    np.save(inputs.out / "images.npy", train.images[few].pixels)
    parameters = inputs.parameters(recipe)
    return {
        "source": "train",
        "calibrated": len(np.intersect1d(calibrating, [*validating, *few])),
        "noise_images": len(few),
        **costs(parameters, train.images[validating], train.labels[validating], inputs.threads),
    }


def layers(inputs: Inputs, *, row: Configuration) -> Record:
    """Measure the noise of each layer of a row's stored model."""
    recipe = row.quantized_by
    measured = noise(
        row,
        _stored(inputs, row),
        inputs.parameters(recipe),
        inputs.images(f"sensitivity/{recipe.key}"),
        inputs.threads,
    )
    return {"layers": measured}


def compare(inputs: Inputs, *, row: Configuration) -> Record:
    """Hold a row's scores against the baseline's."""
    test = inputs.split("test")
    scores = inputs.scores(f"scores/{row.name}")
    baseline = inputs.scores(f"scores/{configurations.baseline().name}")
    return {
        **beside(scores, baseline, test.labels, inputs.class_names),
        **(BASELINE if row == configurations.baseline() else {}),
        "right_base64": gallery.right_base64(test.labels, scores),
        "changed": gallery.newly_wrong(test.images.pixels, test.labels, baseline, scores),
    }


def tuning(inputs: Inputs, *, stock: str, tuned: str) -> Record:
    """Hold a tuned row's scores against the stock row's."""
    before, after = inputs.scores(f"scores/{stock}"), inputs.scores(f"scores/{tuned}")
    labels = inputs.split("test").labels
    return {"stock": stock, "tuned": tuned, **beside(after, before, labels, inputs.class_names)}


def agreement(inputs: Inputs) -> Record:
    """Count on how many images each two rows agree."""
    answers = {
        stage.partition("/")[2]: inputs.scores(stage).argmax(axis=1) for stage in inputs.artifacts
    }
    return {
        "rows": list(answers),
        "percent": [
            [percent(one == other) for other in answers.values()] for one in answers.values()
        ],
    }


def latency(inputs: Inputs) -> Record:
    """Measure latency and throughput of every row."""
    from resnet8_eval.latency import Plan, Target, measure

    rows = configurations.CONFIGURATIONS
    # Nobody asks for the speed of the stand-in; two rounds show that it can be measured.
    plan = Plan() if inputs.settings.assets.kind == "real" else Plan(rounds=2)
    float32 = {row.framework: row.name for row in rows if row.recipe is None}
    with inputs.model() as model:
        targets = [
            Target(
                row.name,
                row.framework,
                inputs.path(*made) if (made := backends.model_file(row)) else model,
                row.session,
                scores=inputs.path(f"scores/{row.name}", "scores.npy"),
                float32=float32[row.framework],
            )
            for row in rows
        ]
        return measure(
            targets,
            inputs.split("test").images,
            inputs.out,
            threads=(1, inputs.threads),
            logs=inputs.settings.cache_dir / "logs",
            plan=plan,
            announce=lanes.say,
        )


def structure_onnx(inputs: Inputs) -> Record:
    """Hold the ONNX model's layers and weights against the Keras model's."""
    from resnet8_eval.convert import structure

    with np.load(inputs.path("onnx", "keras_weights.npz")) as weights:
        checks, found = structure.verify_onnx(
            inputs.path("onnx", "model.onnx"), inputs.record("onnx")["layers"], dict(weights)
        )
    return {"checks": checks, "found": found}


def structure_torch(inputs: Inputs) -> Record:
    """Hold the PyTorch module and its export against the ONNX model."""
    folded = inputs.path("folded", "folded.onnx")
    checks = onnx_to_torch.verify(folded, onnx_to_torch.convert(folded))
    exported = onnx_to_torch.verify_export(folded, inputs.path("torch", "model.pt2"))
    return {"checks": checks, "export_checks": exported}


def same_scores(inputs: Inputs, *, title: str, expected: str, observed: str) -> Record:
    """Hold one float32 row's scores against another's."""
    before, after = inputs.scores(expected), inputs.scores(observed)
    return {"checks": parity(title, before, after, PARITY_ATOL)}


def feed(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Hold what calibration was fed against what evaluation is fed."""
    images = inputs.images("calibration")
    return compare_feeds(images, inputs.record(f"parameters/{recipe.key}")["fed_sha256"])
