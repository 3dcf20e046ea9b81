"""Keras to ONNX, batch normalisation folded, ONNX to PyTorch; and the checks of each step."""
