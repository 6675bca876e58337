"""A store in a folder: objects are files that appear whole, writers are kept apart by links and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from trainer.failure import StoreError
from trainer.lock import locked
from trainer.store.interface import MIB, Conflict, Entry, NotFound, Request, check_key, check_prefix

T = TypeVar("T")

TEMPORARY = ".tmp-"
LOCKS = ".locks"
DIRECT_BYTES = 4 * MIB  # from this size on objects are written past the page cache
DIRECT_BLOCK = 4096  # bytes; disks that want more of them at once are not known here
DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has none
NUM_WRITE_LOCKS = 64  # keys share them by hash: held for microseconds, and no lock file per object is left

ABSENT_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

FILE_CURES = {
    errno.EACCES: "let this user read and write the folder, or choose another store",
    errno.EPERM: "let this user read and write the folder, or choose another store",
    errno.EROFS: "the file system is mounted read-only: mount it for writing, or choose another store",
    errno.ENOSPC: "the disk is full: free some space (`grid gc` removes what no grid wants)",
    errno.EDQUOT: "the disk quota is used up: free some space (`grid gc` removes what no grid wants)",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows",
    errno.ENOTDIR: "a file lies where a folder of that name is needed: move it away",
    errno.EISDIR: "a folder lies where the object is to be: move it away",
    errno.ENAMETOOLONG: "a part of the name is longer than the file system allows",
    errno.ENOLCK: "the file system does not lock files: mount it with locks (NFS 4), or choose another store",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ESTALE: "the network file system lost the file: is its server up?",
}


@contextmanager
def file_errors(doing: str, path: Path) -> Iterator[None]:
    """Raises StoreError, with its cure, for what the file system refuses within."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise _file_error(doing, path, error) from error


def _file_error(doing: str, path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: {doing} failed: got {error.strerror or error}, expected a folder this process can use",
        hint=FILE_CURES.get(error.errno or 0),
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _file_version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


class FileStore:
    """A store in a folder. The folder is made by the first write; the one above it must exist.

    Objects appear by rename or link, after their bytes have reached the disk; conditional writes hold among all
    processes whose kernel shares flock (one host, or NFS 4). `on_request` is called after each read, write, deletion
    and folder listed, in whichever thread asked.
    """

    def __init__(self, root: Path, *, on_request: Callable[[Request], None] | None = None) -> None:
        self._on_request = on_request
        with file_errors("opening the store", root):  # a relative one, where the working folder was removed
            self.root = root.resolve()
        self.uri = self.root.as_uri()
        with file_errors("opening the store", self.root):
            if not self.root.parent.is_dir():
                raise StoreError(
                    f"store {self.uri}: got no folder {self.root.parent}, expected one to keep the store in",
                    hint=f"mkdir -p '{self.root.parent}', or mount what should be there",
                )
            if self.root.exists() and not self.root.is_dir():
                raise StoreError(
                    f"store {self.uri}: got a file, expected a folder", hint="name the folder that holds the store"
                )

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _request(self, operation: str, path: Path) -> Iterator[None]:
        """As `file_errors`; and whoever counts requests is told."""
        begun, fault = time.monotonic(), None
        try:
            with file_errors(operation, path):
                yield
        except StoreError:
            fault = "refused"
            raise
        finally:
            if self._on_request is not None:
                self._on_request(Request(operation, time.monotonic() - begun, fault))

    def _read(self, key: str) -> tuple[bytes, os.stat_result]:
        if self._on_request is None:  # many small files are read in a row: no frame that nobody needs
            return self._read_file(key)
        with self._request("reading", self.root):
            return self._read_file(key)

    def _read_file(self, key: str) -> tuple[bytes, os.stat_result]:
        path = f"{self.root}/{check_key(key)}"  # a pathlib path would take longer to make than the file to read
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - for the same reason
                return file.readall(), os.fstat(file.fileno())
        except ABSENT_ERRORS:
            raise NotFound(key) from None
        except OSError as error:
            raise _file_error("reading", Path(path), error) from error

    def get(self, key: str) -> bytes:
        """The object's content. Raises NotFound."""
        return self._read(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's content and its version, for `replace`. Raises NotFound."""
        data, status = self._read(key)
        return data, _file_version(status)

    def get_many(self, keys: Iterable[str], workers: int = 16) -> Iterator[tuple[str, bytes]]:  # noqa: ARG002 - the protocol's
        """Each key with its object's content, in the order of `keys`: a disk gains nothing by threads."""
        return ((key, self.get(key)) for key in keys)

    def open(self, key: str) -> io.BufferedReader:
        """The object's content as a stream; it stays the content of this moment whatever is written later."""
        path = self._path(key)
        with self._request("reading", path):
            try:
                return path.open("rb")
            except ABSENT_ERRORS:
                raise NotFound(key) from None

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the object, whatever was there; a large one past the page cache, where its memory allows that."""
        self._write(key, lambda file: _write_all(file, data), self._publish)

    def put_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streaming."""
        with path.open("rb") as source:
            self._write(key, lambda file: shutil.copyfileobj(source, file, MIB), self._publish)

    def create(self, key: str, data: bytes) -> str:
        """Write the object unless one is there and return its version. Raises Conflict."""

        def publish(temporary: Path, target: Path) -> str:
            version = _file_version(temporary.stat())  # of the target too: a link is the same file
            try:
                target.hardlink_to(temporary)
            except FileExistsError:
                raise Conflict(f"{key}: exists already") from None
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                    raise
                # A file system without links: every writer of this store holds the same lock here.
                if target.exists():
                    raise Conflict(f"{key}: exists already") from None
                temporary.replace(target)
            return version

        return self._write(key, lambda file: _write_all(file, data), publish)

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Write over the version that was read and return the new version. Raises Conflict, NotFound."""

        def publish(temporary: Path, target: Path) -> str:
            try:
                found = _file_version(target.stat())
            except FileNotFoundError:
                raise NotFound(key) from None
            if found != version:
                raise Conflict(f"{key}: got version {found}, expected {version}")
            return self._publish(temporary, target)

        return self._write(key, lambda file: _write_all(file, data), publish, operation="replacing")

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, in key order; a folder that is not there holds none."""
        folder, start = check_prefix(prefix)
        return self._walk(self.root / folder, f"{folder}/" if folder else "", start)

    def _walk(self, folder: Path, key_start: str, name_start: str = "") -> Iterator[Entry]:
        found: dict[str, os.stat_result | None] = {}
        with (
            self._request("listing", folder),
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(folder) as items,
        ):
            for item in items:
                if item.name.startswith(name_start) and not item.name.startswith("."):
                    if item.is_dir():
                        found[item.name + "/"] = None
                        continue
                    with suppress(FileNotFoundError):  # deleted since the folder was read
                        found[item.name] = item.stat()
        # In the order of whole keys, not of names: `a.txt` comes before `a/x`, since "." comes before "/".
        for name, status in sorted(found.items()):
            if status is None:
                yield from self._walk(folder / name, key_start + name)
            else:
                yield Entry(key_start + name, status.st_size, _file_version(status), status.st_mtime)

    def delete(self, key: str) -> None:
        """Remove the object, and the folders it leaves empty; none being there is no error."""
        path = self._path(key)
        with self._request("deleting", path):
            with self._locked(key), suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            for folder in path.parents:
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:  # not empty, or gone already
                    break

    def is_conditional(self) -> bool:
        """True: links and locks of the file system keep writers apart."""
        return True

    def local_path(self, key: str) -> Path:
        """The file that holds the object if there is one."""
        return self._path(key)

    def lock_path(self, name: str) -> Path:
        """A path in the store's own `.locks` folder, which `list` does not show."""
        path = self.root / LOCKS / check_key(name).replace("/", "_")
        with file_errors("locking", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sweep_temporary(self, older_than_seconds: float) -> int:
        """Remove what killed writers left, if last written to longer ago than that; returns how many files."""
        newest = time.time() - older_than_seconds
        num_removed = 0
        with file_errors("sweeping", self.root):
            for folder, _, names in os.walk(self.root):
                for name in names:
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):
                        if name.startswith(TEMPORARY) and path.stat().st_mtime <= newest:
                            path.unlink()
                            num_removed += 1
        return num_removed

    def _write(
        self,
        key: str,
        fill: Callable[[BinaryIO], object],
        publish: Callable[[Path, Path], T],
        *,
        operation: str = "writing",
    ) -> T:
        """What `publish` returns, after the bytes that `fill` wrote are on the disk under a hidden name."""
        target = self._path(key)
        with self._request(operation, target):
            descriptor, temporary = self._new_temporary(target.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(descriptor)
                with self._locked(key):
                    published = publish(temporary, target)
                with suppress(FileNotFoundError):  # deleted again, its folder with it
                    _sync_folder(target.parent)
                return published
            finally:
                temporary.unlink(missing_ok=True)

    @staticmethod
    def _publish(temporary: Path, target: Path) -> str:
        """The object's version, after it took the place of what was there."""
        with suppress(FileNotFoundError):
            last = target.stat().st_mtime_ns
            if temporary.stat().st_mtime_ns <= last:
                # Clocks tick in milliseconds and inodes are used again: only a later time makes a new version sure.
                os.utime(temporary, ns=(last + 1, last + 1))
        version = _file_version(temporary.stat())
        temporary.replace(target)
        return version

    def _new_temporary(self, folder: Path) -> tuple[int, Path]:
        while True:
            path = folder / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
            try:
                # Not tempfile: its files are the owner's alone, and a lab shares a store.
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), path
            except FileNotFoundError:  # also when `delete` took the empty folder just now
                missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
                with suppress(FileNotFoundError):
                    folder.mkdir(parents=True, exist_ok=True)
                    for made in missing:
                        _sync_folder(made.parent)

    def _locked(self, key: str) -> AbstractContextManager[None]:
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=2).digest()) % NUM_WRITE_LOCKS
        return locked(self.root / LOCKS / f"write-{number:02}")


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    done = _write_directly(file.fileno(), data) if len(data) >= DIRECT_BYTES else 0
    file.write(memoryview(data)[done:])


def _write_directly(descriptor: int, data: bytes | memoryview) -> int:
    """How many bytes, from the first on, went from where they lie to the disk without a copy in the page cache.

    None where memory or file system do not allow it. The copy would cost more than all else that a checkpoint costs,
    and push out of memory what is read again and again: the decoded images.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    done, end = 0, len(data) - len(data) % DIRECT_BLOCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | DIRECT)
        while done < end:
            done += os.write(descriptor, memoryview(data)[done:end])
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EFAULT}:  # what is left goes the ordinary way
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return done
