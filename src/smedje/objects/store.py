"""Object storage: bytes under keys, on a local disk, in memory or in a bucket.

Knows keys, atomic writes and how storage fails; knows nothing of files, jobs or checkpoints.

Promises, whatever the storage: an object is seen whole or not at all; `create_only` lets exactly one writer win; a
write that failed leaves nothing that a reader can see. On a local disk a write that returned survives a power loss
(see local_files). Buckets: an upload that broke off is invisible but may be billed until the bucket's lifecycle rule
for unfinished uploads removes it. Credentials for buckets come from the environment, as their own tools read them.
"""

import contextlib
import errno
import hashlib
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store, from_url

from smedje.errors import Conflict, InternalError, InvalidRequest, NotFound, OutOfStorage, Unavailable
from smedje.objects.local_files import flush_folder, move, settle, staged_file, sweep_staging

Backend = LocalStore | MemoryStore | S3Store | AzureStore | GCSStore

# Narrow on purpose: no "..", no hidden names, nothing that a file system or URL would spell differently.
KEY_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\Z")
KEY_LENGTH = 512
SCHEMES = ("file", "memory", "s3", "az", "gs")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# obstore's wording when a key goes on below another object.
NOT_A_FOLDER = "(os error 20)"
FULL_WORDS = ("os error 28", "os error 122", "insufficientstorage", "storagefull", "quotaexceeded", "status 507")


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One stored object. size: bytes. modified: Unix seconds, of the last write."""

    key: str
    size: int
    modified: float = field(default=0.0, compare=False)


class ByteSink(Protocol):
    """What `Objects.writer` hands out."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append bytes."""


class Objects:
    """All objects under one URL. Safe to use from several threads. Keys: `check_key`."""

    def __init__(self, url: str, backend: Backend, root: Path | None) -> None:
        """Prefer `open_objects`. root: the folder when the backend is a local disk."""
        self.url = url
        self._store = backend
        self._root = root

    def put(self, key: str, data: bytes | memoryview, *, create_only: bool = False) -> None:
        """Store bytes whole. Raises Conflict when create_only and the key exists; OutOfStorage; Unavailable."""
        check_key(key)
        with _explained(key):
            if self._root is None:
                obstore.put(self._store, key, data, mode="create" if create_only else "overwrite")
                return
            with staged_file(self._root) as (file, path):
                file.write(data)
                settle(file, path, self._root / key, create_only=create_only)

    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator[ByteSink]:
        """Stream bytes of unknown length into one object, which appears when the block ends.

        An exception in the block, or a kill, leaves no object. Raises OutOfStorage; Unavailable.
        """
        check_key(key)
        if self._root is None:
            # Left without close(), the upload is dropped. obstore's own `with` does the same when the block fails.
            target = obstore.open_writer(self._store, key)
            yield _ExplainedSink(key, target)
            with _explained(key):
                target.close()
            return
        with contextlib.ExitStack() as stack:
            with _explained(key):
                file, path = stack.enter_context(staged_file(self._root))
            yield _ExplainedSink(key, file)
            with _explained(key):
                settle(file, path, self._root / key)

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound; Unavailable."""
        check_key(key)
        with _explained(key):
            return obstore.get(self._store, key).bytes().to_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from offset `start`; fewer at the end, none beyond it. Raises NotFound."""
        check_key(key)
        if start < 0 or length < 0:
            raise InternalError(f"A range of {key} cannot start at {start} with {length} bytes.", code="invalid_range")
        with _explained(key):
            size = obstore.head(self._store, key)["size"]
            if start >= size or length == 0:
                return b""
            return obstore.get_range(self._store, key, start=start, length=min(length, size - start)).to_bytes()

    def iter_bytes(self, key: str, chunk: int = 1 << 20) -> Iterator[bytes]:
        """The object in pieces of about `chunk` bytes, in order. Raises NotFound at once, before the first piece."""
        check_key(key)
        with _explained(key):
            if self._root is not None:
                # Without the storage library's threads, each with buffers of its own.
                return _file_pieces(key, _opened(self._root / key), chunk)
            stream = obstore.get(self._store, key).stream(min_chunk_size=chunk)
        return _pieces(key, stream)

    def list(self, prefix: str, *, after: str = "") -> list[ObjectInfo]:
        """Objects whose key begins with the segments of `prefix`, in key order, only those after key `after`.

        `runs/1` and `runs/1/` mean the same and do not match `runs/12`. An empty prefix means everything.
        """
        segments = prefix.rstrip("/")
        if segments:
            check_key(segments)
        with _explained(prefix):
            pages = obstore.list(self._store, segments or None, offset=after or None, chunk_size=1000)
            found = [
                ObjectInfo(key=meta["path"], size=meta["size"], modified=meta["last_modified"].timestamp())
                for page in pages
                for meta in page
            ]
        return sorted((info for info in found if info.key > after), key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        """Whether there is an object at exactly this key."""
        check_key(key)
        try:
            with _explained(key):
                obstore.head(self._store, key)
        except NotFound:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object. Removing one that is not there is no error."""
        check_key(key)
        with contextlib.suppress(NotFound), _explained(key):
            obstore.delete(self._store, key)
            if self._root is not None:
                flush_folder((self._root / key).parent)

    def delete_prefix(self, prefix: str) -> None:
        """Remove every object under a prefix (as in `list`). The empty prefix is refused."""
        check_key(prefix.rstrip("/"))
        for info in self.list(prefix):
            self.delete(info.key)

    def rename(self, source: str, target: str) -> None:
        """Move an object, replacing what is at `target`. In a bucket this is copy, then delete. Raises NotFound."""
        check_key(source)
        check_key(target)
        with _explained(source):
            if self._root is None:
                obstore.rename(self._store, source, target)
                return
            move(self._root / source, self._root / target)
            flush_folder((self._root / source).parent)

    def local_path(self, key: str, cache: Path) -> Path:
        """A local file with the object's bytes, only to be read.

        On a local disk the object itself; else a copy in the folder `cache`, fetched once per version of the object and
        named by a digest of key and version. Raises NotFound; OutOfStorage; Unavailable.
        """
        check_key(key)
        with _explained(key):
            meta = obstore.head(self._store, key)
            if self._root is not None:
                return self._root / key
            version = f"{meta['e_tag']}\n{meta['version']}\n{meta['size']}\n{meta['last_modified']}"
            target = cache / f"{self._mark(key)}-{_digest(version)}"
            if not target.exists():
                cache.mkdir(parents=True, exist_ok=True)
                with staged_file(cache) as (file, path):
                    self._fetch(key, file)
                    settle(file, path, target)
        return target

    @contextlib.contextmanager
    def lent_path(self, key: str, cache: Path) -> Iterator[Path]:
        """A local file with the object's bytes, only to be read and only within the block.

        On a local disk the object itself; else a copy in `cache`, which goes with the block. Raises as `local_path`.
        """
        if self._root is not None:
            yield self.local_path(key, cache)
            return
        check_key(key)
        with contextlib.ExitStack() as stack:
            with _explained(key):
                file, path = stack.enter_context(staged_file(cache))
                self._fetch(key, file)
                file.flush()
            yield path

    def _fetch(self, key: str, file: BinaryIO) -> None:
        for piece in obstore.get(self._store, key).stream():
            file.write(piece)

    def local_folder(self, prefix: str, cache: Path) -> Path:
        """A local folder with the objects under `prefix` at their relative names, only to be read.

        On a local disk the objects themselves; else a folder in `cache`, fetched once per content of the prefix.
        Raises NotFound when there is nothing under the prefix; OutOfStorage; Unavailable.
        """
        prefix = prefix.rstrip("/")
        found = self.list(prefix)
        if not found:
            raise NotFound(f"There are no objects under {prefix}.", code="object_not_found")
        if self._root is not None:
            return self._root / prefix
        names = [(info.key.removeprefix(f"{prefix}/"), self.local_path(info.key, cache)) for info in found]
        identity = _digest("\n".join(f"{name} {path.name}" for name, path in names))
        folder = cache / f"{self._mark(prefix)}-{identity}.d"
        with _explained(prefix):
            for name, path in names:
                target = folder / name
                if not target.exists():
                    with contextlib.suppress(FileExistsError):
                        move(path, target, create_only=True)
        return folder

    def forget(self, key: str, cache: Path) -> None:
        """Remove every copy that `local_path` and `local_folder` have made of an object or prefix in a cache."""
        check_key(key)
        with _explained(key):
            for copy in cache.glob(f"{self._mark(key)}-*"):
                if copy.suffix == ".d":
                    shutil.rmtree(copy)
                else:
                    copy.unlink(missing_ok=True)

    def _mark(self, key: str) -> str:
        """What the names of a key's copies begin with."""
        return _digest(f"{self.url}\n{key}")

    def sweep(self, cache: Path) -> int:
        """Delete what killed processes were writing to a local disk, or fetching into a cache; returns how many."""
        return sum(sweep_staging(folder) for folder in (self._root, cache) if folder is not None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_objects(url: str) -> Objects:
    """Objects under `file:///folder` (made if missing, readable by its owner alone), `s3://bucket/prefix`,
    `az://container/prefix`, `gs://bucket/prefix`, or `memory:///` (this process only, for tests).

    Raises InvalidRequest for any other URL; OutOfStorage or Unavailable when the folder cannot be made.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in SCHEMES or (parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/"))):
        raise InvalidRequest(
            f"Object storage cannot be at {_without_secrets(parts)!r}. Use file:///folder, s3://bucket/prefix, "
            "az://container/prefix or gs://bucket/prefix.",
            code="invalid_objects_url",
            param="objects_url",
        )
    if parts.scheme == "memory":
        return Objects(url, MemoryStore(), None)
    if parts.scheme != "file":
        with _explained(_without_secrets(parts)):
            backend = from_url(url)
        assert isinstance(backend, S3Store | AzureStore | GCSStore), "the scheme was checked above"
        return Objects(url, backend, None)
    root = Path(urllib.request.url2pathname(parts.path))
    with _explained(str(root)):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Objects(url, LocalStore(root, automatic_cleanup=True), root)


def check_key(key: str) -> str:
    """`key` itself when it may name an object: letters, digits, `_`, `.`, `-` in segments divided by `/`.

    A segment does not begin with `.` or `-`. Raises InternalError: keys are made by the product, never by people.
    """
    if len(key) > KEY_LENGTH or not KEY_PATTERN.match(key):
        raise InternalError(f"{key[:100]!r} cannot name an object.", code="invalid_object_key")
    return key


class _ExplainedSink:
    """A file-like target whose write errors are ours."""

    def __init__(self, key: str, target: "BinaryIO | obstore.WritableFile") -> None:
        self._key = key
        self._target = target

    def write(self, data: bytes | memoryview, /) -> object:
        with _explained(self._key):
            return self._target.write(data)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(path) from error  # a folder of objects, or a name below an object, is none itself


def _file_pieces(key: str, file: BinaryIO, chunk: int) -> Iterator[bytes]:
    with file:
        while True:
            with _explained(key):
                piece = file.read(chunk)
            if not piece:
                return
            yield piece


def _pieces(key: str, stream: "obstore.BytesStream") -> Iterator[bytes]:
    while True:
        with _explained(key):
            piece = next(stream, None)
        if piece is None:
            return
        yield bytes(piece)


@contextlib.contextmanager
def _explained(key: str) -> Iterator[None]:
    """Turn storage's own exceptions into ours. Never wraps the caller's code."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"There is no object {key}.", code="object_not_found") from error
    except (AlreadyExistsError, FileExistsError) as error:
        raise Conflict(f"There is already an object {key}.", code="object_exists") from error
    except (OSError, BaseError) as error:
        text = str(error).partition("\n\nDebug source")[0]
        if NOT_A_FOLDER in text:
            raise NotFound(f"There is no object {key}.", code="object_not_found") from error
        if getattr(error, "errno", None) in FULL or any(word in text.lower() for word in FULL_WORDS):
            raise OutOfStorage(
                f"Object storage is full: {key} was not written. Free some space or raise the quota, then try again."
            ) from error
        raise Unavailable(f"Object storage failed at {key}: {text}", code="object_storage_failed") from error


def _without_secrets(parts: urllib.parse.SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
