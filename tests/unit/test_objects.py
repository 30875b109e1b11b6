"""Object storage: the same promises for a local disk and for obstore's memory, which stands for a bucket."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smedje.errors import Conflict, InternalError, InvalidRequest, NotFound, OutOfStorage
from smedje.objects.local_files import lent_folder
from smedje.objects.store import ObjectInfo, Objects, check_key, open_objects


@pytest.fixture(params=["file", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """Empty storage of each kind."""
    return open_objects((tmp_path / "my objects").as_uri() if request.param == "file" else "memory:///")


def keys(objects: Objects, prefix: str = "", after: str = "") -> list[str]:
    """Keys under a prefix."""
    return [info.key for info in objects.list(prefix, after=after)]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 50_000], ids=["empty", "one", "12.8MB"])
def test_bytes_come_back(objects: Objects, data: bytes) -> None:
    """What was put is what is got, whole, in pieces and by range, and its size is listed."""
    objects.put("a/b.bin", data)
    assert objects.get("a/b.bin") == data
    assert b"".join(objects.iter_bytes("a/b.bin", 1 << 16)) == data
    assert objects.read_range("a/b.bin", 3, 70_000) == data[3:70_003]
    assert objects.list("a") == [ObjectInfo(key="a/b.bin", size=len(data))]


def test_a_put_replaces(objects: Objects) -> None:
    """The later of two puts stands, a shorter one too."""
    objects.put("k", b"longer than the next")
    objects.put("k", b"next")
    assert objects.get("k") == b"next"


def test_create_only_lets_one_win(objects: Objects) -> None:
    """Of many writers at once exactly one creates the object; the others are told, and its bytes stand."""

    def attempt(number: int) -> bool:
        try:
            objects.put("one/winner", f"{number}".encode(), create_only=True)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [number for number, result in enumerate(pool.map(attempt, range(40))) if result]
    assert objects.get("one/winner") == f"{won[0]}".encode()
    assert len(won) == 1
    assert keys(objects) == ["one/winner"]


@pytest.mark.parametrize("action", ["get", "iter", "range", "rename", "local_path", "local_folder"])
def test_what_is_missing_is_not_found(objects: Objects, tmp_path: Path, action: str) -> None:
    """Every way of reading says at once that there is no such object; a folder's name is no object."""
    objects.put("folder/object", b"x")
    ways = {
        "get": lambda key: objects.get(key),
        "iter": lambda key: objects.iter_bytes(key),
        "range": lambda key: objects.read_range(key, 0, 1),
        "rename": lambda key: objects.rename(key, "elsewhere"),
        "local_path": lambda key: objects.local_path(key, tmp_path / "cache"),
        "local_folder": lambda key: objects.local_folder(key, tmp_path / "cache"),
    }
    with pytest.raises(NotFound, match="nothing/here"):
        ways[action]("nothing/here")
    if action not in ("local_folder", "rename"):
        with pytest.raises(NotFound):
            ways[action]("folder")


def test_exists_means_exactly_this_key(objects: Objects) -> None:
    """Prefixes and longer keys do not count."""
    objects.put("a/bc", b"")
    assert objects.exists("a/bc")
    assert not any(objects.exists(key) for key in ("a", "a/b", "a/bc/d"))


def test_lists_are_sorted_by_whole_segments(objects: Objects) -> None:
    """A prefix is whole segments, order is by key, and `after` leaves out all up to and including its key."""
    names = [f"runs/1/events/{n:010d}.jsonl" for n in range(1500)]
    for name in [*reversed(names), "runs/12/spec.json", "runs/1.json", "other"]:
        objects.put(name, b"")
    assert keys(objects, "runs/1") == keys(objects, "runs/1/") == names
    assert keys(objects, "runs/1/events", after=names[-3]) == names[-2:]
    assert keys(objects, "runs/1/events", after=names[-1]) == []
    assert keys(objects, "absent") == []
    assert keys(objects) == sorted([*names, "runs/12/spec.json", "runs/1.json", "other"])


def test_a_writer_shows_the_object_at_the_end(objects: Objects) -> None:
    """Streamed bytes are invisible until the block ends, and whole after it."""
    pieces = [bytes([n]) * 1_000_003 for n in range(20)]
    with objects.writer("big") as sink:
        for piece in pieces:
            sink.write(piece)
        assert keys(objects) == []
    assert objects.get("big") == b"".join(pieces)


@pytest.mark.parametrize("size", [3, 30_000_000])
def test_a_broken_writer_leaves_what_was(objects: Objects, tmp_path: Path, size: int) -> None:
    """When the block fails, the caller's own error comes out and the object is as before, or absent."""
    objects.put("old", b"old")
    for key in ("old", "new"):
        with pytest.raises(KeyError, match="mine"):
            break_off(objects, key, size)
    assert objects.get("old") == b"old"
    assert keys(objects) == ["old"]
    assert not list((tmp_path / "my objects" / ".staging").glob("*"))


def break_off(objects: Objects, key: str, size: int) -> None:
    """Begin to write and fail."""
    with objects.writer(key) as sink:
        sink.write(b"x" * size)
        raise KeyError("mine")


def test_deleting_is_repeatable(objects: Objects) -> None:
    """Deleting what is gone is no error; deleting a prefix takes exactly its objects."""
    for key in ("p/1", "p/2/3", "px", "q"):
        objects.put(key, b"")
    objects.delete("q")
    objects.delete("q")
    objects.delete_prefix("p")
    objects.delete_prefix("p")
    assert keys(objects) == ["px"]
    with pytest.raises(InternalError):
        objects.delete_prefix("")
    assert keys(objects) == ["px"]


def test_rename_moves_and_replaces(objects: Objects) -> None:
    """After a rename the bytes are at the new key alone."""
    objects.put("from/here", b"new")
    objects.put("to/there", b"old")
    objects.rename("from/here", "to/there")
    assert objects.get("to/there") == b"new"
    assert keys(objects) == ["to/there"]


def test_a_lent_path_goes_with_its_block(objects: Objects, tmp_path: Path) -> None:
    """A lent path has the object's bytes; the cache is as it was afterwards, also when there is no such object."""
    cache = tmp_path / "cache"
    objects.put("w", data := os.urandom(11_000_000))
    with objects.lent_path("w", cache) as path:
        assert path.read_bytes() == data
    with pytest.raises(NotFound, match="no object v"), objects.lent_path("v", cache):
        pass
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert objects.get("w") == data


def test_local_paths_follow_the_object(objects: Objects, tmp_path: Path) -> None:
    """A local path has the object's bytes, is fetched once per version, and never shows an older version."""
    cache = tmp_path / "cache"
    objects.put("adapter/weights", b"one")
    first = objects.local_path("adapter/weights", cache)
    assert first.read_bytes() == b"one"
    assert objects.local_path("adapter/weights", cache) == first
    objects.put("adapter/weights", b"two!")
    assert objects.local_path("adapter/weights", cache).read_bytes() == b"two!"


def test_local_folders_have_relative_names(objects: Objects, tmp_path: Path) -> None:
    """A prefix becomes a folder with the objects at their own names, the present versions."""
    cache = tmp_path / "cache"
    objects.put("ck/5/adapter.safetensors", b"w")
    objects.put("ck/5/sub/config.json", b"{}")
    objects.put("ck/55/other", b"")
    for _ in range(2):
        folder = objects.local_folder("ck/5/", cache)
        names = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert names == {"adapter.safetensors": b"w", "sub/config.json": b"{}"}
    objects.put("ck/5/sub/config.json", b"[]")
    assert (objects.local_folder("ck/5", cache) / "sub/config.json").read_bytes() == b"[]"


def test_a_folder_that_vanishes_does_not_lose_a_write(tmp_path: Path) -> None:
    """Removing the last object of a folder removes the folder; writers into it at that moment still succeed.

    Six writers, because with two the moments that lose a write come once in thousands of runs. They stop at a time
    and not at a number: a flush takes microseconds on one machine and milliseconds on another.
    """
    objects = open_objects(tmp_path.as_uri())
    end = time.monotonic() + 3

    def churn(writer: int) -> None:
        while time.monotonic() < end:
            objects.put(f"f/g/{writer}", b"x")
            assert objects.get(f"f/g/{writer}") == b"x"
            objects.delete(f"f/g/{writer}")

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(churn, writer) for writer in range(6)]:
            done.result()
    assert objects.list("") == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "a/.hidden", "-x", "å", "a b", "a#1", "a\\b", "a\n", "a" * 513]
)
def test_keys_are_narrow(objects: Objects, key: str) -> None:
    """Names that could leave the folder, hide or be spelt in two ways are refused before storage sees them."""
    with pytest.raises(InternalError):
        objects.put(key, b"")
    with pytest.raises(InternalError):
        check_key(key)


@pytest.mark.parametrize(
    "url", ["", "/tmp/x", "ftp://x/y", "file:relative", "file://host/share", "https://user:secret@bucket/x"]
)
def test_urls_that_mean_nothing_are_refused(url: str) -> None:
    """A URL of another kind is the user's mistake, and the message shows no password."""
    with pytest.raises(InvalidRequest, match="file:///folder") as caught:
        open_objects(url)
    assert "secret" not in caught.value.message


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    """The folder is made with its parents, for its owner alone."""
    open_objects((tmp_path / "deep" / "objects").as_uri())
    assert (tmp_path / "deep" / "objects").stat().st_mode & 0o777 == 0o700


def test_a_killed_writer_leaves_no_object(tmp_path: Path) -> None:
    """kill -9 in the middle of a stream leaves nothing to read; a sweep takes the rest, and nothing before the kill."""
    objects, cache = open_objects((tmp_path / "objects").as_uri()), tmp_path / "cache"
    program = (
        "from smedje.objects.store import open_objects\n"
        f"with open_objects({objects.url!r}).writer('half') as sink:\n"
        "    sink.write(b'x' * 5_000_000)\n    print('half', flush=True)\n    input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        assert objects.sweep(cache) == 0
        writer.kill()
    assert keys(objects) == []
    assert objects.sweep(cache) == 1
    assert not list((tmp_path / "objects" / ".staging").iterdir())


def test_writing_goes_on_beside_sweeps(tmp_path: Path) -> None:
    """Sweeps without a pause take nothing from those who write at the same time."""
    objects, done = open_objects(tmp_path.as_uri()), threading.Event()

    def sweep() -> int:
        swept = 0
        while not done.is_set():
            swept += objects.sweep(tmp_path / "cache")
        return swept

    with ThreadPoolExecutor(5) as pool:
        sweeping = pool.submit(sweep)
        writing = [pool.submit(objects.put, f"k{number}", b"x" * 10_000) for number in range(300)]
        for one in writing:
            one.result()
        done.set()
        sweeping.result()
    assert len(keys(objects)) == 300
    assert not list((tmp_path / ".staging").iterdir())


def test_a_lent_folder_goes_with_its_process(tmp_path: Path) -> None:
    """A folder is its user's alone and gone after the block; one of a killed process goes when the next is lent."""
    program = (
        "from pathlib import Path\nfrom smedje.objects.local_files import lent_folder\n"
        f"with lent_folder(Path({str(tmp_path)!r}), prefix='lent-') as folder:\n"
        "    (folder / 'file').write_text('x')\n    print(folder, flush=True)\n    input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().decode().strip())
        with lent_folder(tmp_path, prefix="lent-") as mine:
            assert mine.stat().st_mode & 0o777 == 0o700
            assert {mine, theirs} == set(tmp_path.iterdir())
        other.kill()
    assert list(tmp_path.iterdir()) == [theirs]
    with lent_folder(tmp_path, prefix="lent-") as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to see the system calls")
@pytest.mark.parametrize("create_only", [False, True])
def test_bytes_are_on_disk_before_their_name_is(tmp_path: Path, create_only: bool) -> None:
    """A put flushes the file, then names it, then flushes the folder: no name without bytes after a power loss."""
    program = (
        f"from smedje.objects.store import open_objects\no = open_objects({tmp_path.as_uri()!r})\n"
        f"o.put('warm', b'')\nopen({str(tmp_path / 'begin')!r}, 'w').close()\n"
        f"o.put('k', b'data', create_only={create_only})\n"
    )
    trace = tmp_path / "trace"
    calls = "trace=openat,fsync,rename,renameat,renameat2,link,linkat"
    command = ["strace", "-f", "-y", "-e", calls, "-o", str(trace), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0 and "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    after = trace.read_text().partition(str(tmp_path / "begin"))[2].splitlines()
    order = []
    for line in after:
        if "fsync(" in line:
            order.append("flush file" if "#1>" in line else "flush folder")
        elif "rename" in line or "link(" in line or "linkat(" in line:
            order.append("name")
    assert order == ["flush file", "name", "flush folder"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("way", ["put", "writer"])
def test_a_full_disk_leaves_nothing_half_written(small_disk: Path, way: str) -> None:
    """A disk that fills up is its own error, leaves older objects and no rest, and is usable once there is room."""
    objects = open_objects(small_disk.as_uri())
    objects.put("old", b"old")

    def write(size: int) -> None:
        if way == "put":
            objects.put("old", b"x" * size)
        else:
            with objects.writer("old") as sink:
                for _ in range(size // 1000):
                    sink.write(b"x" * 1000)

    for _ in range(3):
        with pytest.raises(OutOfStorage, match="full"):
            write(3_000_000)
    assert objects.get("old") == b"old"
    assert not list((small_disk / ".staging").iterdir())
    write(1_000_000)
    assert len(objects.get("old")) == 1_000_000


def test_forgetting_a_key_removes_its_copies_and_no_others(tmp_path: Path) -> None:
    """Copies of an object or a prefix are gone from the cache, of every version; those of other keys stay."""
    cache, objects = tmp_path / "cache", open_objects("memory:///")
    for text in (b"one", b"two"):
        objects.put("a/x", text)
        objects.local_path("a/x", cache)
    objects.put("b/y", b"other")
    objects.local_folder("a", cache)
    kept = objects.local_path("b/y", cache)
    objects.forget("a/x", cache)
    objects.forget("a", cache)
    assert list(cache.glob("*")) == [kept] or {path.name for path in cache.iterdir()} <= {kept.name, ".staging"}


def test_a_full_disk_cache_is_out_of_storage(small_disk: Path) -> None:
    """Fetching a remote object into a full cache is the same error, and leaves no rest."""
    objects = open_objects("memory:///")
    objects.put("big", b"x" * 3_000_000)
    with pytest.raises(OutOfStorage):
        objects.local_path("big", small_disk)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_quota_counts_as_full(tmp_path: Path) -> None:
    """The system's other ways of saying full are the same error: here the limit on one file's size."""
    program = (
        "import resource, signal\nfrom smedje.errors import OutOfStorage\n"
        "from smedje.objects.store import open_objects\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"try:\n    open_objects({tmp_path.as_uri()!r}).put('k', b'x' * 200_000)\n"
        "except OutOfStorage:\n    print('full')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "full"
    assert keys(open_objects(tmp_path.as_uri())) == []
