"""TorchScript files: the one format of PyTorch 2.13 that holds packed integer kernels.

``torch.export`` cannot save them (their packed parameters have no ``__obj_flatten__``), and
TorchScript, though deprecated, is read by every PyTorch without any code of ours.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

from resnet8_eval.environment import is_x86
from resnet8_eval.errors import ModelError

_BEFORE_ZIP: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files begin that ``torch.save`` wrote before it wrote zip archives."""
_FORMATS: Final = {
    ".pt": ("/constants.pkl", "a TorchScript file"),
    ".pt2": ("/archive_format", "a torch.export archive"),
}
"""Suffix of each kind of network, a member that its archives alone have, and what it is."""
_DATA: Final = frozenset(
    {
        *("torch", "torch._utils", "torch.storage", "collections", "builtins", "__builtin__"),
        *("_codecs", "numpy", "numpy.core.multiarray", "numpy._core.multiarray"),
    }
)
"""Modules that a pickle of weights names; those of a pickled network name its classes too."""
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
    """Refuse what ``torch.save`` leaves; nothing is unpickled to find out.

    ModelError if the file holds weights alone, or a module whose code is not in the file, or a
    network of the other kind than its name says.
    """
    _demand_its_name(path)
    pickles = _pickles(path)
    named = {
        str(argument)
        for pickle in pickles
        for code, argument, _ in pickletools.genops(pickle)
        if code.name == "GLOBAL"
    }
    code = sorted(name.replace(" ", ".") for name in named if name.split()[0] not in _DATA)
    if pickles:
        raise ModelError(
            f"{path.name} is a pickled module: the code of its classes is not in the file."
            if code
            else f"{path.name} holds weights (a state_dict) and no network.",
            expected="a network as torch.export.save (.pt2) or torch.jit.save (.pt) writes it",
            given=f"what torch.save writes{f', with {code[0]}' if code else ''}",
            next_step="load it with the code that wrote it, and save the network: torch.export.save"
            "(torch.export.export(module.eval(), (images,), dynamic_shapes="
            "({0: torch.export.Dim('n')},)), 'own.pt2'), or torch.jit.save(torch.jit.trace("
            "module.eval(), images), 'own.pt')",
        )


def _demand_its_name(path: Path) -> None:
    """Refuse a sound file that is called as the other format."""
    names = _members(path)
    for suffix, (member, what) in _FORMATS.items():
        if suffix != path.suffix and any(name.endswith(member) for name in names):
            raise ModelError(
                f"{path.name} is {what} by another name.",
                expected=f"a file named *{suffix}",
                given=path.name,
                next_step=f"rename it to {path.stem}{suffix}",
            )


def _pickles(path: Path) -> list[bytes | BytesIO]:
    """What ``torch.save`` pickled, in a zip archive or one after the other; [] if it did not."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    if content.startswith(_BEFORE_ZIP):
        return [BytesIO(content)] * 4  # magic number, version, platform, object
    names = _members(path)
    if any(name.endswith(tuple(member for member, _ in _FORMATS.values())) for name in names):
        return []
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if not pickles:
        return []
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in pickles]


def _members(path: Path) -> list[str]:
    """The files in a zip archive; [] if it is none, or was cut short."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Of a file cut short, zipfile finds an archive that lies inside it.
            whole = any(entry.header_offset == 0 for entry in archive.infolist())
            return archive.namelist() if whole else []
    except (OSError, zipfile.BadZipFile):
        return []


def load(path: Path) -> Any:
    """Read a TorchScript file, for the kernels of :func:`engine`."""
    import torch

    demand_network(path)
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
