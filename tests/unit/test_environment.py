"""What a run depends on besides its inputs, and what it does not depend on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval import environment

X86 = "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: sse avx2 avx512f avx512_vnni\n\n"
TWO = X86 + X86.replace("Some", "Other").replace(" avx512_vnni", "")
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def plant(content: str) -> None:
        (tmp_path / "cpuinfo").write_text(content)
        monkeypatch.setattr(environment, "Path", lambda _: tmp_path / "cpuinfo")

    return plant


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        (X86, ["avx2", "avx512f", "avx512_vnni"]),
        (TWO, ["avx2", "avx512f", "avx512_vnni"]),
        (ARM, ["asimddp", "i8mm"]),
        ("", []),
    ],
    ids=["x86", "two kinds", "arm", "nothing"],
)
def test_flags_that_decide_the_kernels(
    cpuinfo: Callable[[str], None], content: str, flags: list[str]
) -> None:
    cpuinfo(content)
    assert environment.cpu.__wrapped__()["flags"] == flags


def test_without_cpuinfo_there_is_still_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "Path", lambda _: Path("/nowhere/cpuinfo"))
    found = environment.cpu.__wrapped__()
    assert found["flags"] == []
    assert found["model"]


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_what_holds_onednn_back_is_told(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """By its name, or by the former one, which it still listens to."""
    monkeypatch.setenv(variable, "AVX2")
    assert environment.cpu.__wrapped__()["onednn_max_cpu_isa"] == "AVX2"


@pytest.mark.parametrize("variable", ["ATEN_CPU_CAPABILITY", "ONEDNN_DEFAULT_FPMATH_MODE"])
def test_what_chooses_other_kernels_is_told(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "default")
    assert environment.cpu.__wrapped__()["variables"] == {variable: "default"}


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("5000 100000", 1), ("", 8)],
)
def test_a_container_s_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(environment, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert environment.usable_cores() == cores


def test_without_a_container_all_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_QUOTA", tmp_path / "none")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert environment.usable_cores() == 8


def test_a_package_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    assert environment.packages.__wrapped__()["no-such-package"] == "not installed"


def test_a_build_without_gpu_goes_by_the_plain_name(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"tensorflow-cpu": "2.21.0", "torch": "2.13.0+cpu"}

    def version(name: str) -> str:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(environment, "version", version)
    found = environment.packages.__wrapped__()
    assert (found["tensorflow"], found["torch"]) == ("2.21.0+cpu", "2.13.0+cpu")


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in small."""
    for name in ("environment.py", "convert/fold.py", "report/html.py", "cli/options.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "matters"),
    [
        ("convert/fold.py", "a = 2\n", True),
        ("environment.py", "a = 2\n", True),
        ("convert/new.py", "", True),
        ("report/html.py", "a = 2\n", False),
        ("cli/options.py", "a = 2\n", False),
        ("results.py", "a = 2\n", False),
        ("pytest_plugin.py", "a = 2\n", False),
        ("acceptance_run.py", "a = 2\n", False),
        ("verdicts.py", "a = 2\n", False),
        ("convert/notes.md", "a = 2\n", False),
        ("convert/fold.py", "a = 1\n", False),
    ],
)
def test_code_that_can_change_an_artefact(
    code: Path, name: str, content: str, matters: bool
) -> None:
    before = environment.code_sha256.__wrapped__()
    (code / name).write_text(content)
    assert (environment.code_sha256.__wrapped__() != before) is matters


def test_a_moved_module_is_other_code(code: Path) -> None:
    before = environment.code_sha256.__wrapped__()
    (code / "convert" / "fold.py").rename(code / "convert" / "folding.py")
    assert environment.code_sha256.__wrapped__() != before


@pytest.mark.parametrize("change", [{"model": "Another"}, {"flags": ["another"]}, {"cores": 99}])
def test_the_fingerprint_moves_with_the_processor(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Also with its name alone: a report says on which its figures were measured."""
    before, cpu = environment.fingerprint(), environment.cpu()
    monkeypatch.setattr(environment, "cpu", lambda: {**cpu, **change})
    assert environment.fingerprint() != before


@pytest.mark.parametrize(("name", "other"), [("code_sha256", "0" * 64), ("packages", {})])
def test_the_fingerprint_moves_with_code_and_packages(
    monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    before = environment.fingerprint()
    monkeypatch.setattr(environment, name, lambda: other)
    assert environment.fingerprint() != before


def test_the_description_is_json() -> None:
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    assert set(found["packages"]) == set(environment.PACKAGES)


def test_outside_a_checkout_there_is_no_commit(code: Path) -> None:
    found = environment.describe()
    assert (found["git_commit"], found["dirty"]) == (None, None)


def test_a_project_in_which_the_package_is_installed_is_not_its_checkout(code: Path) -> None:
    def git(*words: str) -> str:
        by = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        called = ["git", "-C", str(code), *by, *words]
        done = subprocess.run(called, check=True, capture_output=True, text=True)  # noqa: S603
        return done.stdout.strip()

    def told() -> tuple[object, object]:
        found = environment.describe()
        return found["git_commit"], found["dirty"]

    git("init", "-q")
    (code / ".gitignore").write_text("*.py\n")
    git("add", ".gitignore")
    git("commit", "-qm", "The user's own")
    assert told() == (None, None)
    git("add", "-f", "environment.py")
    git("commit", "-qm", "The package's")
    assert told() == (git("rev-parse", "HEAD"), False)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.describe()["git_commit"] is None


@pytest.mark.parametrize(
    ("machine", "flags", "held", "onnxruntime", "torch"),
    [
        ("x86_64", ["avx2", "avx512_vnni"], None, False, False),
        # PyTorch looks for avx512_vnni alone.
        ("x86_64", ["avx2", "avx_vnni"], None, False, True),
        ("AMD64", ["avx512f", "amx_int8"], None, False, True),
        ("x86_64", ["avx2"], None, True, True),
        ("x86_64", [], None, True, True),
        # oneDNN's variable holds PyTorch's kernels back, and no others.
        ("x86_64", ["avx512_vnni"], "AVX2", False, True),
        ("x86_64", ["avx512_vnni"], "avx512_core", False, True),
        ("x86_64", ["avx512_vnni"], "AVX512_CORE_VNNI", False, False),
        ("x86_64", ["avx512_vnni"], "ALL", False, False),
        ("x86_64", ["avx512_vnni"], "AVX2_VNNI", False, True),
        ("x86_64", ["avx512_vnni", "avx_vnni"], "AVX2_VNNI", False, False),
        ("aarch64", ["asimddp"], None, False, False),
        ("arm64", [], None, False, False),
    ],
)
def test_which_kernels_can_saturate_here(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    flags: list[str],
    held: str | None,
    onnxruntime: bool,
    torch: bool,
) -> None:
    cpu = {**environment.cpu(), "flags": flags, "onednn_max_cpu_isa": held}
    monkeypatch.setattr(environment, "cpu", lambda: cpu)
    monkeypatch.setattr("platform.machine", lambda: machine)
    for framework, saturating in (("onnxruntime", onnxruntime), ("torch", torch)):
        reason = environment.saturating_kernels(framework)
        assert (reason is not None) == saturating
    if torch:
        told = f"ONEDNN_MAX_CPU_ISA={held}" if held else "no AVX-512 VNNI"
        assert told in str(environment.saturating_kernels("torch"))


@pytest.mark.parametrize(
    ("flags", "held", "once"),
    [
        (["avx512_vnni"], None, False),
        (["avx512_vnni"], "avx2", True),
        (["avx512_vnni"], "AVX512_CORE", False),
        (["avx512_vnni"], "AVX2_VNNI", True),
        (["avx512_vnni", "avx_vnni"], "AVX2_VNNI", False),
        (["avx512_vnni", "amx_int8"], None, True),
        (["avx512_vnni", "amx_int8"], "AVX512_CORE_FP16", False),
        (["avx512_vnni", "amx_int8"], "AVX10_1_512", False),
        (["avx512_vnni", "amx_int8"], "avx512_core_amx", True),
        (["avx512_vnni", "amx_int8"], "ALL", True),
        (["avx512_vnni", "amx_int8"], "AVX512", True),  # no name of any
    ],
)
def test_how_often_onednn_multiplies(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], held: str | None, once: bool
) -> None:
    monkeypatch.setattr(environment, "cpu", lambda: {"flags": flags, "onednn_max_cpu_isa": held})
    assert environment.onednn_multiplies_once() == once
