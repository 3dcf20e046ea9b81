"""Which Python `make` takes, what it says where there is none, and what it has compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="there is no make")


def python(path: Path, version: tuple[int, int]) -> None:
    """Put a Python there that says that it is of some version."""
    said = f"import sys; sys.version_info = {version}; exec(sys.argv.pop(1))"
    path.write_text(f"#!/bin/sh\nshift\nexec {sys.executable} -c '{said}' \"$@\"\n")
    path.chmod(0o755)


def chosen(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make where these Pythons are the only ones."""
    for name in ("sh", "sed", "echo", "test"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    return subprocess.run(  # noqa: S603 (our own words)
        [MAKE or "make", "-f", str(ROOT / "Makefile"), f"--directory={ROOT}", *words],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def venv_made_by(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = (line for line in done.stdout.splitlines() if " -m venv " in line)
    return line.split()[0]


ASKED = ("--dry-run", "--always-make", "report")


def test_each_python_that_the_package_allows_is_found(tmp_path: Path) -> None:
    for minor in (12, 13):
        folder = tmp_path / str(minor)
        folder.mkdir()
        python(folder / f"python3.{minor}", (3, minor))
        python(folder / "python3", (3, 9))
        assert venv_made_by(chosen(folder, *ASKED)) == f"python3.{minor}"


def test_a_command_that_stands_for_no_python_is_passed_over(tmp_path: Path) -> None:
    """As pyenv's python3.12 does, where another version is the selected one."""
    (tmp_path / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.11").chmod(0o755)
    python(tmp_path / "python3", (3, 13))
    assert venv_made_by(chosen(tmp_path, *ASKED)) == "python3"


def test_where_there_is_none_it_says_which(tmp_path: Path) -> None:
    python(tmp_path / "python3", (3, 10))
    done = chosen(tmp_path, f"VENV={tmp_path / 'venv'}", "report")
    assert done.returncode == 2
    assert "No Python found. Expected: one of 3.11 3.12 3.13," in done.stderr
    assert "make report PYTHON=/path/to/python" in done.stderr


def test_the_versions_are_those_that_pip_allows() -> None:
    import tomllib

    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = SpecifierSet(project["requires-python"])
    named = {entry.rpartition(" ")[2] for entry in project["classifiers"] if ":: 3." in entry}
    assert named == {f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed}


def test_what_python_compiles_is_kept() -> None:
    """Where that is forbidden, each process of a test run would compile the suite anew."""
    done = subprocess.run(  # noqa: S603 (our own words)
        [MAKE or "make", f"--directory={ROOT}", "--eval=it: ; @env", "it"],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "PATH=" in done.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


@pytest.mark.parametrize("again", [False, True], ids=["all", "what is newer"])
def test_what_was_installed_is_compiled_but_for_packages_own_tests(
    tmp_path: Path, again: bool
) -> None:
    """All of it after the first step, of which a part may have run before; then what is new."""
    venv = tmp_path / "tests" / "venv"  # where the environment lies does not count
    marker, library = tmp_path / "before", venv / "lib" / "python"
    wanted = {"old.py": not again, "new.py": True, "a b.py": True, "it/tests/new.py": False}
    for name in wanted:
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text("")
        if name == "old.py":  # a file's time has some milliseconds' grain
            time.sleep(0.05)
            marker.touch()
            time.sleep(0.05)
    (library / "for another Python.py").write_text("print 1")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(sys.executable)
    which = f"-cnewer {marker}" if again else ""
    subprocess.run(  # noqa: S603 (our own words)
        [
            *(MAKE or "make", f"--directory={ROOT}", f"VENV={venv}"),
            *(f"--eval=it: ; @$(call COMPILE,{which})", "it"),
        ],
        capture_output=True,
        check=True,
        timeout=60,
    )
    compiled = {
        name: any((library / name).parent.glob(f"__pycache__/{Path(name).stem}.*.pyc"))
        for name in wanted
    }
    assert compiled == wanted
