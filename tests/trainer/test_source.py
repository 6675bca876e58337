from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from images import encoded, some_images, write_tree

from trainer import source
from trainer.download import download
from trainer.failure import DataError
from trainer.importing import import_dataset
from trainer.source import silent
from trainer.store import FileStore, open_store

AddMember = Callable[[tarfile.TarFile], None]
FILES = {f"set/{path}": data for path, data in some_images({"ant": 4, "bee": 6}).items()}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = open_store(f"file://{tmp_path}/store")
    assert isinstance(store, FileStore)
    return store


def tar_of(
    files: Mapping[str, bytes], mode: str = "w", extra: Callable[[tarfile.TarFile], None] | None = None
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        if extra is not None:
            extra(archive)
    return stream.getvalue()


def zip_of(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return stream.getvalue()


def imported(path: Path, data: bytes, store: FileStore, **rules: Any) -> Any:
    path.write_bytes(data)
    return import_dataset(path, "animals", store, **rules).index


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.tar", tar_of),
        ("a.tar.gz", lambda files: tar_of(files, "w:gz")),
        ("a.tgz", lambda files: gzip.compress(tar_of(files))),
        ("a.zip", zip_of),
        ("misnamed.zip", tar_of),
    ],
    ids=["tar", "tar.gz", "tgz", "zip", "a tar called zip"],
)
def test_an_archive_gives_the_data_set_that_its_folder_gives(
    name: str, pack: Callable[[Mapping[str, bytes]], bytes], tmp_path: Path, store: FileStore
) -> None:
    folder = import_dataset(write_tree(tmp_path / "tree", FILES), "folder", store).index
    assert imported(tmp_path / name, pack(FILES), store).fingerprint == folder.fingerprint


def link(name: str, kind: bytes, target: str) -> AddMember:
    def add(archive: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)

    return add


HOSTILE_TARS = [
    pytest.param({"/etc/evil.png": b"x"}, None, "/etc/evil.png", "an absolute path", id="absolute"),
    pytest.param({"../../evil.png": b"x"}, None, "../../evil.png", "leads out of the archive", id="parent folder"),
    pytest.param({"C:\\evil.png": b"x"}, None, "C:\\evil.png", "an absolute path", id="a drive"),
    pytest.param(
        {},
        link("set/ant/l", tarfile.SYMTYPE, "/etc/passwd"),
        "set/ant/l",
        "a link to '/etc/passwd'",
        id="symbolic link",
    ),
    pytest.param({}, link("set/ant/h", tarfile.LNKTYPE, "set/x"), "set/ant/h", "a link to 'set/x'", id="hard link"),
    pytest.param({}, link("set/ant/d", tarfile.CHRTYPE, ""), "set/ant/d", "a device", id="device"),
    pytest.param({}, link("set/ant/p", tarfile.FIFOTYPE, ""), "set/ant/p", "neither a file nor a folder", id="pipe"),
]


@pytest.mark.parametrize(("files", "extra", "path", "reason"), HOSTILE_TARS)
def test_a_hostile_tar_member_is_refused_by_path(
    files: dict[str, bytes],
    extra: AddMember | None,
    path: str,
    reason: str,
    tmp_path: Path,
    store: FileStore,
) -> None:
    data = tar_of(FILES | files, extra=extra)
    with pytest.raises(DataError, match=f"cannot import: {re.escape(path)}: hostile archive member: .*{reason}"):
        imported(tmp_path / "a.tar", data, store)
    index = imported(tmp_path / "a.tar", data, store, on_bad="skip")
    assert index.num_images() == 10
    assert [skipped for skipped, _ in index.skipped] == [path]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/etc/evil.png", "an absolute path"), ("set/../../evil.png", "leads out"), ("..\\evil.png", "leads out")],
    ids=["absolute", "parent folder", "parent folder with backslash"],
)
def test_a_hostile_zip_member_is_refused_by_path(path: str, reason: str, tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match=f"evil.png: hostile archive member: .*{reason}"):
        imported(tmp_path / "a.zip", zip_of(FILES | {path: b"x"}), store)


def test_a_link_in_a_zip_is_refused_by_path(tmp_path: Path, store: FileStore) -> None:
    member = zipfile.ZipInfo("set/ant/link.png")
    member.external_attr = 0o120777 << 16
    stream = io.BytesIO(zip_of(FILES))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(DataError, match=r"set/ant/link\.png: hostile archive member: a link"):
        imported(tmp_path / "a.zip", stream.getvalue(), store)


@pytest.mark.parametrize("pack", [lambda files: tar_of(files, "w:gz"), zip_of], ids=["tar.gz", "zip"])
def test_an_archive_that_expands_too_far_is_stopped(
    pack: Callable[[Mapping[str, bytes]], bytes], tmp_path: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "FREE_EXPANSION", 1 << 20)
    data = pack(FILES | {"set/ant/zeros.png": bytes(20 << 20)})
    with pytest.raises(DataError, match=r"a\.x: unpacks to more than \d+ bytes: a decompression bomb"):
        imported(tmp_path / "a.x", data, store, on_bad="skip")


def test_an_archive_larger_than_allowed_is_stopped(tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match="unpacks to more than 5000 bytes"):
        imported(tmp_path / "a.tar", tar_of(FILES), store, max_bytes=5000)


def test_a_tar_header_of_endless_length_is_not_read_into_memory(tmp_path: Path, store: FileStore) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 8 << 20
    data = member.tobuf(tarfile.GNU_FORMAT) + b"a" * (8 << 20) + tar_of(FILES)
    with pytest.raises(DataError, match="hostile archive: a header of more than 1048576 bytes"):
        imported(tmp_path / "a.tar", data, store)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "broken archive: "),
        (b"not an archive" * 100, "broken archive: "),
        (tar_of(FILES)[:6000], "broken archive: unexpected end of data"),
        (tar_of(FILES, "w:gz")[:-2000], "broken archive: "),
        (tar_of(FILES, "w:gz")[:-4], "broken archive: "),
        (zip_of(FILES)[:-50], "broken archive: File is not a zip file"),
        (zip_of(FILES).replace(FILES["set/ant/00.png"][20:60], bytes(40)), "broken archive: "),
    ],
    ids=["empty", "not an archive", "cut tar", "cut tar.gz", "no checksum", "cut zip", "changed zip"],
)
def test_a_broken_archive_is_an_error(data: bytes, message: str, tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match=rf"source .*a\.x: {message}"):
        imported(tmp_path / "a.x", data, store)


def test_an_encrypted_zip_is_an_error(tmp_path: Path, store: FileStore) -> None:
    data = bytearray(zip_of(FILES))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(mark)
        data[at + offset] |= 1
    with pytest.raises(DataError, match=r"cannot be unpacked: .*encrypted"):
        imported(tmp_path / "a.zip", bytes(data), store)


def test_two_members_of_one_name_are_told(tmp_path: Path, store: FileStore) -> None:
    data = tar_of(FILES, extra=lambda archive: archive.addfile(tarfile.TarInfo("set/ant/00.png")))
    with pytest.raises(DataError, match=r"set/ant/00\.png: archive member: there are two of this name"):
        imported(tmp_path / "a.tar", data, store)


def test_a_member_whose_name_is_no_utf_8_is_told(tmp_path: Path, store: FileStore) -> None:
    name = b"set/ant/\xff.png".decode(errors="surrogateescape")
    with pytest.raises(DataError, match=r"xff\.png': its name is not UTF-8"):
        imported(tmp_path / "a.tar", tar_of(FILES | {name: b"x"}), store)


def test_utf_8_in_a_zip_is_read_with_and_without_its_flag(tmp_path: Path, store: FileStore) -> None:
    files = FILES | {"set/ant/zö.png": encoded(1)}
    data = bytearray(zip_of(files))
    data[data.rindex(b"PK\x01\x02") + 9] &= ~8  # bit 11 of the flags, in the directory
    data[data.rindex(b"PK\x03\x04") + 7] &= ~8  # and in the member's own header
    assert "ant/zö.png" in imported(tmp_path / "a.zip", zip_of(files), store).images.path
    assert "ant/zö.png" in imported(tmp_path / "a.zip", bytes(data), store).images.path


def test_an_empty_class_folder_of_an_archive_is_seen(tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match="class cat: its folder has no file"):
        imported(tmp_path / "a.zip", zip_of(FILES | {"set/cat/": b""}), store)


def test_an_archive_is_held_to_its_sha_256(tmp_path: Path, store: FileStore) -> None:
    data = tar_of(FILES)
    digest = hashlib.sha256(data).hexdigest()
    assert imported(tmp_path / "a.tar", data, store, sha256=digest.upper()).num_images() == 10
    with pytest.raises(DataError, match=f"got SHA-256 {digest}, expected {'0' * 64}"):
        imported(tmp_path / "a.tar", data, store, sha256="0" * 64)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere.tar", "source nowhere.tar: no such folder or archive"),
        ("ftp://host/a.tar", "expected a folder, an archive, or an http:// or https:// address"),
    ],
    ids=["no file", "another protocol"],
)
def test_a_source_that_is_none_is_an_error(address: str, message: str, store: FileStore) -> None:
    with pytest.raises(DataError, match=message):
        import_dataset(address, "animals", store)


def test_a_folder_has_no_sha_256(tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match="is a folder, but a SHA-256 was given"):
        import_dataset(tmp_path, "animals", store, sha256="0" * 64)


# Downloads


class Site(http.server.ThreadingHTTPServer):
    """A web server with one file, which breaks off each of its first answers after some bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.content = b""
        self.tag: str | None = '"1"'
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.has_length = True
        self.asked: list[str | None] = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}/a.tar"


class Page(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        asked = self.headers.get("Range")
        site.asked.append(asked)
        if site.statuses:
            self.send_error(site.statuses.pop(0))
            return
        start = int(asked[6:-1]) if asked and self.headers.get("If-Range") == site.tag else 0
        if start >= len(site.content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
            self.end_headers()
            return
        body = site.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
        if site.tag:
            self.send_header("ETag", site.tag)
        if site.has_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: site.breaks.pop(0)] if site.breaks else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetched(site: Site, folder: Path, **limits: Any) -> bytes:
    request = {"sha256": None, "max_bytes": 1 << 20, "progress": silent, "first_pause": 0.001} | limits
    with download(site.url, folder=folder, **request) as file:
        return file.read_bytes()


@pytest.mark.server
def test_a_url_gives_the_data_set_that_its_archive_gives(site: Site, tmp_path: Path, store: FileStore) -> None:
    site.content = tar_of(FILES)
    told: list[tuple[str, int, int | None, int]] = []
    index = import_dataset(
        site.url, "animals", store, downloads=tmp_path / "cache", progress=lambda *step: told.append(step)
    ).index
    assert index.num_images() == 10
    assert ("download", len(site.content), len(site.content), len(site.content)) in told
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.server
@pytest.mark.parametrize("tag", ['"1"', None], ids=["resumed", "from the start without a tag"])
def test_an_interrupted_download_is_taken_up_again(tag: str | None, site: Site, tmp_path: Path) -> None:
    site.content, site.tag, site.breaks = bytes(range(256)) * 40, tag, [1000, 3000]
    assert fetched(site, tmp_path) == site.content
    assert site.asked == ([None, "bytes=1000-", "bytes=4000-"] if tag else [None, None, None])


@pytest.mark.server
def test_a_later_process_takes_up_what_an_earlier_one_left(site: Site, tmp_path: Path) -> None:
    site.content, site.breaks = bytes(range(256)) * 40, [5000] + [0] * 5
    with pytest.raises(DataError, match=r"closed after 5000 of 10240 bytes, 6 times in a row, after 5000 bytes"):
        fetched(site, tmp_path)
    site.asked.clear()
    assert fetched(site, tmp_path) == site.content
    assert site.asked == ["bytes=5000-"]


@pytest.mark.server
def test_a_file_that_changed_is_fetched_from_its_start(site: Site, tmp_path: Path) -> None:
    site.content, site.breaks = b"a" * 9000, [5000] + [0] * 5
    with pytest.raises(DataError):
        fetched(site, tmp_path)
    site.content, site.tag = b"b" * 7000, '"2"'
    assert fetched(site, tmp_path) == b"b" * 7000


@pytest.mark.server
def test_a_whole_file_is_kept_for_the_next_try_when_its_use_failed(site: Site, tmp_path: Path) -> None:
    site.content = b"a" * 9000
    request: dict[str, Any] = {"sha256": None, "max_bytes": 1 << 20, "folder": tmp_path, "progress": silent}
    with pytest.raises(ZeroDivisionError), download(site.url, **request):
        raise ZeroDivisionError
    assert fetched(site, tmp_path) == site.content
    assert site.asked == [None, "bytes=9000-"]
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.server
@pytest.mark.parametrize("has_length", [True, False], ids=["announced", "not announced"])
def test_a_download_that_is_too_large_is_stopped(has_length: bool, site: Site, tmp_path: Path) -> None:
    site.content, site.has_length = b"a" * 9000, has_length
    with pytest.raises(DataError, match=r"(9000|more than 8000) bytes, expected at most 8000"):
        fetched(site, tmp_path, max_bytes=8000)


@pytest.mark.server
def test_a_download_is_held_to_its_sha_256(site: Site, tmp_path: Path) -> None:
    site.content = b"a" * 9000
    assert fetched(site, tmp_path, sha256=hashlib.sha256(site.content).hexdigest()) == site.content
    with pytest.raises(DataError, match=r"source http://.*: got SHA-256 \w{64}, expected 0{64}"):
        fetched(site, tmp_path, sha256="0" * 64)
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.server
def test_two_downloads_of_one_address_do_not_run_at_once(site: Site, tmp_path: Path) -> None:
    site.content = b"a" * 90
    request: dict[str, Any] = {"sha256": None, "max_bytes": 1 << 20, "folder": tmp_path, "progress": silent}
    with download(site.url, **request), pytest.raises(DataError, match="another process is fetching it"):
        fetched(site, tmp_path)


@pytest.mark.server
def test_a_server_that_is_busy_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.content, site.statuses = b"a" * 90, [503, 429]
    assert fetched(site, tmp_path) == site.content


@pytest.mark.server
def test_a_server_that_refuses_is_not_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [404]
    with pytest.raises(DataError, match="the server answers 404 Not Found"):
        fetched(site, tmp_path)
    assert len(site.asked) == 1


@pytest.mark.server
def test_a_server_that_is_not_there_is_an_error_after_some_tries(site: Site, tmp_path: Path) -> None:
    site.url = "http://127.0.0.1:9/a.tar"
    with pytest.raises(DataError, match=r"no answer: .*refused.*, 6 times in a row, after 0 bytes"):
        fetched(site, tmp_path)
