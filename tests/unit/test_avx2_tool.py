"""What runs on AVX2 kernels: the copy of a library in which CPUID is answered by a handler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import avx2

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("objdump")) or sys.platform != "linux",
    reason="tools.avx2 needs gcc and objdump",
)
ASKS = """
#include <cpuid.h>
unsigned has(unsigned bit) {
    unsigned a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    return b >> bit & 1;
}
"""
AVX2, AVX512F = 5, 16


def compiled(code: str, path: Path) -> Path:
    command = ["gcc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=code, text=True, check=True)  # noqa: S603
    return path


def test_a_masked_library_is_told_of_avx2_and_not_of_more(tmp_path: Path) -> None:
    library = compiled(ASKS, tmp_path / "asks.so")
    bare = ctypes.CDLL(str(library))
    real = bare.has(AVX2)
    other = tmp_path / "masked.so"
    shutil.copyfile(library, other)
    assert avx2.masked(other) == 1
    handler = compiled(avx2.HANDLER, tmp_path / "mask.so")
    ask = f"import ctypes; l = ctypes.CDLL({str(other)!r}); print(l.has({AVX2}), l.has({AVX512F}))"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", ask],
        env={"LD_PRELOAD": str(handler)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(real), "0"]


def test_code_that_lies_elsewhere_in_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compiled(ASKS, tmp_path / "asks.so")
    before = library.read_bytes()
    monkeypatch.setattr(avx2, "CPUID", b"\0\0")
    with pytest.raises(ValueError, match="no CPUID at"):
        avx2.masked(library)
    assert library.read_bytes() == before
