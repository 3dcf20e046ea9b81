"""A process that is killed leaves nothing that a later run trusts, and nothing that blocks it."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from resnet8_eval.store import RECORD_FILE, Store
from tests.small_flow import (
    BYTES,
    DEATH,
    ROOT,
    STAGES,
    command_line,
    ended_well,
    made,
    site,
)

Crash = dict[str, Any]
FINISHED = {"data": BYTES, "empty": 0}


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> list[Crash]:
    """What came of a kill at every step that making four stages takes in the cache."""
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "tests.crash_points", str(tmp_path_factory.mktemp("crashes"))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,  # a lock that stayed would hold it up for ever
    )
    found: list[Crash] = json.loads(done.stdout)
    return found


def half_made(crash: Crash, stage: str) -> dict[str, int] | None:
    """Name to size of the files in a stage's unfinished folder, or None where there is none."""
    return next((v for k, v in crash["half made"].items() if k.startswith(f"{stage}-")), None)


def lock_is_there(crash: Crash, stage: str) -> bool:
    return any(name.startswith(f"{stage}-") for name in crash["locks"])


def after(stage: str) -> list[str]:
    names = list(STAGES)
    return names[names.index(stage) + 1 :]


# The critical moments of publishing: what a kill at each of them leaves.
MOMENTS: dict[str, Callable[[Crash, str], bool]] = {
    "before it is locked": lambda c, s: not lock_is_there(c, s),
    "locked, before anything is written": lambda c, s: (
        lock_is_there(c, s) and half_made(c, s) is None and s not in c["trusted"]
    ),
    "before its function writes": lambda c, s: half_made(c, s) == {},
    "in the midst of a file": lambda c, s: half_made(c, s) == {"data": BYTES // 2},
    "between two files": lambda c, s: half_made(c, s) == {"data": BYTES},
    "with all files and no record": lambda c, s: half_made(c, s) == FINISHED,
    "with a record, before it is renamed": lambda c, s: (
        RECORD_FILE in (half_made(c, s) or {}) and s not in c["trusted"]
    ),
    "renamed, before anything else": lambda c, s: (
        s in c["trusted"] and not any(lock_is_there(c, later) for later in after(s))
    ),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_every_critical_moment_of_every_stage_was_met_by_a_kill(
    crashes: list[Crash], moment: Callable[[Crash, str], bool]
) -> None:
    missed = [name for name in STAGES if not any(moment(crash, name) for crash in crashes)]
    assert not missed


def test_what_a_killed_process_left_is_trusted_only_where_it_was_published(
    crashes: list[Crash],
) -> None:
    assert all(crash["trusted as made"] for crash in crashes)
    for crash in crashes:
        assert not [name for name in crash["trusted"] if half_made(crash, name) is not None]


def test_the_next_run_makes_what_was_missing_and_nothing_else(crashes: list[Crash]) -> None:
    assert all(crash["the same"] for crash in crashes)
    for crash in crashes:
        missing = [name for name in STAGES if name not in crash["trusted"]]
        assert crash["made by the next"] == missing


def test_the_next_run_takes_half_made_folders_away(crashes: list[Crash]) -> None:
    assert any(crash["half made"] for crash in crashes)
    assert not [crash for crash in crashes if crash["left"]]


HALF_A_RECORD = """
import signal, sys
from pathlib import Path
from resnet8_eval.store import Store

signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would go on, with an error
Store(Path(sys.argv[1])).produce("a", "key", lambda folder: {"long": "x" * 1000})
"""


def test_a_kill_in_the_midst_of_the_record(tmp_path: Path) -> None:
    """The system kills a process that writes beyond the size that files may have."""
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-c", HALF_A_RECORD, str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGXFSZ
    (record,) = tmp_path.glob(f"artifacts/a-*/{RECORD_FILE}")
    assert record.stat().st_size == 500
    store = Store(tmp_path)
    assert store.get("a", "key") is None
    assert store.produce("a", "key", lambda _: {"short": 1}).record == {"short": 1}
    assert not record.exists()


def test_cache_clear_takes_half_made_folders_away(tmp_path: Path) -> None:
    """Also those whose key nothing asks for any more."""
    (tmp_path / "artifacts" / "a-0.partial").mkdir(parents=True)
    (tmp_path / "artifacts" / "a-0.partial" / "data").touch()
    assert Store(tmp_path).clear() == 1
    assert not list((tmp_path / "artifacts").iterdir())


# --- a run with lanes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended_well(command_line(folder / "cache", site(folder / "site")))
    found = made(folder / "cache")
    assert set(found) == set(STAGES)
    return found


@pytest.mark.parametrize(
    ("victim", "stage"),
    [("lane", "first"), ("lane", "right"), ("parent", "first"), ("group", "left")],
)
def test_a_run_after_one_that_was_killed_makes_the_same(
    tmp_path: Path, undisturbed: dict[str, Any], victim: str, stage: str
) -> None:
    cache, environment = tmp_path / "cache", site(tmp_path / "site")
    killed = command_line(cache, {**environment, DEATH: f"{stage} {victim}"})
    status = killed.wait(60)
    before = made(cache)
    assert before.items() <= undisturbed.items()
    ended_well(command_line(cache, environment))
    assert made(cache) == undisturbed
    assert not list(cache.glob("artifacts/*.partial"))
    # Its lanes had its output open; they are gone, or this would wait for them.
    said = killed.communicate(timeout=20)[0]
    if victim == "lane":
        assert (status, stage in before) == (1, False)
        assert f"Stage {stage} failed" in said
    else:
        assert status == -signal.SIGKILL


def test_the_lanes_of_a_killed_run_do_not_hold_its_locks(tmp_path: Path) -> None:
    """Locks are the parent's own; a lane that lives on has not inherited them."""
    cache, environment = tmp_path / "cache", site(tmp_path / "site")
    killed = command_line(cache, {**environment, DEATH: "first parent"})
    killed.wait(60)
    with FileLock(cache / "locks" / "prepare.lock", timeout=0):
        pass
    killed.communicate(timeout=20)
