"""Run a command on ONNX Runtime's AVX2 kernels, on a processor that has more.

    python -m tools.avx2 -m resnet8_eval evaluate model.onnx

What follows is given to Python. ONNX Runtime chooses its kernels by what CPUID says, and has no
switch for it. In a copy of it each CPUID becomes an illegal instruction of the same length; a
signal handler executes the real one and leaves AVX-512 and VNNI out of the answer. Everything
else runs on the processor itself, so saturation is the processor's own. It needs gcc and objdump,
x86-64 and Linux.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HANDLER: Final = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

static void answer(int signal, siginfo_t *info, void *context) {
    greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned char *code = (unsigned char *)at[REG_RIP];
    unsigned a, b, c, d, leaf = at[REG_RAX], part = at[REG_RCX];
    if (code[0] != 0x0f || code[1] != 0x0b) abort();
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7 && part == 0) { /* AVX-512 of all kinds, and AMX */
        b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 0x1cu << 24 | 3u << 30);
        c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
        d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 7u << 22 | 1u << 25);
    }
    if (leaf == 7 && part == 1) { /* AVX-VNNI and its 8-bit forms */
        a &= ~(1u << 4 | 1u << 5 | 1u << 21 | 1u << 23);
        d &= ~(1u << 4 | 1u << 5 | 1u << 10 | 1u << 19);
    }
    at[REG_RAX] = a, at[REG_RBX] = b, at[REG_RCX] = c, at[REG_RDX] = d;
    at[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, NULL);
}
"""
CPUID: Final = b"\x0f\xa2"
ILLEGAL: Final = b"\x0f\x0b"


def masked(library: Path) -> int:
    """Replace each CPUID of a shared library in place, and return how many there were.

    Raises
    ------
    ValueError
        If code does not lie in the file where its addresses say.
    """
    code = subprocess.run(  # noqa: S603 (words of this file)
        ["objdump", "-d", "--no-show-raw-insn", str(library)],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    content = bytearray(library.read_bytes())
    places = [int(at, 16) for at in re.findall(r"^ *([0-9a-f]+):\tcpuid", code, re.MULTILINE)]
    for at in places:
        if content[at : at + 2] != CPUID:
            raise ValueError(f"{library.name}: no CPUID at {at:#x}")
        content[at : at + 2] = ILLEGAL
    library.write_bytes(content)
    return len(places)


def main() -> int:
    """Run Python with the words of the command line, on the masked copy."""
    found = find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise SystemExit("ONNX Runtime is not installed.")
    with tempfile.TemporaryDirectory(prefix="resnet8-avx2-") as scratch:
        package, handler = Path(scratch) / "onnxruntime", Path(scratch) / "mask.so"
        shutil.copytree(Path(found.origin).parent, package)
        (library,) = (package / "capi").glob("onnxruntime_pybind11_state*.so")
        print(f"{masked(library)} CPUID instructions masked", file=sys.stderr)
        compile_it = ["gcc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(handler)]
        subprocess.run(compile_it, input=HANDLER, text=True, check=True)  # noqa: S603
        paths = [scratch, *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(  # noqa: S603 (Python with the user's words)
            [sys.executable, *sys.argv[1:]],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LD_PRELOAD": str(handler)},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
