"""The same work as a plain script: one process for each step, as one would write it in a day.

    python -m benchmarks.plain ASSETS FOLDER STEP

Convert, evaluate float32 in each framework, quantize to int8 and to uint8 as each framework's
documentation says, evaluate: no checks, no proof, no report. The suite's speed is compared with it,
so it is neither made slow nor tuned. Quantization knows nothing of the suite and is given the same
calibration images, so its answers must be those of the stock rows (`benchmarks.image_by_image`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

# Reading CIFAR-10 with pickle would be half a second faster and is forbidden in this repository.
from resnet8_eval import calibration
from resnet8_eval.cifar10 import read_split

CALIBRATION_IMAGES: Final = 1000


def images_to_test(assets: Path) -> tuple[Any, Any]:
    """All test images as float32, and their labels."""
    split = read_split(assets / "cifar-10-batches-py", "test")
    return split.images.astype(np.float32), split.labels


def calibration_set(assets: Path) -> Any:
    """The suite's calibration images of seed 0 as float32."""
    train = read_split(assets / "cifar-10-batches-py", "train")
    chosen = calibration.choose(train.labels, CALIBRATION_IMAGES, 0)
    return train.images[chosen].astype(np.float32)


def report(name: str, scores: Any, labels: Any, folder: Path) -> None:
    """Print an accuracy, and keep the scores."""
    np.save(folder / f"{name}.npy", scores)
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


def evaluate_keras(assets: Path, folder: Path) -> None:
    """Run the Keras network on all test images."""
    from resnet8_eval.convert.keras_to_onnx import load

    images, labels = images_to_test(assets)
    scores = load(assets / "pretrainedResnet.h5").predict(images, batch_size=100, verbose=0)
    report("Keras float32", scores, labels, folder)


def evaluate_onnx(name: str) -> Callable[[Path, Path], None]:
    """The step that runs an ONNX model on all test images at once."""

    def step(assets: Path, folder: Path) -> None:
        import onnxruntime as ort

        images, labels = images_to_test(assets)
        session = ort.InferenceSession(
            str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        scores = session.run(None, {session.get_inputs()[0].name: images})[0]
        report(f"ONNX Runtime {name}", scores, labels, folder)

    return step


def quantize_onnx(name: str) -> Callable[[Path, Path], None]:
    """The step that quantizes the ONNX model with ``quantize_static`` and its defaults."""

    def step(assets: Path, folder: Path) -> None:
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
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
        )

    return step


def converted_to_torch(folder: Path) -> Any:
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
        scores = converted_to_torch(folder)(torch.from_numpy(images)).numpy()
    report("PyTorch float32", scores, labels, folder)


def quantize_torch(name: str) -> Callable[[Path, Path], None]:
    """The step that quantizes the PyTorch network with torchao's PT2E, and evaluates it."""

    def step(assets: Path, folder: Path) -> None:
        import torch
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        images = torch.from_numpy(calibration_set(assets))
        batch = torch.export.Dim("batch")
        exported = torch.export.export(
            converted_to_torch(folder), (images[:2],), dynamic_shapes=({0: batch},)
        ).module()
        config = x86.get_default_x86_inductor_quantization_config()
        if name == "uint8":
            weight = replace(config.weight, dtype=torch.uint8, quant_min=0, quant_max=255)
            config = replace(config, weight=weight)
        prepared = prepare_pt2e(exported, x86.X86InductorQuantizer().set_global(config))
        with torch.inference_mode():
            for part in images.split(100):
                prepared(part)
        quantized = convert_pt2e(prepared)
        tested, labels = images_to_test(assets)
        with torch.inference_mode():
            scores = quantized(torch.from_numpy(tested)).numpy()
        report(f"PyTorch {name}", scores, labels, folder)

    return step


STEPS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "convert": convert,
    "evaluate-keras": evaluate_keras,
    "evaluate-onnx-float32": evaluate_onnx("float32"),
    "evaluate-torch-float32": evaluate_torch,
    "quantize-onnx-int8": quantize_onnx("int8"),
    "evaluate-onnx-int8": evaluate_onnx("int8"),
    "quantize-onnx-uint8": quantize_onnx("uint8"),
    "evaluate-onnx-uint8": evaluate_onnx("uint8"),
    "torch-int8": quantize_torch("int8"),
    "torch-uint8": quantize_torch("uint8"),
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    STEPS[sys.argv[3]](Path(sys.argv[1]), Path(sys.argv[2]))
