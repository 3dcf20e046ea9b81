"""Let TensorFlow and a CUDA build of PyTorch share a process, as tests have them.

The build brings Triton. Imported after TensorFlow it ends the process, and before it does not: each
has an LLVM of its own. The product is not concerned, since each framework has a lane.
"""

from contextlib import suppress
from importlib import import_module

with suppress(ImportError):
    import_module("triton")
