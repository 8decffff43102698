"""Downloads, from a server on this machine that breaks off, changes its mind, and lies."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from onnxplain.errors import DownloadError, OutputError
from onnxplain.models import download
from onnxplain.models.download import cached, fetch

DATA = bytes(range(256)) * 4000  # a megabyte
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass
class Server:
    """What the next answers are, and what was asked."""

    url: str = ""
    data: bytes = DATA
    etag: str | None = '"one"'
    ranges: bool = True
    cut: list[int] = field(default_factory=list)  # how many bytes each answer breaks off after
    status: list[int] = field(default_factory=list)
    redirect: str | None = None
    shift: int = 0  # of the part that comes, against that which was asked for
    length: int | None = None
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Range"))
            if state.status:
                self.send_error(state.status.pop(0))
                return
            if state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect)
                self.end_headers()
                return
            start = 0
            if state.ranges and (wanted := self.headers.get("Range")) and self.headers.get("If-Range") == state.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            body = state.data[start + state.shift :] if start else state.data
            if start and not body:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start + state.shift}-{len(DATA) - 1}/{len(DATA)}")
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(body) if state.length is None else state.length))
            self.end_headers()
            self.wfile.write(body[: state.cut.pop(0)] if state.cut else body)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setattr(download, "PATIENCE", (2.0, 2.0))
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    for name in download.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}/models/net%201.bin?download=true"
        yield state
        http.shutdown()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert not cached(server.url, folder=tmp_path)
    path = fetch(server.url, sha256=SHA, folder=tmp_path, observe=lambda *what: seen.append(what))
    assert path.name == "net 1.bin"
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert fetch(server.url, sha256=SHA[:8].upper(), folder=tmp_path) == path
    assert cached(server.url, folder=tmp_path)
    assert server.asked == [None]
    assert files(tmp_path) == ["net 1.bin"]


def test_what_broke_off_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut = [200_000, 300_000, 0]
    assert fetch(server.url, sha256=SHA, folder=tmp_path).read_bytes() == DATA
    assert server.asked[:2] == [None, "bytes=196608-"]
    assert files(tmp_path) == ["net 1.bin"]


def test_what_was_left_by_an_earlier_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut = [200_000, *[0] * 20]
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(server.url, folder=tmp_path)
    assert files(tmp_path) == ["net 1.bin.part", "net 1.bin.part.tag"]
    server.cut, server.asked = [], []
    assert fetch(server.url, sha256=SHA, folder=tmp_path).read_bytes() == DATA
    assert server.asked == ["bytes=196608-"]


def test_ctrl_c_keeps_what_there_is(server: Server, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        if done > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, folder=tmp_path, observe=stop)
    assert "net 1.bin.part" in files(tmp_path)
    assert fetch(server.url, sha256=SHA, folder=tmp_path).read_bytes() == DATA
    assert server.asked[-1] is not None


@pytest.mark.parametrize("change", ["tag", "ranges", "no tag"])
def test_halves_of_two_files_are_not_joined(server: Server, tmp_path: Path, change: str) -> None:
    if change == "no tag":
        server.etag = None
    server.cut = [200_000, *[0] * 20]
    with pytest.raises(DownloadError):
        fetch(server.url, folder=tmp_path)
    server.cut, server.data = [], DATA[::-1]
    server.etag = '"two"' if change == "tag" else server.etag
    server.ranges = change != "ranges"
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA[::-1]


@pytest.mark.parametrize("sha", [SHA[:-1] + "x", "0" * 8])
def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path, sha: str) -> None:
    with pytest.raises(DownloadError, match=f"SHA-256 {sha}, got {SHA}, which was removed"):
        fetch(server.url, sha256=sha, folder=tmp_path)
    assert files(tmp_path) == []
    good = fetch(server.url, sha256=SHA, folder=tmp_path)
    good.write_bytes(b"somebody was here")
    with pytest.raises(DownloadError, match="which was removed"):
        fetch(server.url, sha256=SHA, folder=tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", download.OFFLINE)
def test_offline_the_cache_is_all(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(DownloadError, match=f"{name} forbids the net"):
        fetch(server.url, folder=tmp_path)
    monkeypatch.setenv(name, "0")
    path = fetch(server.url, folder=tmp_path)
    monkeypatch.setenv(name, "1")
    assert fetch(server.url, folder=tmp_path) == path


def test_servers_that_are_busy_are_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = [503, 500]
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert len(server.asked) == 3


def test_what_is_not_there_is_said(server: Server, tmp_path: Path) -> None:
    server.status = [404]
    with pytest.raises(DownloadError, match="the server answered 404 Not Found; next: "):
        fetch(server.url, folder=tmp_path)
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/nothing", folder=tmp_path)


@pytest.mark.parametrize("url", ["http://example.com/x.onnx", "ftp://example.com/x", "file:///etc/passwd", "x.onnx"])
def test_only_safe_addresses(server: Server, tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="expected https"):
        fetch(url, folder=tmp_path)


def test_a_redirect_to_an_unsafe_address_is_refused(server: Server, tmp_path: Path) -> None:
    server.redirect = "http://127.0.0.2:9/x.bin"
    with pytest.raises(DownloadError):
        fetch(server.url, folder=tmp_path)
    assert files(tmp_path) == []


def test_too_much_is_not_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST", 1000)
    with pytest.raises(DownloadError, match="more than the limit of 1000"):
        fetch(server.url, folder=tmp_path)
    assert files(tmp_path) == []


def test_names_do_not_lead_out_of_the_cache(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, name="../../evil.bin", folder=tmp_path / "cache")
    assert (tmp_path / "cache") in path.parents
    assert not (tmp_path / "evil.bin").exists()


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(server.url, folder=tmp_path / "file")


def test_a_part_that_is_another_one_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.cut, server.shift = [200_000], -1000
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert server.asked == [None, "bytes=196608-", None]


def test_a_server_that_never_gives_the_rest(server: Server, tmp_path: Path) -> None:
    server.cut, server.shift = [200_000] * 99, -1000
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(server.url, folder=tmp_path)
    assert len(server.asked) < 9


def test_a_server_that_has_nothing_but_parts(server: Server, tmp_path: Path) -> None:
    server.status = [416] * 9
    with pytest.raises(DownloadError, match="the server answered 416"):
        fetch(server.url, folder=tmp_path)


@pytest.mark.parametrize("path", ["", "/", "/..", "/a%00b"])
def test_an_address_without_a_name(server: Server, tmp_path: Path, path: str) -> None:
    for url in ("https://example.com" + path, "https://[" + path):
        with pytest.raises(DownloadError, match="ends with the name of a file"):
            fetch(url, folder=tmp_path)
    assert not any(tmp_path.iterdir())
