"""The command line on the stand-in: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from typer.testing import CliRunner, Result

from resnet8_eval import (
    backends,
    batch_effect,
    cli,
    configurations,
    hints,
    making,
    results,
    standin,
    statistics,
    study,
)
from resnet8_eval.backends import onnxruntime as ort_backend
from resnet8_eval.cifar10 import Split
from resnet8_eval.cli import judging
from resnet8_eval.cli.options import whole_folder
from resnet8_eval.errors import ModelError, SuiteError
from resnet8_eval.gather import gather
from resnet8_eval.inputs import Inputs
from resnet8_eval.manifest import fixtures_dir
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.store import file_sha256
from tests.planted import borrowing
from tests.unit import report_samples

Invoke = Callable[..., Result]

ONNX = configurations.of("onnxruntime-float32")
STANDIN = str(fixtures_dir() / "standin" / "resnet8_standin.h5")
LONG = 5000 * "x"
COMMANDS = [
    [],
    ["assets"],
    ["assets", "fetch"],
    ["convert"],
    ["evaluate"],
    ["compare"],
    ["golden"],
    ["quantize"],
    ["report"],
    ["requirements"],
    ["run"],
    ["cache", "show"],
    ["cache", "size"],
]


@pytest.fixture
def invoke(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, made_here: None) -> Invoke:
    """Run a command with the tests' cache; output and errors apart."""
    monkeypatch.setenv("RESNET8_EVAL_CACHE", str(pipeline.settings.cache_dir))
    monkeypatch.setenv("RESNET8_EVAL_OFFLINE", "1")
    monkeypatch.delenv("RESNET8_EVAL_ASSETS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: object) -> Result:
        return CliRunner().invoke(cli.app, [str(word) for word in words])

    return invoke


def read(done: Result) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "no command")
def test_each_command_has_a_help_worth_reading(invoke: Invoke, words: list[str]) -> None:
    done = invoke(*words, "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.stdout
    assert len(done.stdout.split()) > 20
    if words and words != ["assets", "fetch"]:
        assert "--json" in done.stdout


def test_help_says_what_applies_where_an_option_is_left_out(invoke: Invoke) -> None:
    """Text in square brackets would be taken for the markup of its colours, and not shown."""
    told = " ".join(invoke("study", "--help").stdout.replace("│", " ").split())
    assert "Activation ranges. (default: all three)" in told
    assert "Processes. (default: one for each core)" in told


def test_every_command_is_in_the_help(invoke: Invoke) -> None:
    for command in {words[0] for words in COMMANDS if words}:
        assert f" {command} " in invoke("--help").stdout


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate"],
        ["no-such-command"],
        ["evaluate", "model.onnx", "--assets", "other"],
        ["quantize", "model.onnx", "-o", "out", "--dtype", "int4"],
        ["run", "scores/caffe", "--assets", "stand-in"],
        ["convert", "model.h5"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_exits_with_2(invoke: Invoke, words: list[str]) -> None:
    done = invoke(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Usage:" in done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["evaluate", "nothing.onnx"], "nothing.onnx cannot be used as the model."),
        (["compare", "nothing.onnx", "nothing.onnx"], "nothing.onnx cannot be used as the model."),
        (["evaluate", "{tmp}/model.tflite"], "model.tflite cannot be used as the model."),
        (["evaluate", "{tmp}/model.onnx"], "model.onnx is not an ONNX model"),
        (["report", "nothing.json"], "nothing.json cannot be read"),
        (["report", "{tmp}/model.onnx"], "cannot be read"),
        (
            ["quantize", STANDIN, "-o", "{tmp}/out", "--calibration-count", "9"],
            "of 9 images",
        ),
        (["assets", "--assets-dir", "{tmp}/nowhere"], "There is no folder"),
        (["assets", "--assets-dir", "~nobody-of-that-name/x"], "There is no folder ~nobody"),
        (["assets", "--assets-dir", LONG], "File name too long"),
        (["assets", "--cache-dir", LONG], "File name too long"),
        (["evaluate", f"{LONG}.onnx"], "File name too long"),
        (["compare", f"{LONG}.onnx", f"{LONG}.onnx"], "File name too long"),
        (["convert", f"{LONG}.h5", "-o", "{tmp}/out"], "File name too long"),
        (["convert", "{tmp}/other.h5", "-o", "/proc/x/y"], "cannot be used: No such file"),
        (
            ["convert", "{tmp}/other.h5", "-o", "{tmp}/model.onnx/y"],
            "Not a directory",
        ),
        (["report", LONG], "cannot be read"),
        (["report", "{tmp}/deep.json"], "RecursionError"),
        (
            ["quantize", STANDIN, "-o", "{tmp}/out", "--calibration-seed", "-1"],
            "--calibration-seed -1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60],
)
def test_a_refusal_says_what_is_wrong_and_exits_with_1(
    invoke: Invoke, tmp_path: Path, words: list[str], what: str
) -> None:
    for name in ("model.tflite", "model.onnx", "other.onnx", "other.h5"):
        (tmp_path / name).write_text("no model")
    (tmp_path / "deep.json").write_text(100_000 * "[")
    words = [word.format(tmp=tmp_path) for word in words]
    if words[0] in ("evaluate", "compare", "quantize"):
        words += ["--assets", "stand-in"]
    done = invoke(*words)
    assert done.exit_code == 1
    assert done.stdout == ""
    for part in (what, "expected:", "given:", "next:"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_real_assets_name_the_ways_out(
    invoke: Invoke, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("resnet8_eval.assets._checkouts", list)
    path = model_path(pipeline, ONNX)
    done = invoke("evaluate", path, "--cache-dir", tmp_path)
    assert done.exit_code == 1
    assert "--assets stand-in" in done.stderr
    assert "pretrainedResnet.h5" not in done.stderr  # what is evaluated was given


@pytest.mark.parametrize(
    ("name", "correct"),
    [("onnxruntime-float32", 1766), ("torch-int8-tuned", None)],
)
def test_evaluate_gives_the_recorded_count(
    invoke: Invoke,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    correct: int | None,
) -> None:
    monkeypatch.setattr(hints, "IMAGES", 10)
    record = pipeline.artifact(f"scores/{name}").record
    path = model_path(pipeline, configurations.of(name))
    found = read(invoke("evaluate", path, "--assets", "stand-in", "--json"))
    assert found["assets"] == "stand-in"
    assert found["total"] == 2000
    assert found["correct"] == record["correct"] == (correct or record["correct"])
    assert [(entry["name"], entry["correct"]) for entry in found["per_class"]] == [
        (name, entry["correct"])
        for name, entry in zip(standin.CLASSES, record["per_class"], strict=True)
    ]


@pytest.mark.usefixtures("few")
def test_evaluate_for_people(invoke: Invoke, pipeline: Pipeline, standin_test: Split) -> None:
    done = invoke("evaluate", model_path(pipeline, ONNX), "--assets", "stand-in")
    assert done.exit_code == 0
    first, *classes = done.stdout.splitlines()
    scores = np.load(pipeline.artifact(f"scores/{ONNX.name}").path("scores.npy"))[:200]
    right = int((scores.argmax(axis=1) == standin_test.labels[:200]).sum())
    assert first == f"model.onnx: {right / 2:.2f} % ({right}/200, stand-in images)"
    assert len(classes) == 10


def test_compare_holds_models_against_the_first(
    invoke: Invoke, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "IMAGES", 10)
    rows = [configurations.of(n) for n in ("onnxruntime-float32", "onnxruntime-uint8-tuned")]
    paths = [model_path(pipeline, row) for row in rows]
    found = read(invoke("compare", *paths, "--assets", "stand-in", "--json"))
    baseline, quantized = found["models"]
    record = pipeline.artifact("compare/onnxruntime-uint8-tuned").record
    assert (baseline["delta_pp"], baseline["agreement_percent"]) == (0, 100)
    for key in ("delta_pp", "lost", "gained", "agreement_percent", "mcnemar_p", "flagged", "word"):
        assert quantized[key] == record[key]
    assert quantized["size_bytes"] == paths[1].stat().st_size
    scores = {
        path: np.load(pipeline.artifact(f"scores/{row.name}").path("scores.npy"))
        for path, row in zip(paths, rows, strict=True)
    }
    monkeypatch.setattr(backends, "scores", lambda path, *_, **__: scores[path])
    monkeypatch.setattr(batch_effect, "told", lambda *_: None)
    monkeypatch.setenv("HOME", str(paths[0].parent))
    said = invoke("compare", f"~/{paths[0].name}", paths[1], "--assets", "stand-in").stdout
    assert f"]  p {record['mcnemar_p']:.3f}  agreement" in said
    monkeypatch.setattr(statistics, "paired_interval_pp", lambda *_: (-1.0606, -0.0015))
    monkeypatch.setattr(statistics, "mcnemar_p", lambda *_: 0.0)  # as of a model that guesses
    said = invoke("compare", *paths, "--assets", "stand-in").stdout
    assert "pp [−1.061 to −0.002]  p < 0.001  agreement" in said
    assert "degraded" in said


@pytest.mark.usefixtures("few")
def test_what_a_model_seems_to_be_fed_wrongly_is_told(
    invoke: Invoke, pipeline: Pipeline, tmp_path: Path
) -> None:
    """The same network for [0, 1]: its first kernel times 255."""
    source, unit = model_path(pipeline, ONNX), tmp_path / "unit.onnx"
    model = onnx.load(source)
    first = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    (kernel,) = (entry for entry in model.graph.initializer if entry.name == first)
    scaled = 255 * onnx.numpy_helper.to_array(kernel)
    kernel.CopyFrom(onnx.numpy_helper.from_array(scaled, first))
    onnx.save(model, unit)
    words = ["--assets", "stand-in"]
    told = invoke("evaluate", unit, *words).stdout.splitlines()[-1]
    assert told.startswith("hint: On 100 training images")
    assert told.endswith("give --preprocessing unit.")
    right, wrong = read(invoke("compare", source, unit, *words, "--json"))["models"]
    assert (right["hint"], f"hint: {wrong['hint']}") == (None, told)
    *_, wrong, said = invoke("compare", source, unit, *words).stdout.splitlines()
    assert wrong.startswith("unit.onnx")
    assert said == f"  {told}"
    found = read(invoke("evaluate", unit, *words, "--preprocessing", "unit", "--json"))
    assert (found["correct"], found["hint"]) == (right["correct"], None)
    assert found["preprocessing"]["name"] == "unit"


def test_compare_flags_a_drop(
    invoke: Invoke, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "IMAGES", 10)
    good = model_path(pipeline, ONNX)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(good.read_bytes())
    scores = np.load(pipeline.artifact("scores/onnxruntime-float32").path("scores.npy"))
    found = {good: scores, bad: np.roll(scores, 1, axis=0)}
    monkeypatch.setattr(backends, "scores", lambda path, *_, **__: found[path])
    monkeypatch.setattr(batch_effect, "told", lambda *_: None)
    done = invoke("compare", good, bad, "--assets", "stand-in")
    assert done.exit_code == 0
    baseline, dropped = done.stdout.splitlines()
    assert "FLAGGED" not in baseline
    assert "FLAGGED: drops " in dropped
    assert "degraded" in dropped


@pytest.mark.parametrize(
    ("framework", "dtype", "file"),
    [("onnxruntime", "uint8", "model.onnx"), ("torch", "int8", "model.pt")],
)
def test_quantize_writes_a_model_of_its_type(
    invoke: Invoke, pipeline: Pipeline, tmp_path: Path, framework: str, dtype: str, file: str
) -> None:
    words = ["--framework", framework, "--dtype", dtype, "--calibration-count", "50"]
    source = model_path(pipeline, ONNX)
    out = tmp_path / "out"
    found = read(invoke("quantize", source, "-o", out, *words, "--assets", "stand-in", "--json"))
    assert {path.name for path in out.iterdir()} == {file, "quantization.log"}
    assert list(found["weights"].values()) == [dtype] * 10
    if framework == "onnxruntime":
        assert ort_backend.census(out / file)["weights"] == found["weights"]


@pytest.fixture
def unmade(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command that is to refuse before anything is looked for or made."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("this came too late")

    monkeypatch.setattr(cli, "locate", fail)
    monkeypatch.setattr(cli, "_sound", fail)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def refused(done: Result, what: str) -> None:
    assert done.exit_code == 1, done.output
    for part in (what, "expected:", "given:", "next:     give another --output"):
        assert part in done.stderr


@pytest.mark.parametrize("how", ["as it is", "by a link"])
def test_the_model_that_is_read_is_not_replaced(unmade: Invoke, tmp_path: Path, how: str) -> None:
    model, out = tmp_path / "model.onnx", tmp_path
    model.write_text("float")
    if how == "by a link":
        out = tmp_path / "out"
        out.symlink_to(tmp_path, target_is_directory=True)
    refused(unmade("quantize", model, "-o", out), f"{out / 'model.onnx'}, which is not as")
    assert model.read_text() == "float"


LOGS = {"convert": "conversion.log", "quantize": "quantization.log"}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["convert"], ["model.onnx", "folded.onnx", "model.pt2"]),
        (["convert", "--to", "onnx"], ["model.onnx"]),
        (["quantize"], ["model.onnx"]),
        (["quantize", "--framework", "torch"], ["model.pt"]),
        (["quantize", "--framework", "torch", "--recipe", "stock"], ["model.pt2"]),
    ],
    ids=" ".join,
)
def test_a_model_is_replaced_only_as_the_same_command_wrote_it(
    unmade: Invoke, tmp_path: Path, words: list[str], names: list[str]
) -> None:
    command, *options = words

    def told() -> Result:
        return unmade(command, STANDIN, "-o", tmp_path, *options)

    def log(*commands: str) -> None:
        wrote = [f"wrote {n}, SHA-256 {file_sha256(tmp_path / n)}" for n in names]
        for one, file in LOGS.items():
            (tmp_path / file).write_text("\n".join(["x", *wrote] if one in commands else ["x"]))

    for name in names:
        (tmp_path / name).write_text("earlier")
    refused(told(), f"{tmp_path / names[0]}, which is not as {LOGS[command]} beside it")
    log(*({*LOGS} - {command}))
    refused(told(), f"{tmp_path / names[0]}, which is not as {LOGS[command]} beside it")
    log(*LOGS)
    assert str(told().exception) == "this came too late"
    (tmp_path / names[-1]).write_text("changed since")
    refused(told(), f"{tmp_path / names[-1]}, which is not as {LOGS[command]} beside it")


def test_quantize_may_replace_its_own_and_add_to_it(invoke: Invoke, tmp_path: Path) -> None:
    own = b"what was tried, in another encoding: Gr\xf6\xdfe"
    (tmp_path / "quantization.log").write_bytes(own)
    for words in ([], ["--dtype", "uint8"], ["--framework", "torch"], []):
        done = invoke("quantize", STANDIN, "-o", tmp_path, "--assets", "stand-in", *words)
        assert done.exit_code == 0, done.output
    written = [tmp_path / name for name in ("model.pt", "model.onnx")]
    told = "".join(f"wrote {p.name}, SHA-256 {file_sha256(p)}\n" for p in written)
    assert (tmp_path / "quantization.log").read_bytes() == own + b"\n" + told.encode()


@pytest.mark.parametrize("name", ["epoch10.h5", "two\nlines.h5"])
def test_the_log_names_the_file_that_was_given(
    invoke: Invoke, pipeline: Pipeline, tmp_path: Path, name: str
) -> None:
    """Its artefact was made from the same bytes by another name."""
    model, out = tmp_path / name, tmp_path / "out"
    shutil.copyfile(STANDIN, model)
    done = invoke("convert", model, "-o", out, "--to", "onnx")
    assert done.exit_code == 0, done.output
    first, *more = (out / "conversion.log").read_text(encoding="utf-8").splitlines()
    assert first == f"file: {name!r}"
    kept = pipeline.artifact("onnx").path("conversion.log").read_text(encoding="utf-8")
    assert more[:-1] == kept.splitlines()
    assert more[-1] == f"wrote model.onnx, SHA-256 {file_sha256(out / 'model.onnx')}"
    assert f"model: SHA-256 {file_sha256(model)}" in more
    assert Path(STANDIN).name not in kept


def test_a_conversion_leaves_no_part_of_an_earlier_one(invoke: Invoke, tmp_path: Path) -> None:
    """They would be of another model than the one that the log beside them names."""
    assert invoke("convert", STANDIN, "-o", tmp_path).exit_code == 0
    (tmp_path / "model.pt").touch()  # of quantize
    assert invoke("convert", STANDIN, "-o", tmp_path, "--to", "onnx").exit_code == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.onnx", "conversion.log", "model.pt"}


def test_a_conversion_leaves_what_it_did_not_write(invoke: Invoke, tmp_path: Path) -> None:
    """Planted: one file of the user's by a name of convert's, and one that was changed since."""
    words = ["convert", STANDIN, "-o", tmp_path, "--to", "onnx"]
    assert invoke("convert", STANDIN, "-o", tmp_path).exit_code == 0
    (tmp_path / "model.pt2").write_text("changed")
    assert invoke(*words).exit_code == 0
    (tmp_path / "folded.onnx").write_text("the user's own")
    assert invoke(*words).exit_code == 0
    assert (tmp_path / "model.pt2").read_text() == "changed"
    assert (tmp_path / "folded.onnx").read_text() == "the user's own"


@pytest.mark.parametrize(
    "words",
    [
        ("cache", "clear", "--cache-dir="),
        ("assets", "--assets-dir="),
        ("convert", "fixtures/standin/resnet8_standin.h5", "-o", ""),
    ],
    ids=lambda words: words[0],
)
def test_a_folder_without_a_name_is_refused(unmade: Invoke, words: tuple[str, ...]) -> None:
    done = unmade(*words)
    assert done.exit_code == 2
    assert "got no name" in " ".join(done.stderr.replace("│", " ").split())


def test_a_report_does_not_replace_its_results(unmade: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "report.html"  # which the page is called, beside its results
    path.write_text(results.encode(report_samples.record(report_samples.all_met())))
    before = path.read_text()
    for words in ([], ["-o", path]):
        refused(unmade("report", path, *words), f"{path}, the file that is read")
    assert path.read_text() == before


def test_a_folder_is_written_whole_and_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point's parent is on another disk, and another folder's may not be writable."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "other").touch()
    replace, moved = Path.replace, []

    def within(path: Path, target: Path) -> Path:
        moved.append(path)
        assert path.is_relative_to(out), "Invalid cross-device link"
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", within)
    with whole_folder(out) as folder:
        (folder / "model").touch()
        assert folder.name.startswith(".")
    assert moved
    assert sorted(path.name for path in out.iterdir()) == ["model", "other"]


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fail(output: Path) -> None:
        with whole_folder(output) as folder:
            (folder / "model").touch()
            raise KeyboardInterrupt

    kept = tmp_path / "kept"
    kept.mkdir()
    for output in (tmp_path / "new" / "out", kept):
        with pytest.raises(KeyboardInterrupt):
            fail(output)
    assert list(tmp_path.rglob("*")) == [kept]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("dangling", "No such file or directory"), ("new/" + 300 * "x", "File name too long")],
)
def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    unmade: Invoke, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    done = unmade("convert", STANDIN, "-o", tmp_path / name)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: A file or folder cannot be used: {reason}.")
    assert [path.name for path in tmp_path.iterdir()] == ["dangling"]


@pytest.mark.parametrize("command", ["convert", "quantize", "study"])
def test_no_scratch_folder_lies_there_while_a_command_works(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It would stay where the process is killed."""
    seen: list[list[Path]] = []

    def work(*_: object, **__: object) -> None:
        seen.append(list(tmp_path.iterdir()))
        raise SystemExit(9)

    monkeypatch.setattr(cli, "_sound", work)
    monkeypatch.setattr(study, "measure_all", work)
    words = {"convert": [STANDIN], "quantize": [STANDIN, "--assets=stand-in"]}
    words["study"] = ["--assets=stand-in"]
    assert invoke(command, *words[command], "-o", tmp_path / "out").exit_code == 9
    assert seen == [[]]


def test_a_closed_stream_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a file that is opened gets its number, and what a framework writes."""
    streams = ("stdin", "stdout", "stderr")
    for name in streams:
        monkeypatch.setattr(sys, name, None)
    cli._fill_streams()
    for name in streams:
        with getattr(sys, name) as stream:
            assert os.get_inheritable(stream.fileno())
            assert stream.write("x") == 1


def test_run_lists_and_makes_stages(invoke: Invoke, pipeline: Pipeline) -> None:
    listed = invoke("run", "--assets", "stand-in").stdout.splitlines()
    assert [line.split()[1] for line in listed] == list(pipeline.stages)
    assert "made     calibration" in listed
    told = read(invoke("run", "--assets", "stand-in", "--json"))
    assert [f"{'made' if one['made'] else 'missing':8} {one['stage']}" for one in told] == listed
    found = read(
        invoke("run", "calibration", "compare/torch-int8-tuned", "--assets", "stand-in", "--json")
    )
    assert found["calibration"] == pipeline.artifact("calibration").record
    assert found["compare/torch-int8-tuned"] == pipeline.artifact("compare/torch-int8-tuned").record


def test_run_tells_why_a_stage_cannot_be_made(invoke: Invoke) -> None:
    words = ["run", "calibration", "--assets", "stand-in", "--calibration-count", "3010"]
    done = invoke(*words)
    assert done.exit_code == 1
    assert "calibration FAILED" in done.stderr
    assert "choose another --calibration-count" in done.stderr


def test_assets_shows_each_file_and_where_it_is(invoke: Invoke) -> None:
    found = read(invoke("assets", "--json"))
    states = {(entry["name"], entry["state"]) for entry in found}
    assert ("resnet8_standin.h5", "verified") in states
    assert {entry["state"] for entry in found} <= {"verified", "missing", "damaged"}
    done = invoke("assets")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == len(found)


@pytest.fixture
def recorded(pipeline: Pipeline, tmp_path: Path) -> Path:
    """A results file of a run that measured, but judged nothing."""
    built = gather(pipeline, {}, complete=False, command="pytest", started=time.time())
    path = tmp_path / "results.json"
    path.write_text(results.encode(built), encoding="utf-8")
    return path


def test_report_is_rebuilt_from_results_alone(invoke: Invoke, recorded: Path) -> None:
    done = invoke("report", recorded)
    assert done.exit_code == 0
    page = recorded.with_name("report.html").read_text(encoding="utf-8")
    assert "STAND-IN RUN" in page
    shutil.move(recorded, recorded.with_name("moved.json"))
    target = recorded.with_name("other.html")
    assert invoke("report", recorded.with_name("moved.json"), "-o", target).exit_code == 0
    assert target.read_text(encoding="utf-8") == page


def test_report_prints_markdown_json_and_what_moved(invoke: Invoke, recorded: Path) -> None:
    assert results.checked(read(invoke("report", recorded, "--json"))) == results.read(recorded)
    assert "PyTorch" in invoke("report", recorded, "--markdown").stdout
    newer = recorded.with_name("newer.json")
    later = msgspec.structs.replace(results.read(recorded), created="2099-01-01T00:00:00+00:00")
    newer.write_text(results.encode(later), encoding="utf-8")
    moved = invoke("report", "--diff", recorded, newer).stdout
    refused = invoke("report", "--diff", recorded, newer, "--markdown")
    assert refused.exit_code == 2
    assert "do not go together" in refused.stderr
    assert "Nothing moved." in moved.splitlines()
    assert moved.index(results.read(recorded).created[:10]) < moved.index("2099-01-01")
    assert not recorded.with_name("report.html").exists()


def test_a_difference_can_be_read_by_programs_and_fail_them(invoke: Invoke, tmp_path: Path) -> None:
    newer, older = tmp_path / "newer.json", tmp_path / "older.json"
    newer.write_text(results.encode(report_samples.record(report_samples.all_met())))
    words = ("report", "--diff", older, newer, "--json", "--fail-on-change")

    def told(built: object) -> tuple[int, Any]:
        older.write_text(json.dumps(built))
        done = invoke(*words)
        return done.exit_code, json.loads(done.stdout)

    built = json.loads(newer.read_text())
    built["environment"]["packages"]["torch"] = "1.0"
    status, found = told(built)
    assert (status, found["changed"]) == (0, False)
    assert found["summary"] == "Moved: versions and machine (1): torch."
    assert found["versions"] == [{"what": "torch", "old": "1.0", "new": "2.13.0+cpu"}]
    built["milestones"]["v1_0"]["met"] -= 1
    status, found = told(built)
    assert (status, found["changed"]) == (1, True)
    assert [change["what"] for change in found["verdicts"]] == ["v1_0"]
    assert invoke("report", newer, "--fail-on-change").exit_code == 2


@pytest.mark.parametrize(
    ("output", "reason"),
    [("{tmp}/nowhere/x.html", "No such file or directory"), ("{tmp}", "Is a directory")],
)
def test_a_report_that_cannot_be_written(
    invoke: Invoke, recorded: Path, output: str, reason: str
) -> None:
    target = output.format(tmp=recorded.parent)
    done = invoke("report", recorded, "-o", target)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: A file or folder cannot be used: {reason}.")
    assert f"given:    {target}\n" in done.stderr


@pytest.mark.parametrize("words", [[], ["--markdown"], ["--json"], ["--diff", "{results}"]])
def test_results_nested_too_deep_for_a_report_are_refused(
    invoke: Invoke, recorded: Path, words: list[str]
) -> None:
    """JSON's own reader takes 700 levels, and the page's template does not."""
    built = json.loads(recorded.read_text())
    built["environment"]["cpu"]["planted"] = json.loads(700 * "[" + 700 * "]")
    recorded.write_text(json.dumps(built))
    done = invoke("report", recorded, *(word.format(results=recorded) for word in words))
    assert done.exit_code == 1
    assert "got `array` - at `$.environment.cpu[...]" in done.stderr


def test_an_error_that_is_not_about_a_file_is_no_refusal(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("planted")

    monkeypatch.setattr("resnet8_eval.assets.survey", fail)
    assert isinstance(invoke("assets").exception, OSError)


@pytest.fixture
def results_file(tmp_path: Path) -> Path:
    """A results file that no pipeline is needed for."""
    path = tmp_path / "results.json"
    path.write_text(results.encode(report_samples.record(report_samples.all_met())))
    return path


def test_a_report_leaves_a_link_a_link(unmade: Invoke, results_file: Path) -> None:
    page, link = results_file.with_name("page"), results_file.with_name("link")
    page.touch()
    link.symlink_to(page)
    assert unmade("report", results_file, "-o", link).exit_code == 0
    assert link.is_symlink()
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_report_is_written_into_a_pipe(unmade: Invoke, results_file: Path) -> None:
    pipe, found = results_file.with_name("pipe"), list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text("utf-8")), daemon=True)
    reader.start()
    assert unmade("report", results_file, "-o", pipe).exit_code == 0
    reader.join(timeout=10)
    assert found[0].startswith("<!DOCTYPE html>")
    assert pipe.is_fifo()


def test_report_refuses_results_that_break_the_contract(invoke: Invoke, recorded: Path) -> None:
    broken = json.loads(recorded.read_text())
    del broken["milestones"]["v1_1"]
    recorded.write_text(json.dumps(broken))
    done = invoke("report", recorded)
    assert done.exit_code == 1
    assert "does not keep the form" in done.stderr


def test_results_whose_parts_do_not_fit_are_refused_in_a_sentence(
    invoke: Invoke, recorded: Path
) -> None:
    """Planted: no layer of the network that is drawn gives what the second one reads."""
    broken = json.loads(recorded.read_text())
    broken["network"]["layers"][0]["name"] = "another"
    recorded.write_text(json.dumps(broken))
    done = invoke("report", recorded)
    assert done.exit_code == 1
    assert "has parts that do not fit one another" in done.stderr
    assert "given:    KeyError: " in done.stderr


def test_a_class_that_there_is_not_is_refused_in_a_sentence(
    unmade: Invoke, results_file: Path
) -> None:
    broken = json.loads(results_file.read_text())
    image = {"index": 3, "true": 99, "baseline_answer": 0, "answer": 1, "png_base64": ""}
    image |= {"baseline_score": 0.9, "score": 0.8}
    broken["configurations"][3] |= {"changed": [image], "lost": 1}
    results_file.write_text(json.dumps(broken))
    done = unmade("report", results_file)
    assert done.exit_code == 1
    assert "has parts that do not fit one another" in done.stderr
    assert "has no element 99" in done.stderr


def test_cache_shows_verifies_and_clears(
    invoke: Invoke, pipeline: Pipeline, tmp_path: Path
) -> None:
    from tests.planted import borrowing

    made = borrowing(pipeline, tmp_path, "calibration", "folded")
    rows = read(invoke("cache", "show", "--cache-dir", tmp_path, "--json"))
    assert {row["stage"] for row in rows} == {"calibration", "folded"}
    assert all(row["whole"] and row["bytes"] > 0 for row in rows)
    assert "2 of 2 artefacts are whole" in invoke("cache", "verify", "--cache-dir", tmp_path).stdout
    made.artifact("folded").path("folded.onnx").write_bytes(b"")
    done = invoke("cache", "verify", "--cache-dir", tmp_path)
    assert done.exit_code == 1
    assert "1 of 2 artefacts are whole" in done.stdout
    assert "2 artefacts removed" in invoke("cache", "clear", "--cache-dir", tmp_path).stdout
    assert read(invoke("cache", "show", "--cache-dir", tmp_path, "--json")) == []


def test_cache_size_adds_up(invoke: Invoke, pipeline: Pipeline, tmp_path: Path) -> None:
    from tests.planted import borrowing

    borrowing(pipeline, tmp_path, "calibration")
    (tmp_path / "download").write_bytes(b"x" * 5000)
    rows = read(invoke("cache", "show", "--cache-dir", tmp_path, "--json"))
    found = read(invoke("cache", "size", "--cache-dir", tmp_path, "--json"))
    artifacts = rows[0]["bytes"]
    assert found == {
        "folder": str(tmp_path),
        "bytes": {"artifacts": artifacts, "all": artifacts + 5000},
    }
    artefacts, everything = invoke("cache", "size", "--cache-dir", tmp_path).stdout.splitlines()
    assert artefacts.split() == [f"{artifacts / 1000:,.1f}", "kB", "artefacts"]
    assert everything.endswith(str(tmp_path))


def record_without_an_end(path: Path) -> None:
    path.mkdir()
    (path / "record.json").write_text("[" * 200_000)


def dangling_link_inside(path: Path) -> None:
    path.mkdir()
    (path / "data").symlink_to("nowhere")


STRANGE: dict[str, Callable[[Path], object]] = {
    "a file": Path.touch,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to a folder": lambda path: path.symlink_to("/usr"),
    "a record without an end": record_without_an_end,
    "a dangling link inside": dangling_link_inside,
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_the_care_of_a_cache_bears_whatever_lies_in_it(
    invoke: Invoke, tmp_path: Path, strange: Callable[[Path], object]
) -> None:
    (tmp_path / "artifacts").mkdir()
    strange(tmp_path / "artifacts" / "a-key")
    (row,) = read(invoke("cache", "show", "--cache-dir", tmp_path, "--json"))
    assert (row["stage"], row["whole"], row["unfinished"]) == (None, False, False)
    assert "damaged; not served" in invoke("cache", "show", "--cache-dir", tmp_path).stdout
    assert invoke("cache", "size", "--cache-dir", tmp_path).exit_code == 0
    done = invoke("cache", "verify", "--cache-dir", tmp_path)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (
        1,
        f"damaged: {tmp_path / 'artifacts' / 'a-key'}",
    )
    assert "1 artefacts removed" in invoke("cache", "clear", "--cache-dir", tmp_path).stdout
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_what_is_being_made_is_shown_and_is_not_damaged(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "a-key.partial").mkdir(parents=True)
    assert invoke("cache", "verify", "--cache-dir", tmp_path).exit_code == 0
    (row,) = read(invoke("cache", "show", "--cache-dir", tmp_path, "--json"))
    assert (row["whole"], row["unfinished"]) == (False, True)
    assert " unfinished\n" in invoke("cache", "show", "--cache-dir", tmp_path).stdout


def test_a_cache_that_cannot_be_cleared_says_so(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "artifacts" / "a-key").mkdir(parents=True)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    done = invoke("cache", "clear", "--cache-dir", tmp_path)
    assert done.exit_code == 1
    assert "The cache folder cannot be written to: Permission denied." in done.stderr


@pytest.mark.parametrize("how", ["variable", "option"])
def test_the_users_own_folder_may_be_written_as_a_tilde(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--cache-dir=~/cache"] if how == "option" else []
    if how == "variable":
        monkeypatch.setenv("RESNET8_EVAL_CACHE", "~/cache")
    found = read(invoke("cache", "size", "--json", *words))
    assert found["folder"] == str(tmp_path / "cache")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("structure/onnx", ["convert"]),
        ("structure/onnx", ["quantize", "--assets=stand-in"]),
        ("parameters/tuned", ["quantize", "--assets=stand-in"]),
        ("model/onnxruntime-int8-tuned", ["quantize", "--assets=stand-in"]),
        ("structure/onnx", ["study", "--assets=stand-in", "--keras-model"]),
    ],
)
def test_what_is_no_longer_the_same_network_is_not_handed_out(
    invoke: Invoke,
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    words: list[str],
) -> None:
    asked = ["structure/onnx", "structure/torch", "model/onnxruntime-int8-tuned"]
    needed = [name for name in pipeline.closure(asked) if name != stage]
    made = borrowing(pipeline, tmp_path / "cache", *needed)
    wrong = {"name": "layers", "expected": "9", "observed": "8", "ok": False}
    honest = pipeline.artifact(stage)

    def produce(out: Path) -> dict[str, Any]:
        for name in honest.files:
            shutil.copyfile(honest.path(name), out / name)
        return {**honest.record, "checks": [wrong]}

    made.store.produce(stage, made.key(stage), produce)
    monkeypatch.setenv("RESNET8_EVAL_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    done = invoke(*words, pipeline.settings.assets.model, "-o", out)
    assert done.exit_code == 1
    assert "does not stand for it: layers" in done.stderr
    assert not out.exists()
    assert read(invoke(*step_of(done)))[stage]["checks"] == [wrong]


def step_of(done: Result) -> list[str]:
    """The words of the command that a refusal gives; none where it gives none."""
    step = done.stderr.partition("python -m resnet8_eval ")[2]
    return shlex.split(step.partition(", and this run's own")[0])


@pytest.mark.parametrize("kind", ["Keras", "ONNX"])
def test_a_stage_that_failed_gives_a_step_that_works_or_none(
    invoke: Invoke,
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """`run` takes no ONNX model."""
    borrowing(pipeline, tmp_path / "cache", "onnx")
    monkeypatch.setenv("RESNET8_EVAL_CACHE", str(tmp_path / "cache"))
    model = {"Keras": pipeline.settings.assets.model, "ONNX": model_path(pipeline, ONNX)}[kind]

    def fail(_: Inputs) -> None:
        raise ValueError("planted")

    with monkeypatch.context() as broken:
        broken.setattr(making, "folded", fail)
        done = invoke("quantize", model, "-o", tmp_path / "out", "--assets", "stand-in")
    assert done.exit_code == 1
    assert "Stage folded failed." in done.stderr
    words = step_of(done)
    assert bool(words) == (kind == "Keras")
    if words:
        assert invoke(*words).exit_code == 0


def test_what_is_not_the_same_network_as_an_onnx_model_gives_no_step_that_fails(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    given = replace(pipeline.settings.assets, model=tmp_path / "own.onnx", user_model=True)
    own = Pipeline(replace(pipeline.settings, assets=given, cache_dir=tmp_path))
    wrong = {"name": "layers", "expected": "9", "observed": "8", "ok": False}
    own.store.produce("onnx", own.key("onnx"), lambda _: {"checks": [wrong]})
    with pytest.raises(ModelError, match="does not stand for it: layers") as caught:
        cli._sound(own, ["onnx"])
    assert caught.value.next_step == "do not use it"


def test_what_frameworks_write_while_they_start_is_shown_only_where_the_work_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def work(error: BaseException | None) -> None:
        with judging._working("work"):
            os.write(2, b"I0000 noise of a library\n")
            if error:
                raise error

    work(None)
    assert "noise" not in capfd.readouterr().err
    told = SuiteError("It failed.", expected="it", given="nothing", next_step="try again")
    with pytest.raises(SuiteError):
        work(told)
    assert "noise" not in capfd.readouterr().err
    with pytest.raises(MemoryError):
        work(MemoryError())
    assert "noise of a library" in capfd.readouterr().err
    os.write(2, b"and standard error is what it was\n")
    assert "what it was" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("assets --json --cache-dir elsewhere fetch", "--cache-dir and --json would do nothing"),
        ("run --fresh --assets stand-in", "--fresh would do nothing with no stage named"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(invoke: Invoke, words: str, what: str) -> None:
    done = invoke(*words.split())
    assert done.exit_code == 2
    assert what in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", [["study", "-o", "out"], ["run", "calibration"]])
def test_the_pretrained_model_is_fed_as_it_was_trained(invoke: Invoke, command: list[str]) -> None:
    done = invoke(*command, "--preprocessing", "unit", "--assets", "stand-in")
    assert done.exit_code == 2
    assert "name it with --keras-model" in " ".join(done.stderr.replace("│", " ").split())


def test_a_study_is_of_one_kind(invoke: Invoke) -> None:
    done = invoke("study", "--bits", "--budget", 60, "-o", "out")
    assert done.exit_code == 2
    assert "give one of --budget, --epochs and --bits" in " ".join(
        done.stderr.replace("│", " ").split()
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--bits --cell torch-int8-tuned", "--cell would do nothing with --bits"),
        ("--epochs 0 --ranges mse", "--ranges would do nothing with --epochs"),
        (
            "--budget 60 --ranges mse --granularity per-tensor",
            "--ranges and --granularity would do nothing with --budget",
        ),
        (
            "--cell torch-int8-stock --ranges mse",
            "--ranges would do nothing with stock rows alone",
        ),
        ("--images 9", "should be greater than or equal to 10"),
        ("--on test --images 10", "--images would do nothing with --on test"),
        ("--scheduler tcp://localhost:1 --jobs 2", "--jobs would do nothing with --scheduler"),
        ("--jobs 0", "0 processes measure nothing"),
        ("--scheduler nonsense", "'nonsense' is no address such as tcp://host:8786"),
        ("--scheduler http://localhost:1", "is no address such as"),
    ],
)
def test_a_study_refuses_what_would_do_nothing(invoke: Invoke, words: str, what: str) -> None:
    done = invoke("study", *words.split(), "-o", "out")
    assert done.exit_code == 2
    assert what in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "given", "option"),
    [
        ("--images 2995", "--count 250 and --images 2995: ", "--count or --images"),
        ("--count 3001 --on test", "--count 3001 with", "--count"),
        ("--budget 60", "--count 1000 and --images 2000: 0 are left", "--count or --images"),
        ("--budget 60 --count 2950 --on test", "--count 2950: 50 are left", "--count"),
        (
            "--epochs 1 --count 20 --images 2950",
            "--count 20 and --images 2950: 50 are left",
            "--count or --images",
        ),
        ("--count 5", "--count 5 with", "--count"),
        ("--seed -1", "--seed -1", "--seed"),
    ],
)
def test_a_study_advises_an_option_that_it_has(
    invoke: Invoke, tmp_path: Path, words: str, given: str, option: str
) -> None:
    done = invoke("study", *words.split(), "-o", tmp_path, "--assets", "stand-in")
    assert done.exit_code == 1
    assert f"given:    {given}" in done.stderr
    assert f"choose another {option}\n" in done.stderr


def test_a_study_without_its_scheduler_says_so(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_CONNECT_SECONDS", 1)
    words = ["--scheduler", "tcp://localhost:1", "--cell", "torch-int8-stock", "--assets=stand-in"]
    done = invoke("study", *words, "-o", tmp_path)
    assert done.exit_code == 1
    assert "error: No Dask scheduler answers at tcp://localhost:1." in done.stderr
    assert "leave out --scheduler" in done.stderr


def test_a_study_that_cannot_be_written_does_not_begin(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take hours; what it found was lost at their end."""

    def measured(*_: object, **__: object) -> list[study.Row]:
        raise AssertionError("it began")

    monkeypatch.setattr(study, "measure_all", measured)
    (tmp_path / "taken").touch()
    done = invoke("study", "--assets", "stand-in", "-o", tmp_path / "taken")
    assert done.exit_code == 1
    assert f"given:    {tmp_path / 'taken'}" in done.stderr


@pytest.mark.parametrize(
    "words",
    ["--bits", "--epochs 0 --epochs 0", "--budget 60 --budget 60", "--cell torch-int8-stock " * 2],
)
def test_each_study_has_every_count_and_seed_once(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    asked: list[study.Task] = []

    def measured(tasks: list[study.Task], *_: Any, **__: Any) -> list[study.Row]:
        asked.extend(tasks)
        return [{"count": task.count} for task in tasks]

    monkeypatch.setattr(study, "measure_all", measured)
    monkeypatch.setattr(study, "summarize", list)
    sets = ["--count", "50", "--count", "60", "--seed", "3", "--seed", "4", "--seed", "4"]
    done = invoke("study", *words.split(), *sets, "-o", tmp_path, "--assets", "stand-in")
    assert done.exit_code == 0, done.output
    drawn = {(task.count, task.seed) for task in asked}
    assert drawn == {(50, 3), (50, 4), (60, 3), (60, 4)}
    assert len(asked) == len({*asked})
    assert {task.cells for task in asked} <= {(), ("torch-int8-stock",)}
    assert {task.budgets for task in asked} <= {(), (60.0,)}


def test_a_seed_that_no_run_has_is_refused_at_once(invoke: Invoke) -> None:
    done = invoke("run", "calibration@1000000", "--assets", "stand-in")
    assert done.exit_code == 2
    assert "there is no stage of seed 1000000" in " ".join(done.stderr.replace("│", " ").split())
