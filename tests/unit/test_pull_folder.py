"""Installed models: manifests, verification, removal, and pulling from folders on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from smedje.errors import Conflict, InvalidRequest, NotFound, OutOfStorage
from smedje.modeling.folder import (
    check_room,
    installed_folder,
    installed_models,
    model_folder,
    read_manifest,
    remove_model,
    verify,
)
from smedje.modeling.pull import plan_pull, pull
from smedje.modeling.tensor_file import TensorWriter, read_tensor_header
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.objects.file_lock import FileLock


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A model folder as another tool would have saved it."""
    folder = tmp_path / "origin"
    write_tiny_llama(folder)
    (folder / "training_args.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def home(tmp_path: Path, origin: Path) -> Path:
    """A state folder with that model installed as `mine`."""
    for _ in pull(str(origin), home=tmp_path / "home", as_name="mine"):
        pass
    return tmp_path / "home"


def test_folder_is_copied(home: Path, origin: Path) -> None:
    """Model files are copied, other files are not, and what happens to the origin later does not matter."""
    manifest = verify(model_folder(home, "mine"))
    assert manifest.source == f"folder {origin}"
    assert "training_args.bin" not in manifest.files
    (origin / "model.safetensors").write_bytes(b"")
    assert verify(model_folder(home, "mine")) == manifest
    assert manifest.bytes == sum((model_folder(home, "mine") / name).stat().st_size for name in manifest.files)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_verify_names_the_damaged_file(home: Path, damage: str) -> None:
    """A changed, shortened or missing file is named, with the way to mend it."""
    file = model_folder(home, "mine") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if damage == "flip" else content[:-1])
    if damage == "delete":
        file.unlink()
    with pytest.raises(InvalidRequest, match=r"model\.safetensors .* smedje models pull mine") as caught:
        verify(model_folder(home, "mine"))
    assert caught.value.param == "model.safetensors"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "mine"}'])
def test_damaged_manifest(home: Path, text: str) -> None:
    """A manifest that cannot be read is an error that names it."""
    (model_folder(home, "mine") / "smedje.json").write_text(text)
    with pytest.raises(InvalidRequest, match=r"smedje\.json"):
        read_manifest(model_folder(home, "mine"))


def test_without_manifest_nothing_is_installed(home: Path) -> None:
    """A folder without a manifest is no model: it is not listed, not found, and never overwritten by a pull."""
    (model_folder(home, "mine") / "smedje.json").unlink()
    assert installed_models(home) == ()
    with pytest.raises(NotFound, match="smedje models pull mine"):
        installed_folder(home, "mine")
    with pytest.raises(Conflict, match="is in the way"):
        list(pull(str(home / "models" / "mine"), home=home, as_name="mine"))


def test_remove(home: Path) -> None:
    """A removed model is gone from disk; removing it again says that it is not installed."""
    remove_model(home, "mine")
    assert not model_folder(home, "mine").exists()
    assert installed_models(home) == ()
    with pytest.raises(NotFound, match="not installed"):
        remove_model(home, "mine")


def test_remove_clears_what_a_pull_left(home: Path) -> None:
    """The parts of a pull that was cut off can be removed under the model's name."""
    partial = home / "models" / ".partial-other"
    partial.mkdir()
    remove_model(home, "other")
    assert not partial.exists()


def test_names_need_a_source_or_a_name(tmp_path: Path, origin: Path) -> None:
    """What is not in the catalog needs a name here; what is in it keeps its own; a path that is not there is named."""
    for source in (str(origin), "hub:org/name", "model.gguf"):
        with pytest.raises(InvalidRequest, match="--as my-model"):
            plan_pull(source)
    with pytest.raises(InvalidRequest, match="keeps its name"):
        plan_pull("phi-3-mini-4k-instruct", as_name="phi")
    with pytest.raises(NotFound, match="for a hub repository write hub:microsoft/Phi-3-mini-4k-instruct"):
        plan_pull("microsoft/Phi-3-mini-4k-instruct")
    with pytest.raises(InvalidRequest, match="cannot name a base model"):
        plan_pull(str(origin), as_name="../escape")
    with pytest.raises(NotFound, match=r"There is no file .*none\.gguf"):
        list(pull(str(tmp_path / "none.gguf"), home=tmp_path / "home", as_name="mine"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, r"has only training_args\.bin"),
        ("config.json", None, r"has no config\.json"),
        ("config.json", b"[]", r"config\.json of .* is not a JSON object"),
        ("tokenizer.json", None, r"has no tokenizer\.json"),
        ("tokenizer.json", b"{}", r"tokenizer\.json of .* cannot be read"),
        ("model.safetensors", b"not safetensors", "not a sound safetensors file"),
    ],
)
def test_unusable_folders(tmp_path: Path, origin: Path, name: str, content: bytes | None, message: str) -> None:
    """A folder that lacks a part, or has a broken one, is refused with the part's name; nothing stays behind."""
    if content is None:
        (origin / name).unlink()
    else:
        (origin / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        list(pull(str(origin), home=tmp_path / "home", as_name="mine"))
    assert [f.name for f in (tmp_path / "home" / "models").iterdir()] == [".lock-mine"]


def test_no_room(tmp_path: Path) -> None:
    """More than the disk has free is refused before anything is fetched, with both sizes."""
    with pytest.raises(OutOfStorage, match=r"needs 1000000\.0 GB and does not fit: .* GB free"):
        check_room(tmp_path, name="huge", needed=10**15)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_that_fills_up(tmp_path: Path, origin: Path) -> None:
    """A disk that fills up in the middle is OutOfStorage; nothing is installed."""
    partial = tmp_path / "home" / "models" / ".partial-mine"
    steps = pull(str(origin), home=tmp_path / "home", as_name="mine")
    next(steps)
    steps.close()  # type: ignore[attr-defined]  # a generator
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (partial / name).unlink(missing_ok=True)
        (partial / name).symlink_to("/dev/full")
    with pytest.raises(OutOfStorage, match="Free some space"):
        list(pull(str(origin), home=tmp_path / "home", as_name="mine"))
    assert installed_models(tmp_path / "home") == ()


def test_lock_holds_between_processes_and_dies_with_its_owner(tmp_path: Path) -> None:
    """Another process cannot take a held lock; a killed owner leaves it free."""
    path = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from smedje.objects.file_lock import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); print(lock.acquire(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "True\n"
        lock = FileLock(path)
        assert not lock.acquire()
        owner.kill()
        owner.wait()
        assert lock.acquire()
        lock.release()
        lock.release()


def test_writer_makes_what_the_library_reads(tmp_path: Path) -> None:
    """Tensors written one by one come back through the safetensors library unchanged."""
    import numpy

    arrays = {
        "a": numpy.arange(6, dtype="<f4").reshape(2, 3),
        "b": numpy.ones((4, 2), "<f4").T,
        "c": numpy.float32([7]),
    }
    shapes = {name: array.shape for name, array in arrays.items()}
    with TensorWriter(tmp_path / "t.safetensors", shapes) as out:
        for name, array in arrays.items():
            out.write(name, array)
    read = load_file(tmp_path / "t.safetensors")
    assert read.keys() == arrays.keys()
    assert all(numpy.array_equal(read[name], arrays[name]) for name in arrays)


def tensor_file(header: object, data: bytes = b"", *, size: int | None = None) -> bytes:
    """A safetensors file with this header, and with a false header length if one is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, *, shape: object = (1,), dtype: object = "F32") -> dict[str, object]:
    """One tensor's place in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty": b"",
    "header past the end": tensor_file({}, size=1 << 40),
    "not JSON": tensor_file(b"{"),
    "a list": tensor_file([]),
    "nested": tensor_file(b"[" * 100_000),
    "overlap": tensor_file({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
    "gap": tensor_file({"a": entry(4, 8)}, bytes(8)),
    "negative": tensor_file({"a": entry(-4, 0)}, bytes(4)),
    "outside": tensor_file({"a": entry(0, 4)}, bytes(2)),
    "left over": tensor_file({"a": entry(0, 4)}, bytes(8)),
    "wrong size": tensor_file({"a": entry(0, 4, shape=[2])}, bytes(4)),
    "negative shape": tensor_file({"a": entry(0, 4, shape=[-1, -1])}, bytes(4)),
    "unknown type": tensor_file({"a": entry(0, 4, dtype="X")}, bytes(4)),
    "no entry": tensor_file({"a": None}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensor_files(tmp_path: Path, name: str) -> None:
    """A header that lies is refused by the file's name, before anything is read by it."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InvalidRequest, match=r"bad\.safetensors is not a sound safetensors file"):
        read_tensor_header(path)


def test_two_processes_pull_at_once(tmp_path: Path, origin: Path) -> None:
    """Two processes that pull the same name both end well, with one model."""
    code = (
        "import sys; from pathlib import Path; from smedje.modeling.pull import pull\n"
        "print([p.stage for p in pull(sys.argv[1], home=Path(sys.argv[2]), as_name='mine')][-1])"
    )
    command = [sys.executable, "-c", code, str(origin), str(tmp_path / "home")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    ends = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert ends[0] == "done"
    assert ends[1] in ("done", "present")
    assert ends != ["done", "done"]
    assert verify(model_folder(tmp_path / "home", "mine"))
