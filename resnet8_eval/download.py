"""Put files into the cache folder. The only module that uses the network.

Each file or folder is made whole or not at all, by one process at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from resnet8_eval.errors import AssetError
from resnet8_eval.store import hold

Announce = Callable[[str], None]

_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 30
"""How long a server may be silent."""


class DownloadError(Exception):
    """Why a download failed, in one line."""


def make(target: Path, write: Callable[[Path], None], cache: Path, announce: Announce) -> None:
    """Make a file or folder in the cache, unless it is there; AssetError if that cannot be written.

    Parameters
    ----------
    write
        Writes it to a path in an empty folder; the path's name is that of `target`.
    announce
        Called with one line while another process is waited for.
    """
    if os.path.lexists(target):
        return
    # Always the same folder, so that the next process removes what a killed one left in it.
    scratch = cache / ".making"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        waiting = (
            f"Waiting for another process, which downloads or makes files in {cache}, before"
            f" {target.name} can be made."
        )
        with hold(cache / "making.lock", announce, waiting):
            if os.path.lexists(target):
                return
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                write(scratch / target.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                (scratch / target.name).rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise AssetError(
            f"{target} cannot be made.",
            expected="a cache folder that can be written, with some hundred megabytes free",
            given=in_one_line(error),
            next_step="name another folder with --cache-dir, which comes before RESNET8_EVAL_CACHE",
        ) from error


def retrieve(url: str | None, sha256: str, target: Path) -> None:
    """Download a file, with one attempt.

    DownloadError if it cannot be downloaded, or has another checksum.
    """
    import pooch

    known_hash = f"sha256:{sha256}"
    with ExitStack() as answers:  # which pooch leaves open when a download fails
        downloader = pooch.HTTPDownloader(
            progressbar=True,
            chunk_size=2**18,
            timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            hooks={"response": lambda answer, **_: answers.enter_context(answer)},
        )
        try:
            pooch.retrieve(url, known_hash, target.name, target.parent, downloader=downloader)
        except (OSError, ValueError) as error:  # the errors of `requests` are OSErrors
            cause: BaseException = error
            while cause.__context__ is not None:  # "no such host" is deep in "too many retries"
                cause = cause.__context__
            raise DownloadError(in_one_line(cause)) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack one folder from a verified .tar.gz; its name there is that of `folder`."""
    import pooch

    untar = pooch.Untar(members=[folder.name], extract_dir=str(folder.parent))
    untar(str(archive), "fetch", None)


def in_one_line(error: BaseException) -> str:
    """The name of an error's class and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
