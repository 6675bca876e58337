"""Where images come from: a folder, an archive or a URL, listed as files with paths. Nothing here opens an image.

Nobody vouches for an archive. Its members are written to a scratch folder under running numbers, never under their
own names, so that no name can lead out of it, and what is read is counted against a limit before it is written.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol
from unicodedata import normalize

from trainer.download import Progress, check_sha256, download
from trainer.failure import DataError

MAX_FILE = 256 << 20  # bytes of one encoded image: it is held in memory whole
MAX_HEADER = 1 << 20  # bytes between two members of a tar file: long names, extended headers
MAX_EXPANSION = 100  # times an archive's size, once it has unpacked to more than FREE_EXPANSION
FREE_EXPANSION = 1 << 30  # bytes
BLOCK = 1 << 20
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")


def silent(step: str, done: int, total: int | None, num_bytes: int) -> None:
    """The progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One regular file of a source."""

    path: str  # from the source's top, `/` between folders, Unicode form NFC
    file: Path  # where its content is
    size: int  # bytes


@dataclass
class Listing:
    """All that a source holds."""

    origin: str  # what the user named
    files: list[SourceFile] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)  # all of them, empty ones too
    bad: list[tuple[str, str]] = field(default_factory=list)  # path and reason: cannot be read, or must not be
    litter: dict[str, str] = field(default_factory=dict)  # path and reason: what file managers leave behind

    def place(self, name: str) -> str | None:
        """The form under which `name` is listed; none when its path already stands under `bad` or `litter`."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        path = normalize("NFC", "/".join(parts))
        try:
            path.encode()
        except UnicodeEncodeError:  # bytes that are not UTF-8 arrive as lone surrogates
            self.bad.append((repr(name.encode(errors="surrogateescape")), "its name is not UTF-8"))
            return None
        if "\n" in path:
            self.bad.append((repr(path), "its name has a line break"))
            return None
        for depth, part in enumerate(parts, start=1):
            if part.startswith(".") or part in LITTER:
                self.litter["/".join(parts[:depth])] = "a hidden file or one that a file manager left behind"
                return None
        return path


@contextmanager
def open_source(
    source: str | Path,
    *,
    sha256: str | None,
    max_bytes: int,
    downloads: Path | None,
    progress: Progress,
) -> Iterator[Listing]:
    """All that `source` holds, for as long as the context lasts.

    Raises DataError when there is no such source, when an archive is broken, is not the one that `sha256` names, or
    is or becomes larger than `max_bytes`.
    """
    text = str(source)
    if re.match(r"https?://", text, re.IGNORECASE):
        with (
            download(text, sha256=sha256, max_bytes=max_bytes, folder=downloads, progress=progress) as file,
            _unpacked(file, text, max_bytes, progress) as listing,
        ):
            yield listing
        return
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        raise DataError(
            f"source {text}: expected a folder, an archive, or an http:// or https:// address",
            hint="fetch it by other means first, and import the folder or archive",
        )
    path = Path(source).expanduser()
    if path.is_dir():
        if sha256 is not None:
            raise DataError(f"source {text}: is a folder, but a SHA-256 was given; expected the archive it belongs to")
        yield _walked(path, progress)
    elif path.is_file():
        if sha256 is not None:
            check_sha256(path, text, sha256)
        with _unpacked(path, text, max_bytes, progress) as listing:
            yield listing
    else:
        raise DataError(f"source {text}: no such folder or archive", hint="name a folder that holds class folders")


def _walked(top: Path, progress: Progress) -> Listing:
    listing = Listing(str(top))
    _walk(top, "", listing, (os.path.realpath(top),), progress)
    return listing


def _walk(folder: Path, prefix: str, listing: Listing, above: tuple[str, ...], progress: Progress) -> None:
    """List what is under `folder`; links are followed, but never out of the source nor back to a folder `above`."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        listing.bad.append((prefix or str(folder), f"cannot be read: {error.strerror}"))
        return
    for entry in entries:
        path = listing.place(prefix + entry.name)
        if path is None:
            continue
        try:
            found = entry.stat()
        except OSError as error:
            what = "a link to nowhere" if entry.is_symlink() else f"cannot be read: {error.strerror}"
            listing.bad.append((path, what))
            continue
        if entry.is_symlink() and not _is_inside(entry.path, above[0]):
            listing.bad.append((path, f"a link that leads out of {listing.origin}"))
        elif stat.S_ISDIR(found.st_mode):
            real = os.path.realpath(entry.path)
            if real in above:
                listing.bad.append((path, "a link to a folder that holds it"))
                continue
            listing.folders.add(path)
            _walk(Path(entry.path), f"{prefix}{entry.name}/", listing, (*above, real), progress)
        elif stat.S_ISREG(found.st_mode):
            listing.files.append(SourceFile(path, Path(entry.path), found.st_size))
        else:
            listing.bad.append((path, "neither a file nor a folder"))
        progress("list", len(listing.files), None, 0)


def _is_inside(path: str, top: str) -> bool:
    """Whether what `path` leads to is `top`, which is no link, or under it."""
    return os.path.commonpath((os.path.realpath(path), top)) == top


@contextmanager
def _unpacked(archive: Path, origin: str, max_bytes: int, progress: Progress) -> Iterator[Listing]:
    listing = Listing(origin)
    with tempfile.TemporaryDirectory(prefix="grid-unpack-") as scratch:
        room = _Room(Path(scratch), origin, min(max_bytes, _expanded_limit(archive)), progress)
        try:
            _unpack(archive, listing, room)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"source {origin}: broken archive: {error}", hint="fetch it again") from error
        except (RuntimeError, NotImplementedError) as error:  # what zipfile says to encrypted and exotic members
            raise DataError(f"source {origin}: cannot be unpacked: {error}", hint="unpack it yourself") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataError(
                f"source {origin}: no space left in {scratch} after {room.used} bytes",
                hint="set TMPDIR to a folder with more room",
            ) from error
        yield listing


def _expanded_limit(archive: Path) -> int:
    return max(FREE_EXPANSION, MAX_EXPANSION * archive.stat().st_size)


def _unpack(archive: Path, listing: Listing, room: _Room) -> None:
    with archive.open("rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        if start.startswith(b"PK"):
            _unpack_zip(stream, listing, room)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.open(stream) as unzipped:
                _unpack_tar(unzipped, listing, room)
        else:
            _unpack_tar(stream, listing, room)


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Room:
    """A scratch folder that takes files up to a number of bytes."""

    def __init__(self, folder: Path, origin: str, limit: int, progress: Progress) -> None:
        self.folder = folder
        self.origin = origin
        self.limit = limit
        self.progress = progress
        self.used = 0
        self.num_files = 0

    def claim(self, num_bytes: int) -> None:
        """Count bytes that are about to be read; raises DataError when they are too many."""
        self.used += num_bytes
        if self.used > self.limit:
            raise DataError(
                f"source {self.origin}: unpacks to more than {self.limit} bytes: a decompression bomb, or more than "
                "was allowed",
                hint="if it is honest, unpack it yourself and import the folder",
            )

    def take(self, path: str, content: _Readable) -> SourceFile:
        """The file that `content` was written to; what it holds must have been claimed."""
        self.num_files += 1
        file = self.folder / f"{self.num_files:08d}"
        with file.open("wb") as target:
            shutil.copyfileobj(content, target, BLOCK)
            size = target.tell()
        self.progress("unpack", self.num_files, None, self.used)
        return SourceFile(path, file, size)


def _unpack_zip(stream: BinaryIO, listing: Listing, room: _Room) -> None:
    taken: set[str] = set()
    with zipfile.ZipFile(stream) as archive:
        room.claim(sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            name = _zip_name(member)
            kind = member.external_attr >> 16
            fault = "a link" if stat.S_ISLNK(kind) else None
            path = _member_path(name, member.file_size, fault, listing)
            if path is None or _is_known(path, member.is_dir(), taken, listing):
                continue
            with archive.open(member) as content:  # reads file_size bytes at most, and checks the CRC
                listing.files.append(room.take(path, content))


def _zip_name(member: zipfile.ZipInfo) -> str:
    """The member's name; many programs write UTF-8 without the flag that says so, and some write backslashes."""
    name = member.filename
    if not member.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            name = member.filename
    return name if "/" in name else name.replace("\\", "/")


def _unpack_tar(stream: _Readable, listing: Listing, room: _Room) -> None:
    taken: set[str] = set()
    counted = _Counted(stream, room)
    counted.allow(MAX_HEADER)
    with _Tar.open(
        fileobj=counted, mode="r|", bufsize=256 << 10, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # tarfile keeps all that it has seen, for a second look that nobody takes
            counted.allow(member.size + MAX_HEADER)
            path = _member_path(member.name, member.size, _tar_fault(member), listing)
            if path is None or _is_known(path, member.isdir(), taken, listing):
                continue
            content = archive.extractfile(member)
            assert content is not None
            listing.files.append(room.take(path, content))
    while counted.read(BLOCK):  # to the end, where gzip keeps its checksum
        counted.allow(MAX_HEADER + BLOCK)


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]  # all that has been read; tarfile has it, its type hints do not


def _tar_fault(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    if member.issparse():
        return "a sparse file"
    if not (member.isreg() or member.isdir()):
        return "a device, or something else that is neither a file nor a folder"
    return None


class _Counted(io.RawIOBase):
    """A stream that counts what is read from it against the room, and against what is expected up to a member's end.

    tarfile reads a header of any length into memory; here it gets no more than MAX_HEADER of it.
    """

    def __init__(self, stream: _Readable, room: _Room) -> None:
        self.stream = stream
        self.room = room
        self.expected = 0

    def allow(self, num_bytes: int) -> None:
        """Expect at most so many bytes from here."""
        self.expected = num_bytes

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.room.claim(len(data))
        self.expected -= len(data)
        if self.expected < 0:
            raise DataError(f"source {self.room.origin}: hostile archive: a header of more than {MAX_HEADER} bytes")
        return data


def _member_path(name: str, size: int, fault: str | None, listing: Listing) -> str | None:
    """The path to list a member under; none for the top itself, and when it is bad or litter, which is then noted."""
    if fault is None:
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
            fault = "hostile archive member: an absolute path"
        elif ".." in re.split(r"[\\/]", name):
            fault = "hostile archive member: its path leads out of the archive"
        elif size > MAX_FILE:
            fault = f"{size} bytes, expected at most {MAX_FILE}"
    else:
        fault = f"hostile archive member: {fault}"
    if fault is not None:
        shown = name if name.isprintable() else repr(name)
        listing.bad.append((shown.encode(errors="backslashreplace").decode(), fault))
        return None
    return listing.place(name) or None


def _is_known(path: str, is_folder: bool, taken: set[str], listing: Listing) -> bool:
    """Whether there is nothing to unpack: the member is a folder, or a second file of the same name, which is bad."""
    if is_folder:
        listing.folders.add(path)
    elif path in taken:
        listing.bad.append((path, "archive member: there are two of this name"))
        return True
    taken.add(path)
    return is_folder
