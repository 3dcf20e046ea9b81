"""Planted faults: damaged, swapped and hostile assets, and downloads that go wrong."""

from __future__ import annotations

import contextlib
import copyreg
import gzip
import http.server
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from resnet8_eval import assets, standin
from resnet8_eval.assets import DATASET_FOLDER, Assets, MissingAssetError, fetch, locate
from resnet8_eval.cifar10 import CLASS_NAMES, Split, read_batch, read_class_names, read_split
from resnet8_eval.errors import AssetError
from tests.small_assets import (
    SmallAssets,
    array,
    batch,
    batch_parts,
    dataset_files,
    listing,
    mapping,
    meta,
    number,
    packed,
    pickled,
    put_files,
    text,
)
from tests.small_flow import as_user

FUZZ_EXAMPLES = int(os.environ.get("RESNET8_EVAL_FUZZ_EXAMPLES", "300"))
"""For a long run: RESNET8_EVAL_FUZZ_EXAMPLES=10000 pytest tests/faults/test_asset_faults.py"""

Find = Callable[..., Assets]


@pytest.fixture
def small() -> SmallAssets:
    return SmallAssets()


@pytest.fixture
def find(tmp_path: Path, small: SmallAssets, monkeypatch: pytest.MonkeyPatch) -> Find:
    """`locate` with the folder "given", an empty cache, and nothing on the network."""
    fixtures = tmp_path / "fixtures"
    (fixtures / "standin").mkdir(parents=True)
    (fixtures / "standin" / "standin.h5").write_bytes(small.standin_model)
    monkeypatch.setattr(assets, "fixtures_dir", lambda: fixtures)
    monkeypatch.setattr(assets, "_checkouts", lambda: [tmp_path / "checkout"])
    monkeypatch.setattr(standin, "materialise", lambda folder: put_files(folder, small.files))
    monkeypatch.delenv("RESNET8_EVAL_OFFLINE", raising=False)
    monkeypatch.setenv("RESNET8_EVAL_ASSETS", str(tmp_path / "given"))
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "given").mkdir()

    def find(kind: str = "real", **options: object) -> Assets:
        settings = {
            "assets_dir": None,
            "cache_dir": tmp_path / "cache",
            "manifest": small.manifest(),
            **options,
        }
        return locate(kind, **settings)  # type: ignore[arg-type]

    return find


def refusal(action: Callable[[], object], *parts: object) -> AssetError:
    """Return the AssetError that `action` raises; it says its four things and mentions `parts`."""
    with pytest.raises(AssetError) as caught:
        action()
    error = caught.value
    for said in (error.what, error.expected, error.given, error.next_step):
        assert said
    for part in parts:
        assert str(part) in str(error)
    assert len(str(error)) < 3000
    return error


# --- damaged files -------------------------------------------------------------------------------


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "one bit flipped": flipped,
    "one byte appended": lambda content: content + b"\0",
    "a web page": lambda _: b"<!DOCTYPE html><html><body>Not found</body></html>",
    "a Git LFS pointer": lambda _: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("kind", ["real", "auto"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["model.h5", "cifar.tar.gz", "data_batch_4", "batches.meta"])
def test_a_damaged_file_is_refused(
    tmp_path: Path, small: SmallAssets, find: Find, name: str, damage: str, kind: str
) -> None:
    folder = tmp_path / "given"
    path = small.put_model(folder)
    if name == "cifar.tar.gz":
        path = small.put_archive(folder)
    else:
        dataset = small.put_dataset(folder)
        path = path if name == "model.h5" else dataset / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    manifest = small.manifest()
    entries = (manifest.real.model, manifest.archive, *manifest.real.dataset)
    entry = next(entry for entry in entries if entry.name == name)
    error = refusal(lambda: find(kind), path, entry.sha256)
    assert not isinstance(error, MissingAssetError)
    assert "sha256" in error.given
    assert not (tmp_path / "cache" / "stand-in").exists()


@pytest.mark.parametrize("place", ["checkout/assets", "shared/assets", "cache"])
def test_a_damaged_file_is_refused_wherever_it_lies(
    tmp_path: Path, small: SmallAssets, find: Find, place: str
) -> None:
    path = small.put_model(tmp_path / place)
    path.write_bytes(b"damaged")
    small.put_dataset(tmp_path / "cache")
    refusal(find, path)


def test_the_wrong_model_under_the_right_name(
    tmp_path: Path, small: SmallAssets, find: Find
) -> None:
    small.put_dataset(tmp_path / "given")
    path = small.put_model(tmp_path / "given")
    path.write_bytes(small.standin_model)
    refusal(find, path, small.manifest().standin.model.sha256)


def test_files_swapped(tmp_path: Path, small: SmallAssets, find: Find) -> None:
    small.put_model(tmp_path / "given")
    dataset = small.put_dataset(tmp_path / "given")
    (dataset / "data_batch_1").rename(dataset / "aside")
    (dataset / "test_batch").rename(dataset / "data_batch_1")
    (dataset / "aside").rename(dataset / "test_batch")
    refusal(find, dataset / "data_batch_1")


def test_a_file_missing_from_the_folder(tmp_path: Path, small: SmallAssets, find: Find) -> None:
    small.put_model(tmp_path / "given")
    dataset = small.put_dataset(tmp_path / "given")
    (dataset / "data_batch_5").unlink()
    refusal(find, dataset / "data_batch_5", "missing")


def test_things_that_are_not_files(tmp_path: Path, small: SmallAssets, find: Find) -> None:
    small.put_dataset(tmp_path / "given")
    path = tmp_path / "given" / "model.h5"
    path.mkdir()
    refusal(find, path, "a folder")
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    refusal(find, path, "not a regular file")
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    refusal(find, path, "not a regular file")


def test_an_unreadable_file(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small.put_model(tmp_path / "given")

    def unreadable(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(assets, "_sha256", unreadable)
    refusal(find, path, "Permission denied")


def test_a_file_changed_after_it_was_remembered(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_SETTLED_NS", -(10**9))
    path = small.put_model(tmp_path / "given")
    small.put_dataset(tmp_path / "given")
    find()
    before = path.stat()
    time.sleep(0.02)  # more than one tick of the file system's clock
    path.write_bytes(flipped(small.model))  # same size, same inode,
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # and the old time
    refusal(find, path)


def test_a_damaged_stand_in(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find("stand-in").dataset
    (dataset / "test_batch").write_bytes(b"damaged")
    refusal(lambda: find("stand-in"), dataset / "test_batch")
    refusal(lambda: find("auto"), dataset / "test_batch")
    (dataset / "test_batch").write_bytes(small.files["test_batch"])
    model = tmp_path / "fixtures" / "standin" / "standin.h5"
    model.write_bytes(b"damaged")
    refusal(lambda: find("stand-in"), model)
    model.unlink()
    refusal(lambda: find("stand-in"), model, "missing")


def test_a_stand_in_that_comes_out_different(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**small.files, "test_batch": b"other"}
    monkeypatch.setattr(standin, "materialise", lambda folder: put_files(folder, other))
    refusal(lambda: find("stand-in"), "test_batch", "different")
    assert not list((tmp_path / "cache").rglob("test_batch"))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"real": {}}', '{"real": {"model": {"x": 1}}}']
)
def test_a_damaged_manifest(tmp_path: Path, find: Find, content: str) -> None:
    refusal(lambda: find(manifest=None), tmp_path / "fixtures" / "assets.json")
    (tmp_path / "fixtures" / "assets.json").write_text(content)
    refusal(lambda: find(manifest=None), tmp_path / "fixtures" / "assets.json")


# --- what the user gives -------------------------------------------------------------------------


def test_a_given_folder_that_is_not_there(
    tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal(lambda: find("auto", assets_dir=tmp_path / "typo"), tmp_path / "typo", "--assets-dir")
    monkeypatch.setenv("RESNET8_EVAL_ASSETS", str(tmp_path / "typo"))
    refusal(lambda: find("auto"), tmp_path / "typo", "RESNET8_EVAL_ASSETS")


@pytest.mark.parametrize("command", ["run --assets auto", "assets"])
@pytest.mark.parametrize("below", [".", "inside"])
def test_a_given_folder_that_may_not_be_looked_into(
    tmp_path: Path, below: str, command: str
) -> None:
    """It must not count as empty: `auto` would go on to the stand-in."""
    folder = tmp_path / "closed"
    (folder / "inside").mkdir(parents=True)
    folder.chmod(0o444)  # what lies in it may be listed, and no more
    words = [sys.executable, "-m", "resnet8_eval", *command.split()]
    done = subprocess.run(  # noqa: S603 (our own interpreter and words)
        [*words, "--assets-dir", folder / below, "--cache-dir", tmp_path / "cache"],
        preexec_fn=as_user,
        env={**os.environ, "RESNET8_EVAL_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    folder.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    for part in (str(folder / below), "Permission denied", "--assets-dir"):
        assert part in done.stderr
    assert "stand-in" not in done.stderr


def test_a_folder_of_a_user_that_there_is_not(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Path("~nobody-of-that-name/assets")
    refusal(lambda: find("auto", assets_dir=nowhere), nowhere, "--assets-dir")
    refusal(lambda: find("auto", keras_model=nowhere / "own.h5"), nowhere, "--keras-model")
    monkeypatch.setenv("RESNET8_EVAL_CACHE", str(nowhere))
    assert assets.default_cache_dir() == nowhere.absolute()


def test_a_name_longer_than_any_file_has(find: Find) -> None:
    long = Path("/" + 300 * "x")
    refusal(lambda: find("auto", assets_dir=long), "File name too long")
    refusal(lambda: find("auto", keras_model=long.with_suffix(".h5")), "File name too long")


@pytest.mark.parametrize("name", ["none.h5", "folder.h5", "model.onnx", "dangling.keras"])
def test_an_unusable_keras_model(tmp_path: Path, find: Find, name: str) -> None:
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"a model")
    (tmp_path / "dangling.keras").symlink_to(tmp_path / "nowhere")
    refusal(lambda: find("auto", keras_model=tmp_path / name), name, "--keras-model")


def test_a_cache_that_cannot_be_written(tmp_path: Path, small: SmallAssets, find: Find) -> None:
    (tmp_path / "file").touch()
    unwritable = tmp_path / "file" / "cache"
    refusal(lambda: find("stand-in", cache_dir=unwritable), unwritable, "RESNET8_EVAL_CACHE")
    small.put_archive(tmp_path / "given")
    small.put_model(tmp_path / "given")
    refusal(lambda: find(cache_dir=unwritable), unwritable, "RESNET8_EVAL_CACHE")


# --- archives ------------------------------------------------------------------------------------


def linked(name: str, target: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def hostile_archives() -> dict[str, bytes]:
    """Make archives that only their checksum would give away; the tests put it in the manifest."""
    files = dataset_files()
    inside = {f"{DATASET_FOLDER}/{name}": content for name, content in files.items()}
    test = f"{DATASET_FOLDER}/test_batch"
    without = {name: content for name, content in inside.items() if name != test}
    good = files["test_batch"]
    whole = packed(inside)
    return {
        "symbolic link": packed({**without, test: linked(test, "/etc/passwd", tarfile.SYMTYPE)}),
        "hard link": packed(
            {**without, test: linked(test, f"{DATASET_FOLDER}/data_batch_1", tarfile.LNKTYPE)}
        ),
        "hard link to a good file": packed(
            {**without, "outside": good, test: linked(test, "outside", tarfile.LNKTYPE, len(good))}
        ),
        "device": packed({**without, test: linked(test, "", tarfile.CHRTYPE)}),
        "pipe": packed({**without, test: linked(test, "", tarfile.FIFOTYPE)}),
        "folder": packed({**without, test: linked(test, "", tarfile.DIRTYPE)}),
        "absolute path": packed({**without, f"/{test}": good}),
        "traversal": packed({**without, f"{DATASET_FOLDER}/../{test}": good}),
        "too large": packed({**without, test: good + b"\0" * 10**7}),
        "too small": packed({**without, test: good[:-1]}),
        "another file": packed({**without, test: flipped(good)}),
        "missing": packed(without),
        "no archive": b"<html></html>",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "cut inside the files": gzip.compress(gzip.decompress(whole)[:20_000]),
        "bit flipped": flipped(whole),
    }


@pytest.mark.parametrize("fault", hostile_archives())
def test_a_hostile_archive_with_a_matching_checksum(
    tmp_path: Path, small: SmallAssets, find: Find, fault: str
) -> None:
    archive = hostile_archives()[fault]
    small.put_model(tmp_path / "given")
    path = small.put_archive(tmp_path / "given", archive)
    refusal(lambda: find(manifest=small.manifest(archive=archive)), path)
    left = {entry.name for entry in (tmp_path / "cache").iterdir()}
    assert left <= {"making.lock", "verified.json", "verified.lock"}


def test_a_member_too_large_is_not_even_opened(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = hostile_archives()["too large"]
    opened: list[int] = []
    extract = tarfile.TarFile.extractfile

    def note(tar: tarfile.TarFile, member: tarfile.TarInfo) -> object:
        opened.append(member.size)
        return extract(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", note)
    small.put_model(tmp_path / "given")
    small.put_archive(tmp_path / "given", archive)
    refusal(lambda: find(manifest=small.manifest(archive=archive)), "test_batch")
    assert opened == [len(small.files[name]) for name in small.files if name != "test_batch"]


def test_members_that_are_not_the_data_sets_are_left_in_the_archive(
    tmp_path: Path, small: SmallAssets, find: Find
) -> None:
    inside = {f"{DATASET_FOLDER}/{name}": content for name, content in small.files.items()}
    archive = packed(
        {
            "../outside": b"x",
            "/absolute": b"x",
            "link": linked("link", "/etc", tarfile.SYMTYPE),
            f"{DATASET_FOLDER}/more": b"x",
            **inside,
        }
    )
    small.put_model(tmp_path / "given")
    small.put_archive(tmp_path / "given", archive)
    before = set(tmp_path.rglob("*"))
    dataset = find(manifest=small.manifest(archive=archive)).dataset
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_relative_to(dataset)}
    assert made == {dataset, *(dataset / name for name in small.files)}
    assert not list(tmp_path.rglob("outside"))


# --- downloads -----------------------------------------------------------------------------------


@dataclass
class Site:
    """A web site on this machine. `fault` decides how it answers."""

    pages: dict[str, bytes]
    fault: str = ""
    requests: list[str] = field(default_factory=list)
    url: str = ""
    sent: int = 0


class Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True
    site: Site


class Answer(http.server.BaseHTTPRequestHandler):
    server: Quiet

    def do_GET(self) -> None:
        site = self.server.site
        site.requests.append(self.path)
        if self.path not in site.pages:
            self.send_error(404)
            return
        page = site.pages[self.path]
        if site.fault == "hangs":
            time.sleep(1)
        if site.fault == "redirects in a circle":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        if site.fault == "a byte now and then, in its head":
            self.trickle(b"HTTP/1.0 200 OK\r\nX-Long: " + 999 * b"x")
            return
        if site.fault.startswith("endless"):
            self.send_response(302 if "redirect" in site.fault else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(bytes(2**16))
                    site.sent += 2**16
            return
        self.send_response(404 if site.fault == "not found" else 200)
        announced = len(page) + (site.fault == "announces more")
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        if site.fault == "a byte now and then":
            self.trickle(page)
            return
        if site.fault == "stalls half-way":
            self.wfile.write(page[: len(page) // 2])
            time.sleep(1)
        if site.fault == "cut":
            page = page[: len(page) // 2]
        elif site.fault == "other bytes":
            page = flipped(page)
        elif site.fault == "web page":
            page = b"<html>".ljust(len(page))
        self.wfile.write(page)

    def trickle(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            for byte in content[:40]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(small: SmallAssets) -> Iterator[Site]:
    site = Site({"/model.h5": small.model, "/cifar.tar.gz": small.archive})
    with Quiet(("127.0.0.1", 0), Answer) as server:
        server.site = site
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def contents(folder: Path) -> set[str]:
    """List what lies in the cache, besides locks and the memory."""
    names = {path.name for path in folder.iterdir()}
    return names - {"making.lock", "verified.json", "verified.lock"}


@pytest.mark.usefixtures("find")
def test_fetch(tmp_path: Path, small: SmallAssets, site: Site) -> None:
    cache, manifest = tmp_path / "cache", small.manifest(site.url)
    model, dataset = fetch(cache, manifest=manifest)
    assert model.read_bytes() == small.model
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == small.files
    assert site.requests == ["/model.h5", "/cifar.tar.gz"]
    assert fetch(cache, manifest=manifest) == (model, dataset)
    assert len(site.requests) == 2


def test_locate_downloads_only_what_is_missing(
    tmp_path: Path, small: SmallAssets, find: Find, site: Site
) -> None:
    small.put_dataset(tmp_path / "given")
    assert find(manifest=small.manifest(site.url)).model == tmp_path / "cache" / "model.h5"
    assert site.requests == ["/model.h5"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("cut", "bytes read"),
        ("other bytes", "does not match the known hash"),
        ("web page", "does not match the known hash"),
        ("not found", "404 Client Error"),  # a port may hold 404, too
        ("hangs", "timed out"),
        ("stalls half-way", "timed out"),
        ("announces more", "bytes read"),
        ("redirects in a circle", "30 redirects"),
        ("a byte now and then", "given up"),
        ("a byte now and then, in its head", "given up"),
        ("endless", "more was sent than"),
        ("endless redirects", "404 Client Error"),
    ],
)
def test_a_failed_download_leaves_nothing_and_can_be_repeated(
    tmp_path: Path,
    small: SmallAssets,
    find: Find,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    reason: str,
) -> None:
    monkeypatch.setattr(assets, "_READ_SECONDS", 0.3)
    if fault.startswith("a byte"):
        monkeypatch.setattr(assets, "_GRACE_SECONDS", 0.3)
    manifest = small.manifest(site.url)
    site.fault = fault
    error = refusal(lambda: find(manifest=manifest), reason, "model.h5", "cifar.tar.gz")
    assert isinstance(error, MissingAssetError)
    assert error.given.count(reason) == 2  # one failure does not hide the other
    assert contents(tmp_path / "cache") == set()
    assert site.sent < 2**24  # what fits into the system's buffers
    said: list[str] = []
    assert find("auto", manifest=manifest, announce=said.append).kind == "stand-in"
    assert reason in said[0]
    site.fault = ""
    monkeypatch.setattr(assets, "_GRACE_SECONDS", 60)
    assert find(manifest=manifest).kind == "real"


def test_who_waits_for_another_process_says_so(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_PATIENCE_SECONDS", 0.1)
    small.put_model(tmp_path / "given")
    small.put_archive(tmp_path / "given")
    (tmp_path / "cache").mkdir()
    said: list[str] = []
    with ThreadPoolExecutor() as threads:
        with FileLock(tmp_path / "cache" / "making.lock"):
            found = threads.submit(find, announce=said.append)
            while not said and not found.done():
                time.sleep(0.01)
        assert found.result(timeout=60).kind == "real"
    assert len(said) == 1
    assert said[0].startswith("Waiting for another process")
    assert str(tmp_path / "cache") in said[0]


def test_a_failed_download_leaves_a_good_cache_alone(
    tmp_path: Path, small: SmallAssets, find: Find, site: Site
) -> None:
    model = small.put_model(tmp_path / "cache")
    before = model.stat()
    site.fault = "cut"
    error = refusal(lambda: find(manifest=small.manifest(site.url)), "IncompleteRead")
    assert error.what == f"Missing: {DATASET_FOLDER}."
    assert contents(tmp_path / "cache") == {"model.h5"}
    assert model.stat() == before


def test_what_a_killed_download_left_is_cleared_away(
    tmp_path: Path, small: SmallAssets, find: Find, site: Site
) -> None:
    left = tmp_path / "cache" / ".making" / "tmp12345"
    left.parent.mkdir(parents=True)
    left.write_bytes(small.model[:5])
    find(manifest=small.manifest(site.url))
    assert contents(tmp_path / "cache") == {"model.h5", "cifar.tar.gz", DATASET_FOLDER}


def test_an_offline_machine_is_told_everything(tmp_path: Path, find: Find) -> None:
    start = time.monotonic()
    error = refusal(find)
    assert time.monotonic() - start < 5
    assert isinstance(error, MissingAssetError)
    for name in ("model.h5", DATASET_FOLDER):
        assert name in error.what
    for place in ("given", "checkout/assets", "shared/assets", "cache"):
        assert str(tmp_path / place) in error.expected
    assert error.given.count("refused") == 2
    for way in (
        "--assets-dir",
        "RESNET8_EVAL_ASSETS",
        "python -m resnet8_eval assets fetch",
        str(tmp_path / "cache"),
        "--assets stand-in",
    ):
        assert way in error.next_step


def test_downloads_can_be_forbidden(
    tmp_path: Path, small: SmallAssets, find: Find, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = small.manifest(site.url)
    monkeypatch.setenv("RESNET8_EVAL_OFFLINE", "1")
    refusal(lambda: find(manifest=manifest), "RESNET8_EVAL_OFFLINE")
    refusal(lambda: fetch(tmp_path / "cache", manifest=manifest), "RESNET8_EVAL_OFFLINE")
    monkeypatch.delenv("RESNET8_EVAL_OFFLINE")
    refusal(lambda: find(manifest=manifest, download=False), "no download was asked for")
    assert site.requests == []


def test_a_download_into_a_cache_that_cannot_be_written(
    tmp_path: Path, small: SmallAssets, find: Find, site: Site
) -> None:
    (tmp_path / "file").touch()
    unwritable = tmp_path / "file" / "cache"
    manifest = small.manifest(site.url)
    refusal(lambda: find(cache_dir=unwritable, manifest=manifest), unwritable)


# --- pickles that run code -----------------------------------------------------------------------

# Each would leave its mark, the file CANARY in the current folder, if it were called.
MARK = "open('CANARY', 'w').close()"
GADGETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "os.system": ("os", "system", ("touch CANARY",)),
    "posix.system": ("posix", "system", ("touch CANARY",)),
    "os.popen": ("os", "popen", ("touch CANARY",)),
    "os.mkdir": ("os", "mkdir", ("CANARY",)),
    "os.execvp": ("os", "execlp", ("touch", "touch", "CANARY")),
    "os.spawnlp": ("os", "spawnlp", ("0", "touch", "touch", "CANARY")),
    "subprocess.Popen": ("subprocess", "Popen", ("touch CANARY",)),
    "subprocess.call": ("subprocess", "call", ("touch CANARY",)),
    "subprocess.check_output": ("subprocess", "check_output", ("touch CANARY",)),
    "subprocess.getoutput": ("subprocess", "getoutput", ("touch CANARY",)),
    "builtins.eval": ("builtins", "eval", (MARK,)),
    "builtins.exec": ("builtins", "exec", (MARK,)),
    "builtins.compile": ("builtins", "compile", (MARK, "x", "exec")),
    "builtins.open": ("builtins", "open", ("CANARY", "w")),
    "builtins.getattr": ("builtins", "getattr", ("", "join")),
    "builtins.__import__": ("builtins", "__import__", ("antigravity",)),
    "__builtin__.eval": ("__builtin__", "eval", (MARK,)),
    "__builtin__.apply": ("__builtin__", "apply", (MARK,)),
    "io.open": ("io", "open", ("CANARY", "w")),
    "_io.FileIO": ("_io", "FileIO", ("CANARY", "w")),
    "pathlib.Path": ("pathlib", "Path", ("CANARY",)),
    "importlib.import_module": ("importlib", "import_module", ("antigravity",)),
    "operator.attrgetter": ("operator", "attrgetter", ("system",)),
    "operator.methodcaller": ("operator", "methodcaller", ("system", "touch CANARY")),
    "functools.partial": ("functools", "partial", ("system",)),
    "functools.reduce": ("functools", "reduce", ("system", "x")),
    "types.FunctionType": ("types", "FunctionType", (MARK,)),
    "types.CodeType": ("types", "CodeType", (MARK,)),
    "codecs.decode": ("codecs", "decode", ("x", "rot13")),
    "_codecs.encode": ("_codecs", "encode", ("x", "latin1")),
    "pickle.loads": ("pickle", "loads", ("cos\nsystem\n(S'touch CANARY'\ntR.",)),
    "_pickle.loads": ("_pickle", "loads", ("cos\nsystem\n(S'touch CANARY'\ntR.",)),
    "marshal.loads": ("marshal", "loads", ("x",)),
    "shelve.open": ("shelve", "open", ("CANARY",)),
    "numpy.load": ("numpy", "load", ("CANARY",)),
    "numpy.fromfile": ("numpy", "fromfile", ("CANARY",)),
    "numpy.memmap": ("numpy", "memmap", ("CANARY", "uint8", "w+")),
    "numpy.f2py.crackfortran.myeval": ("numpy.f2py.crackfortran", "myeval", (MARK,)),
    "numpy runstring": ("numpy.testing._private.utils", "runstring", (MARK, "")),
    "numpy old runstring": ("numpy.testing", "runstring", (MARK, "")),
    "numpy.distutils": ("numpy.distutils.exec_command", "exec_command", ("touch CANARY",)),
    "numpy.core scalar": ("numpy.core.multiarray", "scalar", ("x",)),
    "numpy.core fromstring": ("numpy.core.multiarray", "fromstring", ("x",)),
    "torch.load": ("torch", "load", ("CANARY",)),
    "ctypes.CDLL": ("ctypes", "CDLL", ("libc.so.6",)),
    "shutil.rmtree": ("shutil", "rmtree", ("x",)),
    "shutil.move": ("shutil", "copy", ("a", "CANARY")),
    "tempfile.mkdtemp": ("tempfile", "mkdtemp", ("CANARY",)),
    "socket.create_connection": ("socket", "create_connection", ("127.0.0.1",)),
    "urllib.request.urlopen": ("urllib.request", "urlopen", ("http://127.0.0.1:9",)),
    "webbrowser.open": ("webbrowser", "open", ("http://127.0.0.1:9",)),
    "code.interact": ("code", "interact", (MARK,)),
    "code.InteractiveInterpreter": ("code", "InteractiveInterpreter", ()),
    "pty.spawn": ("pty", "spawn", ("touch CANARY",)),
    "pydoc.pipepager": ("pydoc", "pipepager", ("x", "touch CANARY")),
    "timeit.timeit": ("timeit", "timeit", (MARK,)),
    "runpy.run_path": ("runpy", "run_path", ("CANARY",)),
    "runpy._run_code": ("runpy", "_run_code", (MARK,)),
    "profile.run": ("profile", "run", (MARK,)),
    "cProfile.run": ("cProfile", "run", (MARK,)),
    "bdb.Bdb": ("bdb", "Bdb", (MARK,)),
    "pdb.run": ("pdb", "run", (MARK,)),
    "trace.Trace": ("trace", "Trace", (MARK,)),
    "doctest.debug_script": ("doctest", "debug_script", (MARK,)),
    "asyncio subprocess": ("asyncio", "create_subprocess_shell", ("touch CANARY",)),
    "multiprocessing.Process": ("multiprocessing", "Process", (MARK,)),
    "copyreg._reconstructor": ("copyreg", "_reconstructor", (MARK,)),
    "copyreg.add_extension": ("copyreg", "add_extension", ("os", "system", "1")),
    "sys.modules": ("sys", "modules", ()),
    "logging.config": ("logging.config", "fileConfig", ("CANARY",)),
    "gc.get_objects": ("gc", "get_objects", ()),
    "inspect.getmembers": ("inspect", "getmembers", ("x",)),
    "resnet8_eval itself": ("resnet8_eval.standin", "materialise", ("CANARY",)),
}
RUNNABLE = ("os.system", "os.mkdir", "subprocess.getoutput", "builtins.eval", "pydoc.pipepager")


def arguments(gadget: str) -> bytes:
    # Written as the official files write strings, so that nothing but the call is unusual.
    strings = GADGETS[gadget][2]
    return b"".join(b"T" + struct.pack("<i", len(s)) + s.encode() for s in strings)


def by_global(gadget: str) -> bytes:
    module, name, _ = GADGETS[gadget]
    return f"c{module}\n{name}\n".encode()


def by_stack_global(gadget: str) -> bytes:
    module, name, _ = GADGETS[gadget]
    return b"\x8c" + bytes([len(module)]) + module.encode() + (
        b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
    )  # fmt: skip


CALLS: dict[str, Callable[[str], bytes]] = {
    "REDUCE": lambda g: by_global(g) + b"(" + arguments(g) + b"tR",
    "STACK_GLOBAL": lambda g: by_stack_global(g) + b"(" + arguments(g) + b"tR",
    "INST": lambda g: b"(" + arguments(g) + b"i" + by_global(g)[1:],
    "OBJ": lambda g: b"(" + by_global(g) + arguments(g) + b"o",
    "NEWOBJ": lambda g: by_global(g) + b"(" + arguments(g) + b"t\x81",
    "NEWOBJ_EX": lambda g: by_global(g) + b"(" + arguments(g) + b"t}\x92",
    "BUILD": lambda g: by_global(g) + b"}(" + text("__setstate__") + by_global(g) + b"ub",
}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the test's own folder the current one: a canary would appear in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse_batch(folder: Path, content: bytes) -> AssetError:
    path = folder / "test_batch"
    path.write_bytes(content)
    error = refusal(lambda: read_batch(path), path)
    assert not (folder / "CANARY").exists()
    return error


@pytest.mark.parametrize("gadget", RUNNABLE)
def test_the_canary_would_be_seen(inside: Path, gadget: str) -> None:
    pickle.loads(pickled(CALLS["REDUCE"](gadget)))  # noqa: S301
    assert (inside / "CANARY").exists()


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_code_is_run(inside: Path, gadget: str) -> None:
    parts = batch_parts("test_batch", [0, 5, 9])
    for call in CALLS.values():
        payload = call(gadget)
        refuse_batch(inside, pickled(payload))
        refuse_batch(inside, pickled(payload + b"0" + mapping(parts)))  # POP, then a good batch
        refuse_batch(inside, pickled(mapping({**parts, "filenames": payload})))
        (inside / "batches.meta").write_bytes(pickled(payload))
        refusal(lambda: read_class_names(inside), inside / "batches.meta")
        assert not (inside / "CANARY").exists()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
EMPTY = RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R"
UINT8 = DTYPE + b"U\x02u1K\x00K\x01\x87R"
LAID_OUT = UINT8 + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def built(
    shape: bytes,
    content: bytes,
    empty: bytes = EMPTY,
    dtype: bytes = LAID_OUT,
    order: bytes = b"\x89",
) -> bytes:
    return empty + b"(K\x01" + shape + dtype + order + content + b"tb"


MINUS_ONE = b"J\xff\xff\xff\xff"
RAW = b"T" + struct.pack("<i", 3072) + bytes(3072)
ONE = number(1) + number(3072) + b"\x86"

STRANGE: dict[str, bytes] = {
    "persistent id": b"Px\n",
    "binary persistent id": text("x") + b"Q",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "protocol 4": b"\x80\x04N",
    "protocol 255": b"\x80\xffN",
    "frame": b"\x95" + struct.pack("<Q", 2**62),
    "memo fetch": b"Nq\x00h\x00",
    "memo fetch of what is not there": b"j\xff\xff\xff\xff",
    "huge memo index": b"Nr\xff\xff\xff\xff",
    "huge memo index in text": b"Np99999999999999999999\n",
    "memoize": b"N\x94",
    "duplicate": b"N2",
    "next buffer": b"\x97",
    "long": b"\x8a\x01\x05",
    "huge long": b"\x8b\xff\xff\xff\x7f",
    "negative long": b"\x8b\xff\xff\xff\xff",
    "decimal long": b"L" + b"9" * 100_000 + b"L\n",
    "decimal int": b"I" + b"9" * 100_000 + b"\n",
    "float": b"F1e400\n",
    "string in quotes": b"S'x'\n",
    "string that is not in quotes": b"Sx\n",
    "huge string": b"T\xff\xff\xff\x7f",
    "negative string": b"T\xff\xff\xff\xff",
    "huge bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "huge bytearray": b"\x96" + struct.pack("<Q", 2**62),
    "huge unicode": b"\x8d" + struct.pack("<Q", 2**62),
    "set": b"\x8f",
    "frozen set": b"(\x91",
    "true": b"\x88",
    "unknown instruction": b"\xfe",
    "nothing": b"",
    "empty stack": b"0",
    "only a mark": b"(",
    "tuple without a mark": b"t",
    "tuple of too few": b"K\x01\x87",
    "append to nothing": b"(K\x01e",
    "append to a tuple": b")(K\x01e",
    "append to a number": b"K\x01(K\x01e",
    "items for a list": b"](K\x01K\x01u",
    "an odd number of items": b"}(" + text("a") + b"u",
    "a list as a key": b"}(]Nu",
    "a number as a key": b"}(K\x01Nu",
    "an array as a key": b"}(" + array(bytes(3072)) + b"Nu",
    "deep lists": b"](" * 50_000 + b"e" * 50_000,
    "deep tuples": b"N" + b"\x85" * 50_000,
    "a deep tuple as a key": b"}(N" + b"\x85" * 50_000 + b"Nu",
    "two values": b"NN",
    "call of a string": text("x") + b"K\x01\x85R",
    "call of a list": b"]K\x01\x85R",
    "call of numpy.ndarray": NDARRAY + b"K\xff\x85\x85R",
    "call of numpy.dtype with object": DTYPE + b"U\x01OK\x00K\x01\x87R",
    "call of numpy.dtype with a name": DTYPE + b"U\x06uint16K\x00K\x01\x87R",
    "call of numpy.dtype with a list": DTYPE + b"]K\x00K\x01\x87R",
    "call of what a call made": EMPTY + b"K\x01\x85R",
    "reconstruct of another class": RECONSTRUCT + DTYPE + b"K\x00\x85U\x01b\x87R",
    "reconstruct of a large array": RECONSTRUCT + NDARRAY + b"J\xff\xff\xff\x7f\x85U\x01b\x87R",
    "state for a dictionary": b"}}b",
    "state for a list": b"]}b",
    "state for a name": NDARRAY + b"}b",
    "state for a name, with slots": RECONSTRUCT + b"N}(" + text("__defaults__") + b")u\x86b",
    "state for a dtype: metadata": UINT8 + b"(K\x03U\x01|NNN" + 2 * MINUS_ONE + b"K\x00}tb",
    "state for a dtype: fields": UINT8 + b"(K\x03U\x01|N}}" + 2 * MINUS_ONE + b"K\x00tb",
    "state for an array, twice": built(ONE, RAW, empty=built(ONE, RAW)),
    "array of a dtype without state": built(ONE, RAW, dtype=UINT8),
    "array of no dtype": built(ONE, RAW, dtype=b"N"),
    "array in Fortran order": built(ONE, RAW, order=b"K\x01"),
    "array of a list": built(ONE, b"]"),
    "array with less than its shape": built(number(2) + number(3072) + b"\x86", RAW),
    "array with more than its shape": built(number(1) + number(255) + b"\x86", RAW),
    "array of a huge shape": built(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", RAW),
    "array of a negative shape": built(number(-1) + number(-3072) + b"\x86", RAW),
    "array of a shape to be guessed": built(number(-1) + number(3072) + b"\x86", RAW),
    "array of one dimension": built(b"J\x00\x0c\x00\x00\x85", RAW),
    "array of three dimensions": built(number(3) + number(32) + number(32) + b"\x87", RAW),
    "array of many empty rows": built(b"J\xff\xff\xff\x7fK\x00\x86", text("")),
}  # fmt: skip


@pytest.fixture
def registered() -> Iterator[None]:
    """Register an extension code for os.system, as any library may have done."""
    copyreg.add_extension("os", "system", 1)
    yield
    copyreg.remove_extension("os", "system", 1)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("payload", STRANGE)
def test_a_strange_pickle_is_refused(inside: Path, payload: str) -> None:
    strange = STRANGE[payload]
    start = time.process_time()  # of this process alone: a busy machine does not count
    refuse_batch(inside, pickled(strange))
    refuse_batch(inside, strange)
    refuse_batch(inside, pickled(strange + b"(touch CANARY\x85R"))
    parts = batch_parts("test_batch", [0])
    for key in parts.keys() - {"filenames"}:
        refuse_batch(inside, pickled(mapping({**parts, key: strange})))
    assert time.process_time() - start < 60


def test_a_refusal_leaves_no_trace(inside: Path) -> None:
    """A hostile file cannot change how the next file is read."""
    for payload in STRANGE.values():
        refuse_batch(inside, pickled(payload))
    (inside / "test_batch").write_bytes(batch("test_batch", [0, 5, 9]))
    assert read_batch(inside / "test_batch").labels.tolist() == [0, 5, 9]


# --- files that are not what they say ------------------------------------------------------------


def altered(**values: bytes) -> bytes:
    return pickled(mapping({**batch_parts("test_batch", [0, 5, 9]), **values}))


WRONG_BATCHES: dict[str, bytes] = {
    "not a dictionary": pickled(listing()),
    "no keys": pickled(mapping({})),
    "a key too few": pickled(mapping({"labels": listing(number(1))})),
    "a key too many": altered(more=number(1)),
    "a training batch": batch("data_batch_1", [0, 5, 9]),
    "no title": altered(batch_label=b"N"),
    "an array for a title": altered(batch_label=array(bytes(3072))),
    "a label too few": altered(labels=listing(number(0), number(5))),
    "a label too many": altered(labels=listing(*4 * [number(0)])),
    "label 10": altered(labels=listing(number(0), number(5), number(10))),
    "label -1": altered(labels=listing(number(0), number(5), number(-1))),
    "a label in words": altered(labels=listing(number(0), number(5), text("cat"))),
    "a truth for a label": altered(labels=listing(number(0), number(5), b"\x89")),
    "an array for a label": altered(labels=listing(number(0), number(5), array(bytes(3072)))),
    "labels in a tuple": altered(labels=b"(" + number(0) + number(5) + number(9) + b"t"),
    "an image too few": altered(data=array(bytes(2 * 3072))),
    "other pixels": altered(data=array(bytes(3 * 1024), columns=1024)),
    "no images": altered(data=array(b""), labels=listing()),
    "text for images": altered(data=text("x")),
    "a list for images": altered(data=listing(number(1))),
    "bytes after the end": batch("test_batch", [0, 5, 9]) + b"\0",
    "a second pickle after the end": 2 * batch("test_batch", [0, 5, 9]),
    "a mark too many": pickled(b"(" + mapping(batch_parts("test_batch", [0, 5, 9]))),
    "another protocol": b"\x80\x04" + batch("test_batch", [0, 5, 9])[2:],
    "empty": b"",
    "cut": batch("test_batch", [0, 5, 9])[:-1],
    "a web page": b"<!DOCTYPE html><html></html>",
    "the array file of NumPy": b"\x93NUMPY\x01\x00v\x00",
    "Python 3's pickle": pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 5, 9]}),
}


@pytest.mark.parametrize("fault", WRONG_BATCHES)
def test_a_wrong_batch_is_refused(inside: Path, fault: str) -> None:
    refuse_batch(inside, WRONG_BATCHES[fault])


@pytest.mark.parametrize(
    "names",
    [
        CLASS_NAMES[::-1],
        CLASS_NAMES[:-1],
        (*CLASS_NAMES, "lorry"),
        ("Airplane", *CLASS_NAMES[1:]),
        (CLASS_NAMES[1], CLASS_NAMES[0], *CLASS_NAMES[2:]),
        (),
    ],
)
def test_other_class_names_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = put_files(tmp_path / "folder", {**dataset_files(), "batches.meta": meta(names)})
    refusal(lambda: read_split(folder, "test"), folder / "batches.meta", "automobile")


@pytest.mark.parametrize(
    "names",
    [number(1), listing(array(bytes(3072))), listing(b"N"), b"](" * 100_000 + b"e" * 100_000],
)
def test_class_names_that_are_no_names(tmp_path: Path, names: bytes) -> None:
    parts = {"num_cases_per_batch": number(2), "label_names": names, "num_vis": number(1)}
    (tmp_path / "batches.meta").write_bytes(pickled(mapping(parts)))
    refusal(lambda: read_class_names(tmp_path))


def test_a_file_of_another_name(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_6"
    path.write_bytes(batch("data_batch_1", [0]))
    refusal(lambda: read_batch(path), "data_batch_5")


def test_a_file_too_large_is_not_parsed(inside: Path) -> None:
    path = inside / "test_batch"
    with path.open("wb") as file:
        file.truncate(64 * 2**20 + 1)  # sparse
    refusal(lambda: read_batch(path), path, "67,108,864")


def test_a_batch_that_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "test_batch"
    refusal(lambda: read_batch(path), "no such file")
    os.mkfifo(path)
    refusal(lambda: read_batch(path), "regular file")
    path.unlink()
    path.mkdir()
    refusal(lambda: read_batch(path), "regular file")


# --- mutations -----------------------------------------------------------------------------------

SEED_FILE = batch("test_batch", [7])
# Everything but the inner pixels, of which one is like the other.
_PIXELS_AT = SEED_FILE.index(bytes(range(200)))
STRUCTURE = [*range(_PIXELS_AT + 2), *range(_PIXELS_AT + 3070, len(SEED_FILE))]
FRAGMENTS = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([*STRANGE.values()]).filter(lambda payload: len(payload) < 5000),
    st.sampled_from([*GADGETS]).map(CALLS["REDUCE"]),
    st.sampled_from([EMPTY, UINT8, LAID_OUT, NDARRAY, b"(", b"t", b"R", b"b", b"0", b"."]),
)
EDITS = st.lists(
    st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 8), FRAGMENTS), min_size=1, max_size=4
)


@settings(
    max_examples=FUZZ_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(EDITS)
@example([(0, 0, b"")])
def test_a_mutated_file_is_read_or_refused(inside: Path, edits: list[Any]) -> None:
    content = SEED_FILE
    for position, removed, inserted in edits:
        content = content[:position] + inserted + content[position + removed :]
    path = inside / "test_batch"
    path.write_bytes(content)
    try:
        read = read_batch(path)
    except AssetError:
        pass
    else:
        assert isinstance(read, Split)
        assert read.images.shape == (len(read.labels), 32, 32, 3)
        assert read.images.dtype == np.uint8
        assert set(read.labels.tolist()) <= set(range(10))
    assert not (inside / "CANARY").exists()
