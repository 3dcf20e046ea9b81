"""The store: whole or not there, made once, and never stale or damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval.errors import StageError
from resnet8_eval.store import RECORD_FILE, TRAINING, Artifact, Store, digest, file_sha256, size

KEY = digest("a key")


class Maker:
    """Writes two files, and counts how often it is asked to."""

    def __init__(self, **record: Any) -> None:
        self.calls = 0
        self.record = record or {"count": 3, "list": [1, 2.5, None, "é"]}
        self.found: list[str] = []

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        self.found += [path.name for path in folder.iterdir()]
        (folder / "data.bin").write_bytes(b"\x00\xff" * 100)
        (folder / "note.txt").write_text("whole")
        return self.record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def folders(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "artifacts").iterdir())


def test_a_hit_is_what_was_made(store: Store) -> None:
    make = Maker()
    made = store.produce("scores/torch-int8-tuned", KEY, make)
    again = Store(store.root).produce("scores/torch-int8-tuned", KEY, make)
    assert again == made == store.get("scores/torch-int8-tuned", KEY)
    assert make.calls == 1
    assert made.record == make.record
    assert made.path("note.txt").read_text() == "whole"
    assert made.files == {n: file_sha256(made.path(n)) for n in ("data.bin", "note.txt")}
    assert (made.stage, made.key) == ("scores/torch-int8-tuned", KEY)
    assert made.seconds >= 0


def test_a_run_discards_what_others_have_made_and_nothing_of_its_own(store: Store) -> None:
    make, root = Maker(), store.root
    made = Store(root, "one").produce("stage", KEY, make)
    assert not Store(root, "one").discard("stage", KEY)
    assert Store(root, "other").get("stage", KEY) == made
    for _ in range(2):  # the second time nothing is there, which is no error
        assert Store(root, "other").discard("stage", KEY)
        assert store.get("stage", KEY) is None
    again = Store(root, "other").produce("stage", KEY, make)
    assert (again.run, make.calls) == ("other", 2)
    assert again.created > made.created


def test_what_older_code_made_is_whole_and_of_another_run(store: Store) -> None:
    """It names no run."""
    made = Store(store.root, "one").produce("stage", KEY, Maker())
    seal_again(lambda body: body.pop("run"))(made)
    found = Store(store.root, "one").get("stage", KEY)
    assert found is not None
    assert found.run == ""
    assert Store(store.root, "one").discard("stage", KEY)
    assert store.get("stage", KEY) is None


def test_another_key_or_stage_is_another_artefact(store: Store) -> None:
    make = Maker()
    for stage, key in (("a", KEY), ("b", KEY), ("a", digest("another"))):
        store.produce(stage, key, make)
    assert make.calls == 3
    assert all(store.get(stage, key) for stage, key in (("a", KEY), ("a", digest("another"))))
    assert store.get("a", digest("a third")) is None


def test_nothing_is_there_before_it_is_made(store: Store) -> None:
    assert store.get("a", KEY) is None
    assert list(store.artifacts()) == []
    assert store.clear() == 0
    assert not store.root.exists()


def test_what_lies_under_another_name_is_not_served(store: Store) -> None:
    """Whole, and sealed, but not what was asked for."""
    make = Maker()
    good = store.produce("scores/onnxruntime-float32", KEY, make)
    folder = store.produce("scores/onnxruntime-int8-tuned", KEY, make).folder
    shutil.rmtree(folder)
    shutil.copytree(good.folder, folder)
    assert store.get("scores/onnxruntime-int8-tuned", KEY) is None
    assert [found for _, found in store.artifacts()] == [good, None]
    again = store.produce("scores/onnxruntime-int8-tuned", KEY, make)
    assert (again.stage, make.calls) == ("scores/onnxruntime-int8-tuned", 3)


@pytest.mark.parametrize(
    ("stage", "key"), [("scores-torch/int8", KEY), ("scores/torch-int8-tuned", KEY[:-1] + "_")]
)
def test_what_has_the_same_name_is_not_served_for_another(
    store: Store, stage: str, key: str
) -> None:
    """A folder's name holds no slash, and a part of the key."""
    store.produce("scores/torch-int8-tuned", KEY, Maker())
    assert store.get(stage, key) is None
    made = store.produce(stage, key, Maker())
    assert (made.stage, made.key) == (stage, key)


def edit_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Artifact], object]:
    def edit(made: Artifact) -> None:
        body = json.loads(made.path(RECORD_FILE).read_text())
        change(body)
        made.path(RECORD_FILE).write_text(json.dumps(body))

    return edit


def seal_again(change: Callable[[dict[str, Any]], object]) -> Callable[[Artifact], object]:
    """Edit a record as someone would who can compute its seal."""

    def edit(body: dict[str, Any]) -> None:
        del body["sha256"]
        change(body)
        body["sha256"] = digest(body)

    return edit_record(edit)


def replaced(name: str, put: Callable[[Path], object]) -> Callable[[Artifact], object]:
    """Put something in the place of a file, or of the whole folder if `name` is empty."""

    def replace(made: Artifact) -> None:
        path = made.folder / name
        away = made.folder.parents[1] / "away"
        path.rename(away)
        put(path)

    return replace


def link_to_what_it_was(path: Path) -> None:
    root = next(parent for parent in path.parents if (parent / "away").exists())
    path.symlink_to(root / "away")


DAMAGE: dict[str, Callable[[Artifact], object]] = {
    "a byte of a file": lambda made: made.path("data.bin").write_bytes(b"\x00\xfe" * 100),
    "a file cut short": lambda made: made.path("data.bin").write_bytes(b"\x00\xff" * 99),
    "a file gone": lambda made: made.path("data.bin").unlink(),
    "the record": edit_record(lambda body: body["record"].update(count=4)),
    "the checksum of a file": edit_record(lambda body: body["files"].update({"note.txt": "0"})),
    "a file left out": edit_record(lambda body: body["files"].pop("data.bin")),
    "the seal": edit_record(lambda body: body.update(sha256="0" * 64)),
    "no seal": edit_record(lambda body: body.pop("sha256")),
    "half a record": lambda made: made.path(RECORD_FILE).write_text('{"sha256": "'),
    "a record of another kind": lambda made: made.path(RECORD_FILE).write_text("[]"),
    "a record that is no text": lambda made: made.path(RECORD_FILE).write_bytes(b"\xff\xfe\x00"),
    "an empty record": lambda made: made.path(RECORD_FILE).write_bytes(b""),
    "no record": lambda made: made.path(RECORD_FILE).unlink(),
    "a record too deep": lambda made: made.path(RECORD_FILE).write_text("[" * 200_000),
    "a part of the record too deep": lambda made: made.path(RECORD_FILE).write_text(
        f'{{"sha256": "", "record": {"[" * 900 + "]" * 900}}}'
    ),
    "a field too many": seal_again(lambda body: body.update(more=1)),
    "a field too few": seal_again(lambda body: body.pop("seconds")),
    "a file too many": lambda made: made.path("more.txt").write_text("more"),
    "a folder too many": lambda made: made.path("more").mkdir(),
    "a dangling link too many": lambda made: made.path("more").symlink_to("nowhere"),
    "a pipe too many": lambda made: os.mkfifo(made.path("more")),
    "a pipe for the record": replaced(RECORD_FILE, os.mkfifo),
    "a link for a file": replaced("data.bin", link_to_what_it_was),
    "a link for the record": replaced(RECORD_FILE, link_to_what_it_was),
    "a file for the folder": replaced("", Path.touch),
    "a pipe for the folder": replaced("", os.mkfifo),
    "a link for the folder": replaced("", link_to_what_it_was),
    "a dangling link for the folder": replaced("", lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_not_served_and_is_made_anew(
    store: Store, damage: Callable[[Artifact], object]
) -> None:
    make = Maker()
    first = store.produce("a", KEY, make)
    damage(first)
    assert store.get("a", KEY) is None
    assert [found for _, found in store.artifacts()] == [None]
    again = store.produce("a", KEY, make)
    assert make.calls == 2
    assert make.found == []  # the second time, too, it starts from an empty folder
    assert (again.record, again.files) == (first.record, first.files)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_clear_takes_away_what_is_damaged_and_follows_no_link(
    store: Store, damage: Callable[[Artifact], object]
) -> None:
    damage(store.produce("a", KEY, Maker()))
    away = store.root / "away"
    before = sorted(away.iterdir()) if away.is_dir() else None
    assert store.clear() == 1
    assert folders(store) == []
    assert before is None or sorted(away.iterdir()) == before


@pytest.mark.parametrize("obstacle", [Path.touch, os.mkfifo, lambda path: path.symlink_to("..")])
def test_what_stands_in_the_way_of_a_producer_goes_away(
    store: Store, obstacle: Callable[[Path], object]
) -> None:
    folder = store.produce("a", KEY, Maker()).folder
    shutil.rmtree(folder)
    obstacle(folder.with_name(folder.name + ".partial"))
    store.produce("a", KEY, Maker())
    assert folders(store) == [folder.name]


def test_what_another_process_removes_meanwhile_is_not_damaged(store: Store) -> None:
    for stage in "abc":
        store.produce(stage, KEY, Maker())
    found = store.artifacts()
    next(found)
    shutil.rmtree(store.root / "artifacts")
    assert list(found) == []


def test_what_is_being_made_is_no_damage(store: Store) -> None:
    seen = []

    def make(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        seen.append((list(store.artifacts()), list(store.unfinished()), store.clear()))
        return {}

    made = store.produce("a", KEY, make)
    assert seen == [([], [made.folder.with_name(made.folder.name + ".partial")], 0)]
    assert list(store.unfinished()) == []


def test_clear_leaves_nothing_but_what_others_hold(store: Store) -> None:
    for stage in "ab":
        store.produce(stage, KEY, Maker())
    logs = store.root / "logs"
    logs.mkdir()
    (logs / "keras-1.log").touch()
    training = store.root / TRAINING
    training.mkdir()
    with store.lock("prepare"), store.lock("unrelated"):
        assert store.clear() == 2
        assert [path.name for path in logs.iterdir()] == ["keras-1.log"]  # lanes are at work
        assert {path.stem for path in store.root.glob("locks/*")} == {"prepare", "unrelated"}
    assert store.clear() == 0
    assert not logs.exists()
    assert not training.exists()
    assert list(store.root.glob("locks/*")) == []


def test_clearing_while_others_produce_keeps_them_apart(store: Store) -> None:
    """Whoever waits for a lock whose file goes away waits for the new one."""
    at_work: list[int] = []
    most: list[int] = []

    def make(folder: Path) -> dict[str, Any]:
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.01)
        at_work.pop()
        return {}

    def produce() -> None:
        for _ in range(5):
            store.produce("a", KEY, make)
            store.clear()

    threads = [threading.Thread(target=produce) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_what_is_cleared_as_soon_as_it_was_made_was_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Store.lock

    @contextmanager
    def then_cleared(self: Store, name: str) -> Iterator[None]:
        with lock(self, name):
            yield
        monkeypatch.setattr(Store, "lock", lock)
        assert store.clear() == 1

    monkeypatch.setattr(Store, "lock", then_cleared)
    assert store.produce("a", KEY, Maker()).stage == "a"
    assert store.get("a", KEY) is None


def test_the_size_of_what_vanishes_or_leads_away_is_none(store: Store) -> None:
    made = store.produce("a", KEY, Maker())
    whole = sum(path.stat().st_size for path in made.folder.iterdir())
    made.path("more").symlink_to("/usr")
    assert size(made.folder) == whole
    assert size(made.path("more")) == len("/usr")
    assert size(made.folder / "gone") == 0


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), KeyboardInterrupt(), MemoryError()], ids=repr
)
def test_a_maker_that_fails_leaves_nothing(store: Store, error: BaseException) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        store.produce("a", KEY, fail)
    assert folders(store) == []
    make = Maker()
    store.produce("a", KEY, make)
    assert make.found == []


def test_a_record_that_would_not_read_back_is_refused(store: Store) -> None:
    with pytest.raises(StageError, match="damaged as soon as it was written"):
        store.produce("a", KEY, lambda _: {"counts": {2: 0, 10: 0}})
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.produce("b", KEY, lambda _: {"path": Path()})
    assert store.get("b", KEY) is None


PRODUCE = """
import os, sys, time
from pathlib import Path
from resnet8_eval.store import Store

root, behaviour = Path(sys.argv[1]), sys.argv[2]

def make(folder):
    with (root / "calls").open("a") as calls:
        calls.write("made ")
    (folder / "half").write_text("half")
    if behaviour == "die":
        os._exit(9)
    time.sleep(0.3)
    return {"by": os.getpid()}

print(Store(root).produce("a", sys.argv[3], make).record["by"])
"""


def producing(store: Store, behaviour: str) -> subprocess.Popen[str]:
    store.root.mkdir(exist_ok=True)
    words = [sys.executable, "-c", PRODUCE, str(store.root), behaviour, KEY]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)  # noqa: S603 (our own words)


def test_two_processes_make_it_once(store: Store) -> None:
    both = [producing(store, "wait") for _ in range(2)]
    said = [process.communicate(timeout=30)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert (store.root / "calls").read_text() == "made "


def test_threads_make_it_once(store: Store) -> None:
    make = Maker()
    threads = [threading.Thread(target=store.produce, args=("a", KEY, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.calls == 1


def test_a_killed_producer_leaves_nothing_that_counts(store: Store) -> None:
    process = producing(store, "die")
    process.communicate(timeout=30)
    assert process.returncode == 9
    assert store.get("a", KEY) is None
    assert [name.endswith(".partial") for name in folders(store)] == [True]
    make = Maker()
    store.produce("a", KEY, make)  # and its lock went with it
    assert make.found == []
    assert [name.endswith(".partial") for name in folders(store)] == [False]


@pytest.mark.parametrize("obstacle", ["cache", "cache/locks", "cache/artifacts"])
def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path, obstacle: str) -> None:
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("in the way")
    with pytest.raises(StageError) as caught:
        Store(tmp_path / "cache").produce("a", KEY, Maker())
    assert "cannot be written" in caught.value.what
    assert caught.value.given == str(tmp_path / "cache")
    assert "--cache-dir" in caught.value.next_step


def test_a_cache_that_became_read_only_says_so_too(store: Store) -> None:
    store.produce("a", KEY, Maker())
    locks = store.root / "locks"
    for lock in locks.iterdir():
        lock.unlink()
    # A folder in the place of the lock stands for the lock that may not be written (root may).
    (locks / f"b-{KEY[:20]}.lock").mkdir()
    with pytest.raises(StageError, match="cannot be written"):
        store.produce("b", KEY, Maker())


def test_digest_is_of_the_value_and_not_of_its_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest({"a": 1}) != digest({"a": "1"})
    assert digest({"a": 1}) != digest({"a": True})


def test_a_folder_name_has_no_separator(store: Store) -> None:
    made = store.produce("scores/torch-int8-tuned", KEY, Maker())
    assert made.folder.parent == store.root / "artifacts"
    assert os.sep not in made.folder.name
