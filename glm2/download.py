"""Files of released models: found in ``./checkpoint_download/glm2``, or fetched into it.

Where they come from is the user's to say (``GLM2_DOWNLOAD_URL``, or ``url``): a folder on a web
server with ``glm2_6b.ckpt``, ``tokenizer.model``, and beside each of them ``<file>.sha256``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional

from glm2.errors import DownloadError
from glm2.metrics import warn

DOWNLOADS = Path("checkpoint_download") / "glm2"
"""Where the guide's ``from_pretrained`` keeps what it has fetched."""
URL = "GLM2_DOWNLOAD_URL"
RELEASED = {"glm2_6b": "run_glm2_6b", "glm2_6b_lora": "run_glm2_6b_lora"}
"""Released models, and the shipped configuration of each."""
VOCABULARY = "tokenizer.model"
"""The tokenizer of all of them."""
CHUNK = 1 << 20
ATTEMPTS = 5
"""Times in a row that a connection may break without a byte more; each begins where it was."""
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Progress:
    """So many bytes of a file are here; ``total`` 0: not known."""

    name: str
    done: int
    total: int


def obtain(
    name: str,
    *,
    url: Optional[str] = None,
    folder: Path = DOWNLOADS,
    environ: Mapping[str, str] = os.environ,
    show: Optional[Callable[[Progress], None]] = None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """The file ``name`` of a released model, fetched if it is not in ``folder`` yet.

    A fetch that was cut short goes on where it was, also in a later process; the file appears
    whole, with its checksum right, or not at all. Several ranks of a host fetch it once. Raises
    DownloadError with what to do.
    """
    file = folder / name
    if file.is_file():
        return file
    base = url or environ.get(URL, "")
    if not base:
        raise DownloadError(
            f"there is no {file}, and no place to fetch it from",
            hint=f"put {name} into ./{folder}, or set {URL} to the web folder that has it",
        )
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise DownloadError(f"{base} is no web address", hint="it begins with http:// or https://")
    folder.mkdir(parents=True, exist_ok=True)
    source = f"{base.rstrip('/')}/{urllib.parse.quote(name)}"
    with _alone(folder / f".{name}.lock"):
        if not file.is_file():  # another rank may have fetched it meanwhile
            _fetch(source, file, show or _terminal(), wait)
    return file


def _fetch(
    source: str, file: Path, show: Callable[[Progress], None], wait: Callable[[float], None]
) -> None:
    expected = _checksum(source)
    part = file.with_name(f"{file.name}.part")
    failures, error = 0, ""
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            total = _more(source, part, before, show)
            if part.stat().st_size >= total:
                break
            error = "the connection was cut"
        except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:
            error = _reason(problem, source)
        here = part.stat().st_size if part.is_file() else 0
        failures = 1 if here > before else failures + 1
        if failures == ATTEMPTS:
            raise DownloadError(
                f"cannot fetch {source}: {error}; {here} bytes of it are in {part}",
                hint="try again, it goes on from there; without a network, put "
                f"{file.name} into {file.parent} by hand",
            )
        wait(min(2.0 ** (failures - 1), 30.0))
    found = _sha256(part)
    if expected and found != expected:
        part.unlink()
        raise DownloadError(
            f"{source} arrived with the SHA-256 {found}, not {expected}; it was thrown away",
            hint="fetch it again; if that repeats, the file or its .sha256 on the server is wrong",
        )
    if not expected:
        warn(f"there is no {source}.sha256 to compare with: the SHA-256 of {file} is {found}")
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(file)
    _note(part).unlink(missing_ok=True)


def _more(source: str, part: Path, have: int, show: Callable[[Progress], None]) -> int:
    """Append to ``part`` until the end or a break; returns the size of the whole file."""
    request = urllib.request.Request(source, headers={"Accept-Encoding": "identity"})
    version = _noted(part) if have else ""
    if version:
        # Another version of the file since then: the server sends all of it.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as problem:
        if problem.code == 416 and version:  # there is no more, so what is here is not of it
            part.unlink()
        raise
    with answer:
        goes_on = answer.status == 206
        if not goes_on:
            have = 0
        length = answer.headers.get("Content-Length")
        if length is None:
            raise DownloadError(f"{source} does not say its size", hint="use another server")
        total = have + int(length)
        _room(part, int(length))
        _note(part).write_text(
            json.dumps({"version": answer.headers.get("ETag") or ""}), encoding="utf-8"
        )
        with part.open("ab" if goes_on else "wb") as out:
            while True:
                try:
                    chunk = answer.read(CHUNK)
                except http.client.IncompleteRead as cut:
                    chunk = cut.partial
                if not chunk:
                    break
                out.write(chunk)
                have += len(chunk)
                show(Progress(part.stem, have, total))
    return total


def _checksum(source: str) -> str:
    """What ``<file>.sha256`` beside it says; empty where there is none."""
    try:
        with urllib.request.urlopen(f"{source}.sha256", timeout=TIMEOUT_S) as answer:
            words = answer.read(4096).decode("ascii", "replace").split()
    except urllib.error.HTTPError as problem:
        if problem.code == 404:
            return ""
        raise DownloadError(f"cannot fetch {source}.sha256: {_reason(problem, source)}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:
        name = urllib.parse.unquote(source.rpartition("/")[2])
        raise DownloadError(
            f"cannot reach {source}: {_reason(problem, source)}",
            hint=f"see that the address is right and reachable; without a network, put {name} "
            f"into ./{DOWNLOADS} by hand",
        ) from None
    if not words or len(words[0]) != 64 or set(words[0].lower()) - set("0123456789abcdef"):
        raise DownloadError(f"{source}.sha256 holds no SHA-256", hint="repair it on the server")
    return words[0].lower()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        for chunk in iter(lambda: data.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _room(part: Path, size: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < size:
        raise DownloadError(
            f"{part.name} needs {size} bytes more, {part.parent} has {free} free",
            hint="make room there",
        )


def _note(part: Path) -> Path:
    """Beside a part: which version of the file it belongs to."""
    return part.with_name(f"{part.name}.json")


def _noted(part: Path) -> str:
    """The version, if the server named one that it can compare byte by byte."""
    try:
        version = json.loads(_note(part).read_text("utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if str(version).startswith("W/") else str(version)


def _reason(problem: Exception, source: str) -> str:
    if isinstance(problem, urllib.error.HTTPError):
        if problem.code == 404:
            raise DownloadError(
                f"the server has no {source}", hint=f"see that {URL} names the right folder"
            ) from None
        return f"the server answers {problem.code} {problem.reason}"
    if isinstance(problem, urllib.error.URLError):
        return str(problem.reason)
    return str(problem) or type(problem).__name__


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _terminal() -> Callable[[Progress], None]:
    """A line on standard error: one that grows on a terminal, one for each tenth elsewhere."""
    begun, said = time.monotonic(), [-1, 0.0]

    def show(progress: Progress) -> None:
        now = time.monotonic()
        tenth = 10 * progress.done // max(progress.total, 1)
        terminal = sys.stderr.isatty()
        whole = progress.done == progress.total
        if not whole and (now - said[1] < 0.2 if terminal else tenth == said[0]):
            return
        said[:] = [tenth, now]
        rate = progress.done / 1e6 / max(now - begun, 1e-9)
        text = (
            f"{progress.name}: {progress.done / 1e6:.1f} of {progress.total / 1e6:.1f} MB, "
            f"{rate:.1f} MB/s"
        )
        end = "\n" if whole or not terminal else ""
        print(f"\r{text}" if terminal else text, end=end, file=sys.stderr, flush=True)

    return show
