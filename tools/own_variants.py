"""Train four networks of other widths and depths, and hold what the tuned recipe makes of them.

    python -m tools.own_variants --assets stand-in

Each is trained for a few epochs on the training split, saved as a user would, and taken through the
pipeline. The table says of each tuned row on how many test images it agrees with its float32, and
on how many its kernels give another class than exact integers. Agreement below 98 %, or one image
of another class, ends with status 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from resnet8_eval import assets, configurations
from resnet8_eval.cifar10 import Split, read_split
from resnet8_eval.inputs import Settings
from resnet8_eval.pipeline import Pipeline

AGREEMENT_PERCENT: Final = 98.0
BATCH: Final = 64
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "8, 16, 32; global average, no biases": {"widths": (8, 16, 32), "bias": False},
    "12, 28, 60; pixels / 255": {"widths": (12, 28, 60), "scale": 1 / 255},
    "16, 32, 64; two blocks each (ResNet-14), logits": {"blocks": 2, "activation": None},
    "32, 64, 96; normalised shortcuts": {"widths": (32, 64, 96), "normalised": True},
}


def network(
    widths: tuple[int, ...] = (16, 32, 64),
    blocks: int = 1,
    bias: bool = True,
    scale: float = 0.0,
    normalised: bool = False,
    activation: str | None = "softmax",
) -> Any:
    """Build a residual network of Keras's own layers."""
    from keras import Input, Model, layers

    def convolution(x: Any, filters: int, size: int, stride: int = 1) -> Any:
        return layers.Conv2D(filters, size, stride, padding="same", use_bias=bias)(x)

    def normal(x: Any) -> Any:
        return layers.BatchNormalization(momentum=0.9)(x)  # a few hundred steps are all there are

    taken = x = Input((32, 32, 3))
    if scale:
        x = layers.Rescaling(scale)(x)
    x = layers.ReLU()(normal(convolution(x, widths[0], 3)))
    for stage, filters in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = normal(convolution(x, filters, 3, stride))
            y = normal(convolution(layers.ReLU()(y), filters, 3))
            if stride == 2:
                x = convolution(x, filters, 1, 2)
                x = normal(x) if normalised else x
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return Model(taken, layers.Dense(10, activation=activation)(x))


def train(model: Any, split: Split, epochs: int) -> None:
    """Train in place on raw pixels."""
    import keras

    steps = len(split.labels) // BATCH

    def batches() -> Iterator[tuple[Any, Any]]:
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(len(split.labels))
            for chosen in order[: steps * BATCH].reshape(-1, BATCH):
                yield split.images[chosen].astype(np.float32), split.labels[chosen]

    logits = model.layers[-1].activation is keras.activations.linear
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
    )
    model.fit(batches(), epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)


def main() -> None:
    """Train, quantize, and print a table in Markdown."""
    import keras

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", choices=("real", "auto", "stand-in"), default="auto")
    parser.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--cache-dir", type=Path, default=assets.default_cache_dir())
    arguments = parser.parse_args()

    def located(model: Path | None = None) -> assets.Assets:
        return assets.locate(
            arguments.assets,
            assets_dir=None,
            cache_dir=arguments.cache_dir,
            keras_model=model,
            announce=lambda line: print(line, file=sys.stderr),
        )

    found = located()
    split = read_split(found.dataset, "train", found.dataset_sha256)
    rows = configurations.calibrated()
    names = [f"{row.framework} {row.dtype}" for row in rows]
    print("| Network | Parameters | float32, % |", " | ".join(names), "|")
    print("| --- | ---: | ---: |", " | ".join("---:" for _ in names), "|")
    least, differing = 100.0, 0
    for title, settings in VARIANTS.items():
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        model = network(**settings)
        train(model, split, arguments.epochs)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "own.keras"
            model.save(path)
            pipeline = Pipeline(
                Settings(located(path), arguments.cache_dir),
                lambda line: print(" ", line, file=sys.stderr),
            )
            stages = [f"{kind}/{row.name}" for row in rows for kind in ("compare", "proof")]
            baseline = f"scores/{configurations.baseline().name}"
            pipeline.prepare([*stages, baseline])
            made = {name: pipeline.artifact(name).record for name in [*stages, baseline]}
        cells = []
        for row in rows:
            agreement = made[f"compare/{row.name}"]["agreement_percent"]
            exact = made[f"proof/{row.name}"]["exact_integers"]
            least = min(least, agreement)
            differing += exact["disagreements"] if exact else 0
            cells.append(f"{agreement:.2f} % ({exact['disagreements'] if exact else '–'})")
        accuracy = made[baseline]["accuracy_percent"]
        print(f"| {title} | {model.count_params()} | {accuracy:.2f} |", " | ".join(cells), "|")
    if least < AGREEMENT_PERCENT or differing:
        sys.exit(f"least agreement {least:.2f} %, {differing} images unlike exact integers")


if __name__ == "__main__":
    main()
