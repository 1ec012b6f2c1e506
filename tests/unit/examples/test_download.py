"""Downloads over a real server on loopback that breaks the line, ignores ranges, or lies."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from batchyard.examples.training import download
from batchyard.examples.training.download import Damaged, Remote, Unavailable, fetch, progress, unpack

CONTENT = bytes(range(256)) * 4000  # about 1 MB


class Server(ThreadingHTTPServer):
    """Serves `content`; each connection ends after `break_after` bytes of it."""

    content = CONTENT
    break_after = 1 << 30
    ranges = True
    status = 0  # something else than 200 and 206

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str | None] = []  # the Range of each request

    def remote(self, content: bytes = CONTENT) -> Remote:
        sha256 = hashlib.sha256(content).hexdigest()
        return Remote(f"http://127.0.0.1:{self.server_port}/a/file.tar.gz", len(content), sha256)


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if self.server.status or start >= len(self.server.content):
            self.send_error(self.server.status or 416)
            return
        rest = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            whole = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.end_headers()
        try:
            self.wfile.write(rest[: self.server.break_after])
        except ConnectionError:  # the client has enough
            pass

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def test_a_file_arrives_whole_and_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    path = fetch(server.remote(), tmp_path / "new" / "file", said.append)
    assert path.read_bytes() == CONTENT
    assert fetch(server.remote(), path) == path
    assert server.asked == [None]
    assert said[-1].startswith("file.tar.gz  100%  1 of 1 MB")
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_broken_line_is_gone_on_with_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.break_after = 300_000
    path = fetch(server.remote(), tmp_path / "file")
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_what_an_earlier_program_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    assert fetch(server.remote(), tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"?" * 1000)
    assert fetch(server.remote(), tmp_path / "file").read_bytes() == CONTENT


def test_a_part_of_another_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"?" * 1000)
    with pytest.raises(Damaged, match="has sha256"):
        fetch(server.remote(), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    assert fetch(server.remote(), tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(Damaged, match="it was not used"):
        fetch(server.remote(), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_the_expected_bytes_are_taken(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT * 20
    assert fetch(server.remote(), tmp_path / "file").stat().st_size == len(CONTENT)


def test_a_file_that_ends_early_is_unavailable_and_its_parts_are_kept(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:5000]
    with pytest.raises(Unavailable, match="5,000 bytes are kept"):
        fetch(server.remote(), tmp_path / "file")


def test_a_server_that_says_no_is_quoted_after_some_attempts(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(Unavailable, match="the server says 404 Not Found"):
        fetch(server.remote(), tmp_path / "file")
    assert len(server.asked) == download.ATTEMPTS


def test_a_file_that_was_put_there_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"something else")
    with pytest.raises(Damaged, match=r"has 14 bytes, and should have 1,024,000"):
        fetch(Remote("http://127.0.0.1:9/f", len(CONTENT), "0" * 64), tmp_path / "file")


def test_progress_says_how_far_and_how_long() -> None:
    line = progress(Remote("http://x/cifar.tar.gz", 100_000_000, ""), 25_000_000, 5e6)
    assert line == "cifar.tar.gz   25%  25 of 100 MB  5.0 MB/s, 15 s left"


# ---- archives -----------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o6777
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", {"top/a.bin": b"1234", "top/notes.txt": b"n", "top/other": b"o"})
    unpack(made, tmp_path / "top", {"a.bin": 4, "notes.txt": None})
    assert {path.name: path.read_bytes() for path in (tmp_path / "top").iterdir()} == {
        "a.bin": b"1234",
        "notes.txt": b"n",
    }
    assert not (tmp_path / "top/a.bin").stat().st_mode & 0o6022, "no rights of the archive's choosing"


@pytest.mark.parametrize(
    ("members", "links", "said"),
    [
        ({"top/a.bin": b"123"}, {}, r"top/a.bin is 3 bytes"),
        ({"elsewhere/a.bin": b"1234"}, {}, "lacks a.bin"),
        ({"../top/a.bin": b"1234"}, {}, "lacks a.bin"),
        ({"/top/a.bin": b"1234"}, {}, "lacks a.bin"),
        ({}, {"top/a.bin": "/etc/passwd"}, "top/a.bin is no plain file"),
        ({f"top/{number}": b"" for number in range(100)}, {}, "more than 64 members"),
    ],
)
def test_an_archive_that_is_not_as_expected_leaves_nothing(
    tmp_path: Path, members: dict[str, bytes], links: dict[str, str], said: str
) -> None:
    made = archive(tmp_path / "a.tar.gz", members, links)
    with pytest.raises(Damaged, match=said):
        unpack(made, tmp_path / "top", {"a.bin": 4})
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_truncated_archive_is_damaged(tmp_path: Path, keep: int) -> None:
    made = archive(tmp_path / "a.tar.gz", {"top/a.bin": bytes(range(256)) * 40})
    made.write_bytes(made.read_bytes()[:keep])
    with pytest.raises(Damaged):
        unpack(made, tmp_path / "top", {"a.bin": 256 * 40})


def test_a_half_unpacked_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "half").write_bytes(b"")
    unpack(archive(tmp_path / "a.tar.gz", {"top/a.bin": b"1234"}), tmp_path / "top", {"a.bin": 4})
    assert [path.name for path in (tmp_path / "top").iterdir()] == ["a.bin"]
