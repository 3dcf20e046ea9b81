"""A TorchScript file computes the same whatever the process did before it was read."""

from __future__ import annotations

from resnet8_eval import torchscript
from resnet8_eval.quantize.torch_quantize import unsigned_kernel_support


def test_asking_every_engine_leaves_the_engine_as_it_was() -> None:
    import torch

    torch.backends.quantized.engine = torchscript.ENGINE
    unsigned_kernel_support()
    assert torch.backends.quantized.engine == torchscript.ENGINE
