"""The assets in miniature: the official layout and pickle dialect, a few images to a file."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resnet8_eval.assets import DATASET_FOLDER
from resnet8_eval.cifar10 import CLASS_NAMES
from resnet8_eval.manifest import Collection, Entry, Manifest

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""

TITLES = {
    **{f"data_batch_{i}": f"training batch {i} of 5" for i in range(1, 6)},
    "test_batch": "testing batch 1 of 1",
}


def text(value: str) -> bytes:
    """SHORT_BINSTRING, which Python 2 wrote for every short string."""
    return b"U" + bytes([len(value)]) + value.encode("latin-1")


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def listing(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def array(pixels: bytes, columns: int = 3072) -> bytes:
    """Write a two-dimensional array of uint8 as NumPy 1 did, memo instructions included."""
    shape = number(len(pixels) // columns) + number(columns) + b"\x86q\x0b"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85q\x07"
        b"U\x01bq\x08\x87q\x09Rq\x0a(K\x01" + shape + b"cnumpy\ndtype\nq\x0cU\x02u1q\x0dK\x00K\x01"
        b"\x87q\x0eRq\x0f(K\x03U\x01|q\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x11b\x89T"
        + struct.pack("<i", len(pixels))
        + pixels
        + b"q\x12tq\x13b"
    )


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def batch_parts(name: str, labels: list[int]) -> dict[str, bytes]:
    """Make the four values of a batch; pixel p of image i is (i + p) mod 251."""
    pixels = bytes((i + p) % 251 for i in range(len(labels)) for p in range(3072))
    return {
        "batch_label": text(TITLES[name]),
        "labels": listing(*map(number, labels)),
        "data": array(pixels),
        "filenames": listing(*(text(f"{i}.png") for i in range(len(labels)))),
    }


def batch(name: str, labels: list[int]) -> bytes:
    return pickled(mapping(batch_parts(name, labels)))


def meta(names: tuple[str, ...] = CLASS_NAMES) -> bytes:
    return pickled(
        mapping(
            {
                "num_cases_per_batch": number(2),
                "label_names": listing(*map(text, names)),
                "num_vis": number(3072),
            }
        )
    )


def dataset_files() -> dict[str, bytes]:
    """Make the seven files: two images to a training batch, three in the test batch."""
    batches = {f"data_batch_{i}": batch(f"data_batch_{i}", [i, i + 1]) for i in range(1, 6)}
    return {**batches, "test_batch": batch("test_batch", [0, 5, 9]), "batches.meta": meta()}


def packed(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """Pack a .tar.gz of files, or of members made by hand, in this order."""
    buffer = io.BytesIO()
    # Without a fixed time, gzip stamps the second into the header.
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as tar,
    ):
        for name, member in members.items():
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    return buffer.getvalue()


def official_archive(files: Mapping[str, bytes]) -> bytes:
    folder = tarfile.TarInfo(DATASET_FOLDER)
    folder.type = tarfile.DIRTYPE
    inside = {f"{DATASET_FOLDER}/{name}": content for name, content in files.items()}
    return packed({"": folder, **inside, f"{DATASET_FOLDER}/readme.html": b"<html></html>"})


def entry(name: str, content: bytes, url: str | None = None) -> Entry:
    return Entry(
        name=name,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        url=url,
    )


@dataclass(frozen=True)
class SmallAssets:
    """Files and the manifest that fits them."""

    model: bytes = b"\x89HDF\r\n\x1a\n a model"
    standin_model: bytes = b"\x89HDF\r\n\x1a\n a stand-in"
    files: dict[str, bytes] = field(default_factory=dataset_files)

    @property
    def archive(self) -> bytes:
        return official_archive(self.files)

    def manifest(self, url: str = NOWHERE, archive: bytes | None = None) -> Manifest:
        archive = self.archive if archive is None else archive
        files = tuple(entry(name, content) for name, content in self.files.items())
        return Manifest(
            real=Collection(entry("model.h5", self.model, f"{url}/model.h5"), files),
            archive=entry("cifar.tar.gz", archive, f"{url}/cifar.tar.gz"),
            standin=Collection(entry("standin.h5", self.standin_model), files),
        )

    def put_model(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.h5").write_bytes(self.model)
        return folder / "model.h5"

    def put_dataset(self, folder: Path) -> Path:
        return put_files(folder / DATASET_FOLDER, self.files)

    def put_archive(self, folder: Path, archive: bytes | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cifar.tar.gz").write_bytes(self.archive if archive is None else archive)
        return folder / "cifar.tar.gz"


def put_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
