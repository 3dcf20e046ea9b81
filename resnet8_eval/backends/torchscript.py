"""TorchScript files: the one format of PyTorch 2.13 that holds packed integer kernels.

``torch.export`` cannot save them (their packed parameters have no ``__obj_flatten__``), and
TorchScript, though deprecated, is read by every PyTorch without any code of ours.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from resnet8_eval.environment import is_x86
from resnet8_eval.errors import ModelError, unreadable_model

_FORMATS: Final = {
    ".pt": ("/constants.pkl", "a TorchScript file"),
    ".pt2": ("/archive_format", "a torch.export archive"),
}
"""Suffix of each kind of network, a member that its archives alone have, and what it is."""
_NUMBERED: Final = re.compile(rb"___torch_mangle_(\d+)")


def engine() -> Literal["x86", "qnnpack"]:
    """The engine whose kernels run here: PyTorch's default one.

    On x86 that takes oneDNN's kernels where the processor has VNNI and FBGEMM's elsewhere; there is
    none of it for other processors, where QNNPACK's do not saturate. It packs the weights when a
    file is read, so it must be the same for every file.
    """
    return "x86" if is_x86() else "qnnpack"


def save(module: Any, path: Path) -> None:
    """Trace a module on images (2, 32, 32, 3) and save it; the batch size stays free."""
    import torch

    with deprecations_ignored(), torch.inference_mode():
        for _ in range(2):  # a class that no module of this process had before is not numbered
            script = torch.jit.trace(module, torch.zeros(2, 32, 32, 3), check_trace=False)
        torch.jit.save(script, str(path))
    _canonicalize(path)


def _canonicalize(path: Path) -> None:
    """Take out source positions, and number classes in the order of the network alone."""
    with zipfile.ZipFile(path) as archive:
        kept = {
            name: archive.read(name)
            for name in archive.namelist()
            if not name.endswith((".debug_pkl", "serialization_id"))
        }
    (modules,) = (kept[name] for name in kept if name.endswith("/data.pkl"))
    code = (kept[name] for name in kept if name.endswith(".py"))
    seen = list(dict.fromkeys(_NUMBERED.findall(b"".join([modules, *code]))))

    def renumbered(text: bytes) -> bytes:
        return _NUMBERED.sub(lambda match: b"___torch_mangle_%d" % seen.index(match[1]), text)

    # Tensors are bytes that may hold anything. The pickle has no length before such a name.
    named = {
        renumbered(name.encode()).decode(): (
            renumbered(content) if name.endswith((".py", ".pkl")) else content
        )
        for name, content in kept.items()
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(named):
            archive.writestr(zipfile.ZipInfo(name), named[name])


def demand_network(path: Path) -> None:
    """Refuse any file but a network of the kind that its name says; nothing is unpickled for it.

    ModelError if it is another. torch.export would go on to try older readers, which unpickle.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise unreadable_model(path, "torch", error) from error
    # Of a file cut short, zipfile finds an archive that lies inside it.
    if all(entry.header_offset for entry in entries):
        raise unreadable_model(path, "torch", zipfile.BadZipFile("it was cut short"))
    found = {
        suffix: what
        for suffix, (member, what) in _FORMATS.items()
        if any(entry.filename.endswith(member) for entry in entries)
    }
    if path.suffix not in found:
        raise ModelError(
            f"{path.name} holds no network of the kind that its name says.",
            expected="a network as torch.jit.save (.pt) or torch.export.save (.pt2) writes it",
            given=" ".join(found.values())
            or "an archive of another kind, as torch.save makes it of weights (a state_dict), or of"
            " a module without the code of its classes",
            next_step="rename it if it is of the other kind; else load it with the code that wrote"
            " it, and save the network: torch.export.save(torch.export.export(module.eval(),"
            " (images,), dynamic_shapes=({0: torch.export.Dim('n')},)), 'own.pt2'), or"
            " torch.jit.save(torch.jit.trace(module.eval(), images), 'own.pt')",
        )


def load(path: Path) -> Any:
    """Read a TorchScript file, for the kernels of :func:`engine`."""
    import torch

    torch.backends.quantized.engine = engine()
    with deprecations_ignored():
        return torch.jit.load(str(path), map_location="cpu")


@contextmanager
def deprecations_ignored() -> Iterator[None]:
    """Silence torch's deprecations of TorchScript and quantized tensors: nothing replaces them."""
    with warnings.catch_warnings():
        # See the module's docstring.
        warnings.filterwarnings("ignore", r".*torch\.jit\..* is deprecated", DeprecationWarning)
        # The quint8 and qint8 tensors that the integer kernels take and give.
        warnings.filterwarnings("ignore", r"(?s).*quantized tensor creation functions", UserWarning)
        # torch's own unpickling of those tensors.
        warnings.filterwarnings("ignore", r"TypedStorage is deprecated", UserWarning)
        yield
