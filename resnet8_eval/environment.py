"""What a run depends on besides its inputs: packages, processor, and our own code."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    *("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "onnx2torch", "torch", "torchao"),
    *("numpy", "scipy", "h5py", "pillow", "mlcommons-loadgen"),
)
CPU_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instruction sets that decide which integer kernels run."""
_KERNEL_VARIABLES: Final = (
    *("ATEN_CPU_CAPABILITY", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE"),
    *("TF_XLA_FLAGS", "XLA_FLAGS"),
)
"""Environment variables with which a user overrides a library's own choice of kernels."""
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Where a container reads its share of the processor (Linux, cgroup v2): quota and period in µs."""
_NOT_PRODUCING: Final = (
    *("report", "cli", "acceptance", "pytest_plugin.py", "acceptance_run.py", "__main__.py"),
    *("gate.py", "gather.py", "record.py", "row_record.py", "advanced_record.py", "results.py"),
    *("results_v1.py", "verdicts.py"),
)
"""Parts of the package that only show what was produced."""


WEIGHT_LIMIT: Final = 127
"""Rounded weights lie in [-127, 127]: symmetric, so that int8 and uint8 (zero point 128) hold the
same values."""
REDUCED_LIMIT: Final = 63
"""The same with 7 bits."""
SATURATION_FREE_LIMIT: Final = 64
"""Largest magnitude on which x86 kernels without VNNI cannot saturate. They add two products of an
unsigned and a signed byte in 16 bits: 2 · 255 · 64 = 32640 fits into 32767, and 2 · 255 · 65 does
not. ``reduce_range`` of ONNX Runtime's own quantizer goes as far as this."""
_EXACT: Final = {
    "onnxruntime": ("VNNI", frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})),
    # PyTorch looks for this one alone. With ``avx_vnni`` its kernels saturate as without.
    "torch": ("AVX-512 VNNI", frozenset({"avx512_vnni"})),
}
"""Instructions with which a framework's x86 kernels add such products in 32 bits, by their name and
by the processor's flags."""
_NO_VNNI: Final = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})
"""Values of ONEDNN_MAX_CPU_ISA that keep oneDNN from the VNNI instructions."""
_AVX_VNNI: Final = frozenset({"AVX2_VNNI", "AVX2_VNNI_2"})
"""Those that leave it the VNNI instructions outside AVX-512, where the processor has them."""
_NO_AMX: Final = frozenset(
    {
        *("AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"),
        *("AVX10_1_512", "AVX10_2", "AVX10_2_512"),
    }
)
"""Those that leave it AVX-512 with VNNI, and keep it from AMX."""


@functools.cache
def packages() -> dict[str, str]:
    """Installed versions of the packages that decide a number."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    # On Linux the frameworks are installed without what a GPU needs; torch says so itself.
    for distribution, build in ((f"{name}-cpu", "+cpu"), (name, "")):
        with suppress(PackageNotFoundError):
            return version(distribution) + build
    return "not installed"


@functools.cache
def cpu() -> dict[str, Any]:
    """Processor model, the instruction sets that matter, and the number of usable cores.

    Returns
    -------
    dict
        ``model``, ``flags`` (of :data:`CPU_FLAGS`, those present; read from ``/proc/cpuinfo``,
        empty where there is none), ``cores``, ``onednn_max_cpu_isa`` if that environment
        variable holds oneDNN back, and ``variables``, those others that choose kernels.
    """
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in present],
        "cores": usable_cores(),
        # oneDNN still reads the name from before it was called oneDNN.
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA")
        or os.environ.get("DNNL_MAX_CPU_ISA"),
        "variables": {name: os.environ[name] for name in _KERNEL_VARIABLES if name in os.environ},
    }


def is_x86() -> bool:
    """Whether this is a processor of the x86 family."""
    return platform.machine().lower() in {"x86_64", "amd64", "i686", "i386"}


def exact_instructions(framework: str) -> str:
    """The instructions with which a framework's x86 kernels cannot saturate on signed weights."""
    return _EXACT[framework][0]


def saturating_kernels(framework: str) -> str | None:
    """Why a framework's kernels for signed weights sum in 16 bits here; None where they do not."""
    if not is_x86():
        return None
    found, (instructions, flags) = cpu(), _EXACT[framework]
    held = found["onednn_max_cpu_isa"] or ""
    without = _NO_VNNI if "avx_vnni" in found["flags"] else _NO_VNNI | _AVX_VNNI
    if framework == "torch" and held.upper() in without:
        return f"ONEDNN_MAX_CPU_ISA={held}"
    return None if flags & set(found["flags"]) else f"this processor has no {instructions}"


def onednn_multiplies_once() -> bool:
    """Whether oneDNN's 8-bit convolutions scale a sum by one product of scales, not by one by one.

    Its kernels for AMX do, and those that use neither AVX-512 nor VNNI; seen in oneDNN 3.12 under
    each value of ONEDNN_MAX_CPU_ISA, which limits nothing if it is no name of instructions.
    """
    found = cpu()
    held = (found["onednn_max_cpu_isa"] or "").upper()
    if held in _AVX_VNNI:
        return "avx_vnni" not in found["flags"]
    if held in _NO_VNNI:
        return held != "AVX512_CORE"
    return "amx_int8" in found["flags"] and held not in _NO_AMX


def usable_cores() -> int:
    """Cores that this process may run on, or its container's quota if that is less."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # no cgroup, or "max"
        return cores
    return min(cores, math.ceil(quota / period))


@functools.cache
def code_sha256() -> str:
    """SHA-256 over the package's own source that can change an artefact."""
    root = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] not in _NOT_PRODUCING:
            total.update(f"{relative.as_posix()}\0".encode() + path.read_bytes())
    return total.hexdigest()


def fingerprint() -> dict[str, Any]:
    """Everything about this machine and installation that may change an artefact.

    The model of the processor is part of it although its instructions decide: a report says on
    which processor its figures were measured.
    """
    return {
        "packages": packages(),
        "cpu": cpu(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "code": code_sha256(),
    }


Checkout = tuple[str | None, bool | None]
"""A commit, and whether there are changes besides; None where that is not known."""


def describe(checkout: Checkout | None = None) -> dict[str, Any]:
    """The environment as results.json records it; `checkout` as it was when the run began."""
    commit, dirty = checkout or current_checkout()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "packages": packages(),
        "git_commit": commit,
        "dirty": dirty,
    }


def current_checkout() -> Checkout:
    """Commit of the checkout that this package runs from, and whether it has changes."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 (fixed words, no shell)
                ["git", "-C", str(Path(__file__).parent), *words],  # noqa: S607 (the user's git)
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # Installed inside a project of the user's, git would tell of that project.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
    commit = None if tracked is None else git("rev-parse", "HEAD")
    if commit is None:
        return None, None
    status = git("status", "--porcelain")
    return commit, None if status is None else bool(status)
