"""Says, with evidence, whether a pretrained Keras ResNet8 survived conversion and quantization."""

import os

__version__ = "1.2.0"

# Otherwise ONNX Runtime reports its use to its maker. It reads this when first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
