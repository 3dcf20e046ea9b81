"""Train ResNet8 on the stand-in and write `fixtures/standin/resnet8_standin.h5`.

The network sees the materialised training split and, in every epoch, fresh images drawn with seeds
of their own; it never sees the test split. The script is kept to show where the committed weights
come from: another machine or TensorFlow build may arrive at slightly different ones.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from resnet8_eval.standin import CLASSES, SIDE, TEST_COUNT, TEST_SEED, TRAIN_SEEDS, draw
from resnet8_eval.standin import TRAIN_PER_BATCH as PER_BATCH

DEFAULT_OUT = Path(__file__).parents[1] / "fixtures" / "standin" / "resnet8_standin.h5"
FIRST_FRESH_SEED = 1000
FRESH_PER_EPOCH = 15_000
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 2e-3


def resnet8() -> keras.Model:
    """Build the ResNet8 of MLPerf Tiny, layer for layer and name for name.

    Returns
    -------
    keras.Model
        Maps float32 images (N, 32, 32, 3), RGB, raw 0 to 255, to class probabilities (N, 10).
    """
    keras.utils.clear_session()  # restarts the automatic layer names
    inputs = keras.Input((SIDE, SIDE, 3), name="input_1")
    x = keras.layers.BatchNormalization()(_conv(inputs, 16))
    x = keras.layers.Activation("relu")(x)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = keras.layers.BatchNormalization()(_conv(x, filters, stride=stride))
        y = keras.layers.Activation("relu")(y)
        y = keras.layers.BatchNormalization()(_conv(y, filters))
        if stride > 1:
            x = _conv(x, filters, size=1, stride=stride)
        x = keras.layers.Activation("relu")(keras.layers.Add()([x, y]))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(x))
    outputs = keras.layers.Dense(
        len(CLASSES), activation="softmax", kernel_initializer="he_normal"
    )(x)
    return keras.Model(inputs, outputs, name="model")


def _conv(x: keras.KerasTensor, filters: int, size: int = 3, stride: int = 1) -> keras.KerasTensor:
    return keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(1e-4),
    )(x)


def batches(epochs: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the shuffled training batches of all epochs.

    Parameters
    ----------
    epochs : int
        Passes over the training split, each with `FRESH_PER_EPOCH` images of its own.

    Yields
    ------
    images : ndarray of float32, shape (BATCH_SIZE, 32, 32, 3)
        RGB, raw 0 to 255.
    labels : ndarray of uint8, shape (BATCH_SIZE,)
        Class indices.
    """
    split = [draw(PER_BATCH // len(CLASSES), seed) for seed in TRAIN_SEEDS]
    for epoch in range(epochs):
        fresh = draw(FRESH_PER_EPOCH // len(CLASSES), FIRST_FRESH_SEED + epoch)
        images, labels = map(np.concatenate, zip(*split, fresh, strict=True))
        order = np.random.default_rng(epoch).permutation(len(labels))
        for i in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[i : i + BATCH_SIZE]
            yield images[chosen].astype(np.float32), labels[chosen]


def main() -> None:
    """Train, report the accuracy on the test split and save the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(arguments.seed)
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    steps = (len(TRAIN_SEEDS) * PER_BATCH + FRESH_PER_EPOCH) // BATCH_SIZE
    schedule = keras.optimizers.schedules.CosineDecay(PEAK_LEARNING_RATE, arguments.epochs * steps)
    model = resnet8()
    model.compile(
        keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(
        batches(arguments.epochs),
        epochs=arguments.epochs,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=2,
    )

    images, labels = draw(TEST_COUNT // len(CLASSES), TEST_SEED)
    predicted = model.predict(images.astype(np.float32), verbose=0).argmax(axis=1)
    right = predicted == labels
    for k, name in enumerate(CLASSES):
        print(f"{name:>10} {right[labels == k].mean():.1%}")
    print(f"test split: {right.sum()}/{len(right)} = {right.mean():.2%}")

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(arguments.out, include_optimizer=False)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
