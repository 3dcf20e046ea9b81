"""Planted faults: damaged, swapped and hostile assets, and downloads that go wrong."""

from __future__ import annotations

import hashlib
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

import numpy as np
import pytest
from filelock import FileLock

from resnet8_eval import assets, cifar10, download, standin, store
from resnet8_eval import manifest as listed
from resnet8_eval.assets import DATASET_FOLDER, Assets, MissingAssetError, fetch, locate
from resnet8_eval.cifar10 import CLASS_NAMES, read_class_names, read_split
from resnet8_eval.errors import AssetError
from tests.small_assets import (
    SmallAssets,
    batch,
    batch_parts,
    dataset_files,
    listing,
    mapping,
    meta,
    number,
    official_archive,
    packed,
    pickled,
    put_files,
    text,
)
from tests.small_flow import as_user

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
    for module in (assets, listed):
        monkeypatch.setattr(module, "fixtures_dir", lambda: fixtures)
    monkeypatch.setattr(assets, "_checkouts", lambda: [tmp_path / "checkout"])
    monkeypatch.setattr(standin, "materialise", lambda folder: put_files(folder, small.files))
    monkeypatch.setattr(assets, "load_manifest", small.manifest)
    monkeypatch.delenv("RESNET8_EVAL_OFFLINE", raising=False)
    monkeypatch.setenv("RESNET8_EVAL_ASSETS", str(tmp_path / "given"))
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "given").mkdir()

    def find(
        kind: str = "real", *, manifest: listed.Manifest | None = None, **options: object
    ) -> Assets:
        if manifest is not None:
            monkeypatch.setattr(assets, "load_manifest", lambda: manifest)
        settings = {"assets_dir": None, "cache_dir": tmp_path / "cache", **options}
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

    monkeypatch.setattr(listed, "file_sha256", unreadable)
    refusal(find, path, "Permission denied")


def test_a_file_that_changes_is_verified_again(
    tmp_path: Path, small: SmallAssets, find: Find
) -> None:
    path = small.put_model(tmp_path / "given")
    small.put_dataset(tmp_path / "given")
    find()
    before = path.stat()
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
def test_a_damaged_manifest(
    tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(assets, "load_manifest", listed.load_manifest)
    refusal(find, tmp_path / "fixtures" / "assets.json")
    (tmp_path / "fixtures" / "assets.json").write_text(content)
    refusal(find, tmp_path / "fixtures" / "assets.json")


# --- what the user gives -------------------------------------------------------------------------


def test_a_given_folder_that_is_not_there(
    tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal(lambda: find("auto", assets_dir=tmp_path / "typo"), tmp_path / "typo", "--assets-dir")
    monkeypatch.setenv("RESNET8_EVAL_ASSETS", str(tmp_path / "typo"))
    refusal(lambda: find("auto"), tmp_path / "typo", "RESNET8_EVAL_ASSETS")


@pytest.mark.parametrize("command", ["run --assets auto", "assets"])
@pytest.mark.parametrize("below", [".", "inside"])
@pytest.mark.parametrize("mode", [0, 0o444], ids=["nothing", "only listing"])
def test_a_given_folder_that_may_not_be_looked_into(
    tmp_path: Path, mode: int, below: str, command: str
) -> None:
    """It must not count as empty: `auto` would go on to the stand-in."""
    folder = tmp_path / "closed"
    (folder / "inside").mkdir(parents=True)
    folder.chmod(mode)
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


def test_a_folder_of_an_unknown_user(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
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
    helps = "--cache-dir, which comes before RESNET8_EVAL_CACHE"
    refusal(lambda: find("stand-in", cache_dir=unwritable), unwritable, helps)
    small.put_archive(tmp_path / "given")
    small.put_model(tmp_path / "given")
    refusal(lambda: find(cache_dir=unwritable), unwritable, helps)


# --- archives ------------------------------------------------------------------------------------


def test_an_archive_is_not_opened_before_its_checksum_is_right(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.put_model(tmp_path / "given")
    path = small.put_archive(tmp_path / "given", flipped(small.archive))
    manifest = small.manifest()
    opened: list[object] = []
    monkeypatch.setattr(tarfile.TarFile, "open", lambda *words, **_: opened.append(words))
    refusal(lambda: find(manifest=manifest), path, manifest.archive.sha256)
    assert opened == []
    assert not (tmp_path / "cache").exists()


ODD_MEMBERS: dict[str, bytes | None] = {
    "another file": b"something else",
    "missing": None,
}


@pytest.mark.parametrize("member", ODD_MEMBERS.values(), ids=ODD_MEMBERS)
def test_what_comes_out_of_an_archive_is_verified_too(
    tmp_path: Path, small: SmallAssets, find: Find, member: bytes | None
) -> None:
    """Even if the archive itself has the manifest's checksum."""
    files = {**small.files, "test_batch": member}
    archive = official_archive({name: content for name, content in files.items() if content})
    small.put_model(tmp_path / "given")
    small.put_archive(tmp_path / "given", archive)
    unpacked = tmp_path / "cache" / DATASET_FOLDER / "test_batch"
    refusal(lambda: find(manifest=small.manifest(archive=archive)), unpacked)


def test_only_the_folder_of_the_data_set_is_unpacked(
    tmp_path: Path, small: SmallAssets, find: Find
) -> None:
    inside = {f"{DATASET_FOLDER}/{name}": content for name, content in small.files.items()}
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    archive = packed(
        {"../outside": b"x", f"{DATASET_FOLDER}/../more": b"x", "link": link, **inside}
    )
    small.put_model(tmp_path / "given")
    small.put_archive(tmp_path / "given", archive)
    before = set(tmp_path.rglob("*"))
    dataset = find(manifest=small.manifest(archive=archive)).dataset
    made = set(tmp_path.rglob("*")) - before
    assert made == {
        tmp_path / "cache",
        tmp_path / "cache" / "making.lock",
        dataset,
        *(dataset / name for name in small.files),
    }


# --- downloads -----------------------------------------------------------------------------------


@dataclass
class Site:
    """A web site on this machine. `fault` decides how it answers."""

    pages: dict[str, bytes]
    fault: str = ""
    requests: list[str] = field(default_factory=list)
    url: str = ""


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
        self.send_response(404 if site.fault == "not found" else 200)
        announced = len(page) + (site.fault == "announces more")
        self.send_header("Content-Length", str(announced))
        self.end_headers()
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
    """List what is in the cache, besides the lock."""
    names = {path.name for path in folder.iterdir()}
    return names - {"making.lock"}


@pytest.mark.usefixtures("find")
def test_fetch(
    tmp_path: Path, small: SmallAssets, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(assets, "load_manifest", lambda: small.manifest(site.url))
    model, dataset = fetch(cache)
    assert model.read_bytes() == small.model
    for name, content in small.files.items():
        assert (dataset / name).read_bytes() == content
    assert site.requests == ["/model.h5", "/cifar.tar.gz"]
    assert fetch(cache) == (model, dataset)
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
    if reason == "timed out":  # on a busy machine, another answer may take as long
        monkeypatch.setattr(download, "_READ_SECONDS", 0.3)
    manifest = small.manifest(site.url)
    site.fault = fault
    error = refusal(lambda: find(manifest=manifest), reason, "model.h5", "cifar.tar.gz")
    assert isinstance(error, MissingAssetError)
    assert error.given.count(reason) == 2  # one failure does not hide the other
    assert contents(tmp_path / "cache") == set()
    if fault != "redirects in a circle":
        assert site.requests == ["/model.h5", "/cifar.tar.gz"]  # one attempt for each
    lines = str(error).splitlines()
    assert len(lines) <= 25
    assert sum(reason in line for line in lines[-10:]) == 2
    said: list[str] = []
    assert find("auto", manifest=manifest, announce=said.append).kind == "stand-in"
    assert reason in said[0]
    site.fault = ""
    assert find(manifest=manifest).kind == "real"


def test_who_waits_for_another_process_says_so(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.1)
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
    refusal(lambda: fetch(tmp_path / "cache"), "RESNET8_EVAL_OFFLINE")
    assert site.requests == []


def test_a_download_into_a_cache_that_cannot_be_written(
    tmp_path: Path, small: SmallAssets, find: Find, site: Site
) -> None:
    (tmp_path / "file").touch()
    unwritable = tmp_path / "file" / "cache"
    manifest = small.manifest(site.url)
    refusal(lambda: find(cache_dir=unwritable, manifest=manifest), unwritable)


# --- pickles that run code ------------------------------------------------------------------------

# Each would make the file CANARY in the current folder, if it were called.
MARK = "open('CANARY', 'w').close()"
GADGETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "os.system": ("os", "system", ("touch CANARY",)),
    "posix.system": ("posix", "system", ("touch CANARY",)),
    "os.mkdir": ("os", "mkdir", ("CANARY",)),
    "subprocess.getoutput": ("subprocess", "getoutput", ("touch CANARY",)),
    "builtins.eval": ("builtins", "eval", (MARK,)),
    "__builtin__.eval": ("__builtin__", "eval", (MARK,)),
    "builtins.getattr": ("builtins", "getattr", ("", "join")),
    "importlib.import_module": ("importlib", "import_module", ("antigravity",)),
    "pickle.loads": ("pickle", "loads", ("cos\nsystem\n(S'touch CANARY'\ntR.",)),
    "numpy.memmap": ("numpy", "memmap", ("CANARY", "uint8", "w+")),
    "numpy.f2py.crackfortran.myeval": ("numpy.f2py.crackfortran", "myeval", (MARK,)),
    "numpy.core scalar": ("numpy.core.multiarray", "scalar", ("x",)),
    "numpy.dtype.type": ("numpy", "dtype.type", ("x",)),
    "torch.load": ("torch", "load", ("CANARY",)),
    "pydoc.pipepager": ("pydoc", "pipepager", ("x", "touch CANARY")),
    "sys.modules": ("sys", "modules", ()),
    "resnet8_eval itself": ("resnet8_eval.standin", "materialise", ("CANARY",)),
}
RUNNABLE = ("os.system", "os.mkdir", "subprocess.getoutput", "builtins.eval", "pydoc.pipepager")


def arguments(gadget: str) -> bytes:
    # Written as the official files write strings, so that only the call is unusual.
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
    "BUILD": lambda g: by_global(g) + b"}(" + text("__setstate__") + by_global(g) + b"ub",
}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the test's own folder the current one: a canary would appear in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batches.meta").write_bytes(meta())
    return tmp_path


def refuse_batch(folder: Path, content: bytes, *parts: object) -> AssetError:
    path = folder / "test_batch"
    path.write_bytes(content)
    error = refusal(lambda: read_split(folder, "test"), path, *parts)
    assert not (folder / "CANARY").exists()
    return error


@pytest.mark.parametrize("gadget", RUNNABLE)
def test_the_canary_would_be_seen(inside: Path, gadget: str) -> None:
    pickle.loads(pickled(CALLS["REDUCE"](gadget)))  # noqa: S301
    assert (inside / "CANARY").exists()


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_code_is_run(inside: Path, gadget: str) -> None:
    parts = batch_parts("test_batch", [0, 5, 9])
    refers = f"refers to {'.'.join(GADGETS[gadget][:2])}"
    for call in CALLS.values():
        payload = call(gadget)
        refuse_batch(inside, pickled(payload), refers)
        refuse_batch(inside, pickled(payload + b"0" + mapping(parts)), refers)  # and a good batch
        refuse_batch(inside, pickled(mapping({**parts, "filenames": payload})), refers)
        (inside / "batches.meta").write_bytes(pickled(payload))
        refusal(lambda: read_class_names(inside), inside / "batches.meta", refers)
        assert not (inside / "CANARY").exists()
        (inside / "batches.meta").write_bytes(meta())


def test_a_file_of_another_checksum_is_not_unpickled(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"batches.meta": meta(), "test_batch": batch("test_batch", [0, 5, 9])}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    put = inside / "test_batch"
    put.write_bytes(files["test_batch"])
    assert read_split(inside, "test", sums).labels.tolist() == [0, 5, 9]
    read_class_names(inside, sums)
    monkeypatch.setattr(cifar10, "_Unpickler", None)
    for name, content in files.items():
        (inside / name).write_bytes(content[:-1] + b"0.")
    refusal(lambda: read_class_names(inside, sums), "batches.meta changed", sums["batches.meta"])
    (inside / "batches.meta").write_bytes(files["batches.meta"])
    monkeypatch.setattr(cifar10, "read_class_names", lambda *_: None)
    refusal(lambda: read_split(inside, "test", sums), "test_batch changed", sums["test_batch"])


# --- files that are not what they say ------------------------------------------------------------


WRONG_BATCHES: dict[str, bytes] = {
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


def test_class_names_that_are_no_names(tmp_path: Path) -> None:
    for names in (number(1), listing(b"N"), text("airplane")):
        parts = {"num_cases_per_batch": number(2), "label_names": names, "num_vis": number(1)}
        (tmp_path / "batches.meta").write_bytes(pickled(mapping(parts)))
        refusal(lambda: read_class_names(tmp_path))


def test_a_batch_that_is_no_file(inside: Path) -> None:
    path = inside / "test_batch"
    refusal(lambda: read_split(inside, "test"), path, "No such file")
    path.mkdir()
    refusal(lambda: read_split(inside, "test"), path, "Is a directory")
