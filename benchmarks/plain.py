"""The same work as a plain script: one process for each step, as one would write it in a day.

    python -m benchmarks.plain ASSETS FOLDER STEP

Convert, evaluate float32 twice, quantize three models, evaluate three: no checks, no proof, no
report. It is what the suite's speed is compared with, so it is neither made slow nor tuned.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

# Reading CIFAR-10 with pickle would be half a second faster and is forbidden in this repository.
from resnet8_eval.backends import torchscript
from resnet8_eval.cifar10 import read_split

CALIBRATION_IMAGES: Final = 1000


def images_to_test(assets: Path) -> tuple[Any, Any]:
    """All test images as float32, and their labels."""
    split = read_split(assets / "cifar-10-batches-py", "test")
    return split.images.astype(np.float32), split.labels


def calibration_set(assets: Path) -> Any:
    """Training images as float32, drawn at random."""
    images = read_split(assets / "cifar-10-batches-py", "train").images.astype(np.float32)
    return images[np.random.default_rng(0).permutation(len(images))[:CALIBRATION_IMAGES]]


def report(name: str, scores: Any, labels: Any) -> None:
    """Print an accuracy."""
    correct = int((scores.argmax(axis=1) == labels).sum())
    print(f"{name}: {correct}/{len(labels)} = {100 * correct / len(labels):.2f} %")


def convert(assets: Path, folder: Path) -> None:
    """Keras to ONNX."""
    import tensorflow as tf
    import tf2onnx

    from resnet8_eval.convert.keras_to_onnx import load

    model = load(assets / "pretrainedResnet.h5")
    signature = [tf.TensorSpec((None, 32, 32, 3), tf.float32, name="images")]
    tf2onnx.convert.from_keras(model, signature, opset=17, output_path=str(folder / "float32.onnx"))


def evaluate_onnx(name: str) -> Callable[[Path, Path], None]:
    """The step that runs an ONNX model on all test images at once."""

    def step(assets: Path, folder: Path) -> None:
        import onnxruntime as ort

        images, labels = images_to_test(assets)
        session = ort.InferenceSession(
            str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        scores = session.run(None, {session.get_inputs()[0].name: images})[0]
        report(f"ONNX Runtime {name}", scores, labels)

    return step


def quantize_onnx(name: str) -> Callable[[Path, Path], None]:
    """The step that quantizes the ONNX model statically."""

    def step(assets: Path, folder: Path) -> None:
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            """One image at a time, as in ONNX Runtime's examples."""

            def __init__(self, name: str, images: Any) -> None:
                self._feeds: Iterator[dict[str, Any]] = ({name: image[None]} for image in images)

            def get_next(self) -> dict[str, Any] | None:
                return next(self._feeds, None)

        quant_pre_process(str(folder / "float32.onnx"), str(folder / "prepared.onnx"))
        feed = onnx.load(folder / "prepared.onnx").graph.input[0].name
        kind = QuantType.QInt8 if name == "int8" else QuantType.QUInt8
        quantize_static(
            str(folder / "prepared.onnx"),
            str(folder / f"{name}.onnx"),
            Reader(feed, calibration_set(assets)),
            quant_format=QuantFormat.QDQ,
            activation_type=kind,
            weight_type=kind,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
        )

    return step


def folded_torch(folder: Path) -> Any:
    """The network in PyTorch, without batch normalisation."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # onnx2torch, beside a torchvision that may be broken.
    from resnet8_eval.convert import onnx_to_torch

    quant_pre_process(str(folder / "float32.onnx"), str(folder / "folded.onnx"))
    return onnx_to_torch.convert(folder / "folded.onnx")


def evaluate_torch(assets: Path, folder: Path) -> None:
    """Run the float32 PyTorch network on all test images at once."""
    import torch

    images, labels = images_to_test(assets)
    with torch.inference_mode():
        scores = folded_torch(folder)(torch.from_numpy(images)).numpy()
    report("PyTorch float32", scores, labels)


def quantize_torch(assets: Path, folder: Path) -> None:
    """Quantize the PyTorch network statically, in FX graph mode."""
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    images = torch.from_numpy(calibration_set(assets))
    torch.backends.quantized.engine = "x86"
    prepared = prepare_fx(folded_torch(folder), get_default_qconfig_mapping("x86"), (images[:1],))
    with torch.inference_mode():
        for image in images:
            prepared(image[None])
    quantized = convert_fx(prepared)
    torch.jit.save(torch.jit.trace(quantized, images[:2], check_trace=False), folder / "int8.pt")


def evaluate_torch_int8(assets: Path, folder: Path) -> None:
    """Run the int8 PyTorch network on all test images at once."""
    import torch

    images, labels = images_to_test(assets)
    with torch.inference_mode():
        scores = torchscript.load(folder / "int8.pt")(torch.from_numpy(images)).numpy()
    report("PyTorch int8", scores, labels)


STEPS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "convert": convert,
    "evaluate-onnx-float32": evaluate_onnx("float32"),
    "evaluate-torch-float32": evaluate_torch,
    "quantize-onnx-int8": quantize_onnx("int8"),
    "quantize-onnx-uint8": quantize_onnx("uint8"),
    "quantize-torch-int8": quantize_torch,
    "evaluate-onnx-int8": evaluate_onnx("int8"),
    "evaluate-onnx-uint8": evaluate_onnx("uint8"),
    "evaluate-torch-int8": evaluate_torch_int8,
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    STEPS[sys.argv[3]](Path(sys.argv[1]), Path(sys.argv[2]))
