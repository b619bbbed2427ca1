"""Released files, fetched from a real server on this host that also misbehaves."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Dict, Iterator, List, Optional

import pytest

from glm2.download import ATTEMPTS, Progress, obtain
from glm2.errors import DownloadError

CONTENT = bytes(range(256)) * 20_000  # 5.1 MB: several chunks
NAME = "glm2_6b.ckpt"


class Server:
    """A web folder. ``cut`` ends each answer after so many bytes, as a broken connection does."""

    def __init__(self) -> None:
        self.files: Dict[str, bytes] = {}
        self.cuts: List[int] = []
        self.ranges: List[Optional[str]] = []
        self.ignore_ranges = False
        folder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = folder.files.get(self.path.lstrip("/"))
                if data is None:
                    self.send_error(404)
                    return
                version = f'"{hashlib.md5(data).hexdigest()}"'
                wanted = self.headers.get("Range")
                first = 0
                if not self.path.endswith(".sha256"):
                    folder.ranges.append(wanted)
                if self.headers.get("If-Range") == version and not folder.ignore_ranges:
                    first = int(str(wanted).partition("=")[2].rstrip("-"))
                if first > len(data):
                    self.send_error(416)
                    return
                body = data[first:]
                self.send_response(206 if first else 200)
                self.send_header("ETag", version)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if folder.cuts and not self.path.endswith(".sha256"):
                    body = body[: folder.cuts.pop(0)]
                    self.close_connection = True
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def offer(self, name: str, data: bytes, checksum: bool = True) -> None:
        self.files[name] = data
        if checksum:
            line = f"{hashlib.sha256(data).hexdigest()}  {name}\n"
            self.files[f"{name}.sha256"] = line.encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def fetch(server: Server, folder: Path, **more: object) -> Path:
    waits: List[float] = []
    return obtain(NAME, url=server.url, folder=folder, wait=waits.append, **more)  # type: ignore[arg-type]


def test_a_file_is_fetched_once_and_alone_in_its_folder(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, CONTENT)
    seen: List[Progress] = []
    file = fetch(server, tmp_path / "new", show=seen.append)
    assert file.read_bytes() == CONTENT
    assert seen[-1] == Progress(NAME, len(CONTENT), len(CONTENT))
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert [f.name for f in file.parent.iterdir() if not f.name.startswith(".")] == [NAME]
    server.files.clear()
    assert fetch(server, tmp_path / "new") == file


def test_a_cut_connection_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, CONTENT)
    server.cuts = [1_000_000, 10, 2_000_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-", "bytes=1000010-", "bytes=3000010-"]


def test_a_later_process_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, CONTENT)
    server.cuts = [1_000_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError, match="1000000 bytes of it are in") as caught:
        fetch(server, tmp_path)
    assert "goes on from there" in caught.value.hint
    assert not (tmp_path / NAME).exists()
    server.cuts, server.ranges = [], []
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000000-"]


def test_another_version_since_then_is_fetched_from_its_beginning(
    server: Server, tmp_path: Path
) -> None:
    server.offer(NAME, CONTENT)
    server.cuts = [1_000_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError):
        fetch(server, tmp_path)
    server.cuts = []
    server.offer(NAME, CONTENT[::-1])
    assert fetch(server, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_server_that_cannot_go_on_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, CONTENT)
    server.cuts, server.ignore_ranges = [1_000_000], True
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, CONTENT)
    server.files[NAME] = CONTENT[:-1] + b"?"
    with pytest.raises(DownloadError, match=r"arrived with the SHA-256 .*thrown away"):
        fetch(server, tmp_path)
    assert not (tmp_path / NAME).exists()
    assert not (tmp_path / f"{NAME}.part").exists()
    server.offer(NAME, CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_without_a_checksum_it_is_said(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.offer(NAME, CONTENT, checksum=False)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in capsys.readouterr().err


def test_a_checksum_of_another_kind_is_refused(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, CONTENT)
    server.files[f"{NAME}.sha256"] = b"<html>"
    with pytest.raises(DownloadError, match="holds no SHA-256"):
        fetch(server, tmp_path)


def test_several_ranks_fetch_once(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, CONTENT)
    found: List[bytes] = []
    ranks = [
        threading.Thread(target=lambda: found.append(fetch(server, tmp_path).read_bytes()))
        for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert found == [CONTENT] * 4
    assert server.ranges == [None]


def test_a_file_that_the_server_lacks_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"the server has no http.*{NAME}"):
        fetch(server, tmp_path)


def test_a_server_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot reach") as caught:
        obtain(NAME, url="http://127.0.0.1:9", folder=tmp_path)
    assert "by hand" in caught.value.hint


def test_without_a_place_to_fetch_from_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"there is no .*{NAME}") as caught:
        obtain(NAME, folder=tmp_path, environ={})
    assert "GLM2_DOWNLOAD_URL" in caught.value.hint
    with pytest.raises(DownloadError, match="no web address"):
        obtain(NAME, folder=tmp_path, environ={"GLM2_DOWNLOAD_URL": "ftp://x"})


def test_the_place_may_come_from_the_environment(server: Server, tmp_path: Path) -> None:
    server.offer(NAME, b"x")
    found = obtain(NAME, folder=tmp_path, environ={"GLM2_DOWNLOAD_URL": server.url + "/"})
    assert found.read_bytes() == b"x"
