"""TorchScript files: the one format of PyTorch 2.13 that holds packed integer kernels.

``torch.export`` cannot save them (their packed parameters have no ``__obj_flatten__``), and
TorchScript, though deprecated, is read by every PyTorch without any code of ours.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ENGINE: Final = "x86"
"""PyTorch's default engine, which takes oneDNN's kernels where the processor has VNNI and FBGEMM's
elsewhere. It packs the weights when a file is read, so it must be the same whenever one is."""


def save(module: Any, path: Path) -> None:
    """Trace a module on images (2, 32, 32, 3) and save it; the batch size stays free."""
    import torch

    with deprecations_ignored(), torch.inference_mode():
        script = torch.jit.trace(module, torch.zeros(2, 32, 32, 3), check_trace=False)
        torch.jit.save(script, str(path))
    _strip_debug_files(path)


def _strip_debug_files(path: Path) -> None:
    """Take out the source positions, which differ with the folder that this package lies in."""
    with zipfile.ZipFile(path) as archive:
        kept = [
            (zipfile.ZipInfo(entry.filename), archive.read(entry))
            for entry in archive.infolist()
            if not entry.filename.endswith((".debug_pkl", "serialization_id"))
        ]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, content in kept:
            archive.writestr(entry, content)


def load(path: Path) -> Any:
    """Read a TorchScript file, for the kernels of :data:`ENGINE`."""
    import torch

    torch.backends.quantized.engine = ENGINE
    with deprecations_ignored():
        return torch.jit.load(str(path), map_location="cpu")


@contextmanager
def deprecations_ignored() -> Iterator[None]:
    """Leave out what torch says of TorchScript and of quantized tensors, for want of successors."""
    with warnings.catch_warnings():
        # See the module's docstring.
        warnings.filterwarnings("ignore", r".*torch\.jit\..* is deprecated", DeprecationWarning)
        # The quint8 and qint8 tensors that the integer kernels take and give.
        warnings.filterwarnings("ignore", r"(?s).*quantized tensor creation functions", UserWarning)
        # torch's own unpickling of those tensors.
        warnings.filterwarnings("ignore", r"TypedStorage is deprecated", UserWarning)
        yield
