"""What each stage does: a function from files to a folder of files and a record.

Which of them make a run, and in which order, is in `stages`.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from resnet8_eval import backends, configurations, lanes
from resnet8_eval.configurations import Configuration, Recipe
from resnet8_eval.inputs import Inputs
from resnet8_eval.store import Record


def onnx(inputs: Inputs) -> Record:
    """Convert the Keras model; an ONNX one is taken as it is."""
    from resnet8_eval.convert import keras_to_onnx, onnx_file

    with inputs.model() as model:
        if model.suffix == ".onnx":
            onnx_file.demand_readable(model)
            shutil.copyfile(model, inputs.out / "model.onnx")
            return {}
        return keras_to_onnx.convert(model, inputs.out)


def preprocessings(inputs: Inputs) -> Record:
    """Try the usual preprocessings on a few training images."""
    from resnet8_eval import calibration, hints

    train = inputs.split("train")
    some = calibration.choose(train.labels, hints.IMAGES, 0).indices
    with inputs.model() as model:
        runtime = backends.open_runtime(model, inputs.threads)
        return hints.tried(runtime, train.images[some], train.labels[some], inputs.class_names)


def folded(inputs: Inputs) -> Record:
    """Fold batch normalisation, and parse what comes out or refuse it."""
    from resnet8_eval import network
    from resnet8_eval.convert.fold import fold

    record = fold(inputs.path("onnx", "model.onnx"), inputs.out / "folded.onnx")
    network.read(inputs.out / "folded.onnx", inputs.settings.assets.model.name)  # or refuse it
    return record


def torch(inputs: Inputs) -> Record:
    """Convert the folded network to PyTorch and export it."""
    from resnet8_eval.convert import onnx_to_torch

    module = onnx_to_torch.convert(inputs.path("folded", "folded.onnx"))
    onnx_to_torch.export(module, inputs.out / "model.pt2")
    return {"parameters": sum(parameter.numel() for parameter in module.parameters())}


def calibration(inputs: Inputs) -> Record:
    """Draw the calibration set from the training images."""
    import numpy as np

    from resnet8_eval import calibration

    train, test = inputs.split("train"), inputs.split("test")
    settings = inputs.settings
    chosen = calibration.choose(train.labels, settings.calibration_count, settings.calibration_seed)
    images, labels = train.images.pixels[chosen.indices], train.labels[chosen.indices]
    np.save(inputs.out / "indices.npy", chosen.indices)
    np.save(inputs.out / "images.npy", images)
    checks = calibration.verify(images, labels, settings.calibration_count, test.images.pixels)
    return {
        "source": "train",
        "count": len(images),
        "per_class": np.bincount(labels, minlength=10).tolist(),
        "indices_sha256": chosen.indices_sha256,
        "seed": chosen.seed,
        "checks": checks,
    }


def statistics(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Collect what a recipe needs to know of the calibration images."""
    from resnet8_eval import network
    from resnet8_eval.calibrate.tuned import collect, same_function

    images = inputs.images("calibration")
    folded = network.read(inputs.path("folded", "folded.onnx"))
    found = collect(folded, images, recipe)
    found.save(inputs.out)
    checks = same_function(inputs.path("onnx", "model.onnx"), inputs.out, images, inputs.threads)
    return {
        "fed_sha256": found.observed.fed_sha256,
        "checks": checks,
    }


def parameters(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Decide a recipe's scales, zero points and integers."""
    from resnet8_eval.calibrate import histograms
    from resnet8_eval.calibrate.parameters import Parameters
    from resnet8_eval.calibrate.tuned import Statistics, decide

    made = inputs.artifacts[f"statistics/{recipe.statistics}"]
    statistics = Statistics.load(made.folder, made.record["fed_sha256"])
    decided = decide(statistics, inputs.out, recipe, recipe.weight_limit)
    drawn = histograms.layers(Parameters.load(inputs.out), statistics.observed, recipe.weight_limit)
    return {**decided, "checks": made.record["checks"], "drawn": drawn}


def model(inputs: Inputs, *, row: Configuration) -> Record:
    """Write a row's model from its recipe's parameters."""
    backend = backends.backend(row.framework)
    return backend.write(inputs.parameters(row.quantized_by), row, inputs.out / backend.MODEL_FILE)


def stock_model(inputs: Inputs, *, row: Configuration) -> Record:
    """Quantize with the framework's own quantizer."""
    backend = backends.backend(row.framework)
    return backend.quantize(
        inputs.path("folded", "folded.onnx"),
        inputs.images("calibration"),
        row,
        inputs.out / backend.STOCK_FILE,
        inputs.threads,
    )


def scores(inputs: Inputs, *, row: Configuration) -> Record:
    """Run a row's stored model over the test images."""
    import numpy as np

    from resnet8_eval.convert import keras_file
    from resnet8_eval.evaluate import evaluate
    from resnet8_eval.store import file_sha256

    test, made = inputs.split("test"), backends.model_file(row)
    lent: AbstractContextManager[Path] = nullcontext(inputs.path(*made)) if made else inputs.model()
    with lent as path:
        scores = backends.scores(path, test.images, threads=inputs.threads, execution=row.session)
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
    import numpy as np

    from resnet8_eval.integers import ExactNetwork, rounding

    backend = backends.backend(row.framework)
    network = inputs.parameters(row.quantized_by).rounded
    stored = backend.read_back(inputs.path(f"model/{row.name}", backend.MODEL_FILE), network)
    images = inputs.split("test").images
    scores = ExactNetwork(network, stored, rounding(row.framework)).scores(images)
    np.save(inputs.out / "scores.npy", scores)
    return {"model": row.name, "images": len(images)}


def proof(inputs: Inputs, *, row: Configuration) -> Record:
    """Hold a tuned model against its parameters, its scores against exact integers."""
    import numpy as np

    from resnet8_eval.proof import prove

    exact = configurations.integers(row)
    return prove(
        row,
        inputs.path(f"model/{row.name}", backends.backend(row.framework).MODEL_FILE),
        inputs.parameters(row.quantized_by),
        inputs.split("test"),
        np.load(inputs.path(f"scores/{row.name}", "scores.npy")),
        None if exact is None else np.load(inputs.path(exact, "scores.npy")),
    )


def stock_proof(inputs: Inputs, *, row: Configuration) -> Record:
    """Hold a stock model against what the framework's quantizer is said to make."""
    from resnet8_eval import network
    from resnet8_eval.stock import prove

    stage = f"model/{row.name}"
    return prove(
        row,
        inputs.path(stage, backends.backend(row.framework).STOCK_FILE),
        network.read(inputs.path("folded", "folded.onnx")),
        inputs.images("calibration"),
        inputs.record(stage),
    )


def sensitivity(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Measure what 8 bits cost each layer, on training images."""
    import numpy as np

    from resnet8_eval.calibration import split
    from resnet8_eval.layers import COST_IMAGES, NOISE_IMAGES, sensitivity

    train, settings = inputs.split("train"), inputs.settings
    count, seed = settings.calibration_count, settings.calibration_seed
    rest = len(train.labels) - count
    calibrating, validating = split(train.labels, count, seed, min(COST_IMAGES, rest // 10))
    images = train.images[validating]
    few = images[:: max(1, len(images) // NOISE_IMAGES)]
    np.save(inputs.out / "images.npy", few.pixels)
    parameters = inputs.parameters(recipe)
    return {
        "source": "train",
        "calibrated": len(np.intersect1d(calibrating.indices, validating)),
        "noise_images": len(few),
        **sensitivity(parameters, images, train.labels[validating], inputs.threads),
    }


def layers(inputs: Inputs, *, row: Configuration) -> Record:
    """Measure the noise of each layer of a row's stored model."""
    from resnet8_eval.layers import noise

    recipe = row.quantized_by
    measured = noise(
        row,
        inputs.path(f"model/{row.name}", backends.backend(row.framework).MODEL_FILE),
        inputs.parameters(recipe),
        inputs.images(f"sensitivity/{recipe.key}"),
        inputs.threads,
    )
    return {"layers": measured}


def compare(inputs: Inputs, *, row: Configuration) -> Record:
    """Hold a row's scores against the baseline's."""
    import numpy as np

    from resnet8_eval import gallery
    from resnet8_eval.analysis import BASELINE, compare

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


def tuning(inputs: Inputs, *, stock: str, tuned: str) -> Record:
    """Hold a tuned row's scores against the stock row's."""
    import numpy as np

    from resnet8_eval.analysis import compare

    before, after = (
        np.load(inputs.path(f"scores/{name}", "scores.npy")) for name in (stock, tuned)
    )
    found = compare(after, before, inputs.split("test").labels, inputs.class_names)
    keys = ("delta_pp", "delta_ci95_pp", "lost", "gained", "mcnemar_p", "agreement_percent")
    return {"stock": stock, "tuned": tuned, **{key: found[key] for key in keys}}


def agreement(inputs: Inputs) -> Record:
    """Count on how many images each two rows agree."""
    import numpy as np

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


def latency(inputs: Inputs) -> Record:
    """Measure latency and throughput of every row."""
    from resnet8_eval import latency

    rows = configurations.CONFIGURATIONS
    float32 = {row.framework: row.name for row in rows if row.recipe is None}
    with inputs.model() as model:
        targets = [
            latency.Target(
                row.name,
                row.framework,
                inputs.path(*made) if (made := backends.model_file(row)) else model,
                row.session,
                scores=inputs.path(f"scores/{row.name}", "scores.npy"),
                float32=float32[row.framework],
            )
            for row in rows
        ]
        return latency.measure(
            targets,
            inputs.split("test").images,
            inputs.out,
            threads=(1, inputs.threads),
            logs=inputs.settings.cache_dir / "logs",
            announce=lanes.say,
        )


def structure_onnx(inputs: Inputs) -> Record:
    """Hold the ONNX model's layers and weights against the Keras model's."""
    import numpy as np

    from resnet8_eval.convert import structure

    with np.load(inputs.path("onnx", "keras_weights.npz")) as weights:
        checks, accounts = structure.verify_onnx(
            inputs.path("onnx", "model.onnx"), inputs.record("onnx")["layers"], dict(weights)
        )
    return {"checks": checks, "accounts": accounts}


def structure_torch(inputs: Inputs) -> Record:
    """Hold the PyTorch module and its export against the ONNX model."""
    from resnet8_eval.convert import onnx_to_torch

    folded = inputs.path("folded", "folded.onnx")
    checks, record = onnx_to_torch.verify(folded, onnx_to_torch.convert(folded))
    exported = onnx_to_torch.verify_export(folded, inputs.path("torch", "model.pt2"))
    return {
        "checks": checks,
        "export_checks": exported,
        **record,
    }


def same_scores(inputs: Inputs, *, title: str, expected: str, observed: str) -> Record:
    """Hold one float32 row's scores against another's."""
    import numpy as np

    from resnet8_eval.evaluate import parity
    from resnet8_eval.requirements import PARITY_ATOL

    before, after = (np.load(inputs.path(stage, "scores.npy")) for stage in (expected, observed))
    checks = parity(title, before, after, PARITY_ATOL)
    return {"checks": checks}


def feed(inputs: Inputs, *, recipe: Recipe) -> Record:
    """Hold what calibration was fed against what evaluation is fed."""
    from resnet8_eval.calibrate.tuned import compare_feeds

    images = inputs.images("calibration")
    return compare_feeds(images, inputs.record(f"parameters/{recipe.key}")["fed_sha256"])
