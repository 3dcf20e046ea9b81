"""The pipeline in miniature: four quick stages in real lanes, and no framework.

A process that finds the folder of :func:`site` on its path has these stages besides the product's;
the lanes that it starts find it as well. So the command line, pytest and its workers run as they
are, on stages that cost nothing. Each stage notes when it begins and ends.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from resnet8_eval import assets, lanes
from resnet8_eval import stages as product
from resnet8_eval.inputs import Inputs, Settings
from resnet8_eval.stages import Stage
from resnet8_eval.store import Record, Store

ROOT: Final = Path(__file__).parents[1]
STAGES: Final = {
    "first": ("keras", ()),
    "left": ("onnxruntime", ("first",)),
    "right": ("torch", ("first",)),
    "last": ("keras", ("left", "right")),
}
"""Name of each to its lane and what it needs."""
SITE: Final = """
import sys

if not any("resource_tracker" in word for word in sys.orig_argv):  # it makes no stage
    from tests import small_flow

    small_flow.plant()
"""
BYTES: Final = 3000
"""Size of the file that each stage writes; its record is larger."""
HALF: Final = "small_flow.half"
"""What a stage tells audit hooks when half of its file is written."""
PAUSE = 0.05
"""Seconds that it then waits, for others to begin meanwhile."""
DEATH: Final = "SMALL_FLOW_DEATH"
"""Variable with a stage, and who is killed in the midst of it: lane, parent or group; or asked, the
parent, to end."""
WARM_UPS: Final = "SMALL_FLOW_WARM_UPS"
"""Variable of runs in which lanes import their frameworks while they wait."""


def plant() -> None:
    """Put these stages behind the product's, in this process; no lane imports a framework."""
    honest = product.table
    product.table = lambda settings: [*honest(settings), *stages(settings)]
    assets.locate = locate
    if WARM_UPS not in os.environ:
        lanes._WARM_UPS.clear()


def locate(kind: str = "stand-in", **_: object) -> assets.Assets:
    """Assets that nobody reads."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    return assets.Assets(
        "stand-in" if kind == "stand-in" else "real",
        Path("model.h5"),
        "1" * 64,
        user_model=False,
        dataset=Path("images"),
        dataset_md5=dict.fromkeys(names, "2" * 32),
        dataset_sha256=dict.fromkeys(names, "3" * 64),
    )


def stages(settings: Settings) -> list[Stage]:
    """The table of stages."""
    decided_by = {"seed": settings.calibration_seed}
    return [
        Stage(name, lane, needs, functools.partial(_make, name=name), decided_by)
        for name, (lane, needs) in STAGES.items()
    ]


def _make(inputs: Inputs, *, name: str) -> Record:
    out = inputs.out
    cache = inputs.settings.cache_dir
    _note(cache, f"begin {name} {os.getpid()}")
    content = name.encode().ljust(BYTES // 2, b".")
    with (out / "data").open("wb") as data:
        data.write(content)
        data.flush()
        _die(name)
        sys.audit(HALF, str(out))
        time.sleep(PAUSE)
        data.write(content)
    (out / "empty").touch()
    _note(cache, f"end {name} {os.getpid()}")
    made_from = {need: inputs.record(need)["name"] for need in STAGES[name][1]}
    return {"name": name, "from": made_from, "long": "." * BYTES}


def _die(name: str) -> None:
    stage, _, victim = os.environ.get(DEATH, "").partition(" ")
    if stage == name:
        match victim:
            case "lane":
                os.kill(os.getpid(), signal.SIGKILL)
            case "parent":
                os.kill(os.getppid(), signal.SIGKILL)
            case "group":
                os.killpg(0, signal.SIGKILL)
            case "asked":
                os.kill(os.getppid(), signal.SIGTERM)
                time.sleep(30)  # it is killed meanwhile


def _note(cache: Path, line: str) -> None:
    with (cache / "notes").open("a") as notes:
        notes.write(line + "\n")


def site(folder: Path, text: str = SITE) -> dict[str, str]:
    """Environment of a process, and of all that it starts, that runs `text` when it begins.

    Parameters
    ----------
    folder
        An empty one.
    text
        Python.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return {**inherited, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def as_user() -> None:
    """For a process that is about to start: root, too, is to obey permissions."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def command_line(
    cache: Path, environment: Mapping[str, str], *more: str, **options: Any
) -> subprocess.Popen[str]:
    """Make every stage with ``python -m resnet8_eval run``."""
    words = ["run", *STAGES, "--assets", "stand-in", "--cache-dir", str(cache), *more]
    return subprocess.Popen(  # noqa: S603 (our own words)
        [sys.executable, "-m", "resnet8_eval", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def ended_well(process: subprocess.Popen[str]) -> str:
    """Wait for a process that is to end with status 0, and return what it said."""
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    return said


def made(cache: Path) -> dict[str, Any]:
    """Files and record of each stage's artefact; damaged and half-made ones are not among them."""
    return {
        found.stage: (found.files, found.record)
        for folder, found in Store(cache).artifacts()
        if found is not None and folder.suffix != ".partial"
    }


def begun(cache: Path) -> Counter[str]:
    """How often each stage was begun."""
    lines = (cache / "notes").read_text().splitlines()
    return Counter(line.split()[1] for line in lines if line.startswith("begin"))


def at_once(cache: Path) -> int:
    """The largest number of stages that were at work at the same time."""
    running = most = 0
    for line in (cache / "notes").read_text().splitlines():
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    return most
