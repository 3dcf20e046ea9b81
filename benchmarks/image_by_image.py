"""Hold the plain script's quantized rows against the suite's stock rows, image by image.

    python -m benchmarks.image_by_image ASSETS

Equal counts may hide images that change places, so classes and scores of all test images are
compared. The plain script knows nothing of how the suite quantizes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from resnet8_eval import assets
from resnet8_eval.inputs import Settings
from resnet8_eval.pipeline import Pipeline

ROWS: Final = {
    "ONNX Runtime int8": ("onnxruntime-int8-stock", "quantize-onnx-int8", "evaluate-onnx-int8"),
    "ONNX Runtime uint8": ("onnxruntime-uint8-stock", "quantize-onnx-uint8", "evaluate-onnx-uint8"),
    "PyTorch int8": ("torch-int8-stock", "torch-int8"),
    "PyTorch uint8": ("torch-uint8-stock", "torch-uint8"),
}
"""What the plain script calls its scores: the suite's row, and the steps that make them."""


def main(folder_of_assets: Path) -> int:
    """Print what differs, row by row; 1 where a class does."""
    cache = assets.default_cache_dir()
    found = assets.locate("real", assets_dir=folder_of_assets, cache_dir=cache)
    pipeline = Pipeline(Settings(found, cache), lambda line: print(line, file=sys.stderr))
    pipeline.prepare([f"scores/{row}" for row, *_ in ROWS.values()])
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        for step in ("convert", *(step for _, *steps in ROWS.values() for step in steps)):
            words = ["-m", "benchmarks.plain", str(folder_of_assets), scratch, step]
            subprocess.run([sys.executable, *words], check=True)  # noqa: S603 (our own words)
        for name, (row, *_) in ROWS.items():
            plain = np.load(Path(scratch) / f"{name}.npy")
            own = np.load(pipeline.artifact(f"scores/{row}").path("scores.npy"))
            images = int((plain.argmax(axis=1) != own.argmax(axis=1)).sum())
            differing += images
            print(
                f"{row}: another class on {images} of {len(own)} images, "
                f"scores within {np.abs(plain - own).max():.1g}"
            )
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
