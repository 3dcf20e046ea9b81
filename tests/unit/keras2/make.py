"""Write them anew, with a Keras 2 that is installed beside the suite and not with it.

pip install --no-deps --target /tmp/keras2 tf_keras==2.21.0
PYTHONPATH=/tmp/keras2 python -m tests.unit.keras2.make
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests import small_network

FOLDER: Final = Path(__file__).parent


def main() -> None:
    """One network in both formats: nested, with operators and layers for training."""
    keras: Any = importlib.import_module("tf_keras")
    tensorflow: Any = importlib.import_module("tensorflow")
    keras.utils.set_random_seed(0)
    of = keras.layers
    taken = keras.Input((32, 32, 3))
    x = keras.Sequential([of.RandomFlip(), of.RandomZoom(0.1)])(taken)
    x = (x - 120.0) / 60.0
    x = of.ReLU()(of.BatchNormalization()(of.Conv2D(4, 3, 2, name="block.conv")(x)))
    y = of.SpatialDropout2D(0.1)(of.Conv2D(4, 3, padding="same")(x))
    x = tensorflow.nn.relu(x + y)
    inner = keras.Sequential([keras.Input(x.shape[1:]), of.Conv2D(6, 3)])
    x = of.GlobalAveragePooling2D(keepdims=True)(of.ReLU()(inner(x)))
    model = keras.Model(taken, of.Dense(10, activation="softmax")(of.Reshape((6,))(x)))
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + random.uniform(0, 0.2, weight.shape))
    for suffix in ("h5", "keras"):
        model.save(FOLDER / f"own.{suffix}")
    images = small_network.images(24).astype(np.float32)
    np.save(FOLDER / "scores.npy", np.asarray(model(images, training=False), np.float32))


if __name__ == "__main__":
    main()
