"""Pulling base models from a hub: what is taken, checked, resumed and refused. The hub is a local server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fake_hub import COMMIT, FakeHub, serve_hub

from smedje.domain.catalog import ModelSource, SourceKind
from smedje.errors import InvalidRequest, NotFound, SmedjeError, Unavailable, UnsupportedField
from smedje.modeling.folder import installed_models, model_folder, read_manifest, verify
from smedje.modeling.pull import pull
from smedje.modeling.sources.hub import fetch_hub
from smedje.modeling.sources.progress import PullProgress
from smedje.modeling.tensor_file import TensorWriter, read_tensor_header
from smedje.modeling.tiny_random import write_tiny_llama

WEIGHTS = "model.safetensors"


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A published model: weights, settings, and things that must be left alone."""
    folder = tmp_path_factory.mktemp("published")
    write_tiny_llama(folder)
    extra = {"README.md": b"# Card", "LICENSE": b"Free", "pytorch_model.bin": b"pickle", "modeling_own.py": b"code"}
    return read_files(folder) | extra | {"onnx/model.safetensors": b"not this one"}


@pytest.fixture
def hub(model: dict[str, bytes]) -> Iterator[FakeHub]:
    with serve_hub(FakeHub({"org/tiny": dict(model)})) as served:
        yield served


def run_pull(hub: FakeHub, home: Path, repo: str = "org/tiny") -> list[PullProgress]:
    """Pull a repository as `mine`."""
    return list(pull(f"hub:{repo}", home=home, as_name="mine", hub_endpoint=hub.endpoint))


def test_takes_weights_settings_and_licence_only(hub: FakeHub, tmp_path: Path, model: dict[str, bytes]) -> None:
    """Safetensors, configuration, tokenizer and licence are installed byte by byte; pickles, code and cards are not."""
    stages = [p.stage for p in run_pull(hub, tmp_path)]
    folder = model_folder(tmp_path, "mine")
    taken = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE", WEIGHTS}
    assert {f.name for f in folder.iterdir()} == taken | {"smedje.json"}
    assert all((folder / name).read_bytes() == model[name] for name in taken)
    assert stages[0] == "listing"
    assert stages[-1] == "done"
    manifest = verify(folder)
    assert manifest.source == f"hub org/tiny@{COMMIT}"
    assert [m.name for m in installed_models(tmp_path)] == ["mine"]
    assert not [r for r in hub.seen if r.path.endswith((".bin", ".py", ".md"))]


def test_second_pull_asks_the_hub_nothing(hub: FakeHub, tmp_path: Path) -> None:
    """A complete model is present: no request, no change."""
    run_pull(hub, tmp_path)
    before, manifest = len(hub.seen), read_manifest(model_folder(tmp_path, "mine"))
    assert [p.stage for p in run_pull(hub, tmp_path)] == ["present"]
    assert len(hub.seen) == before
    assert read_manifest(model_folder(tmp_path, "mine")) == manifest


def test_cut_connection_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path, model: dict[str, bytes]) -> None:
    """Two cuts in one pull: each next request asks for the rest only, and the file is whole."""
    hub.cut[WEIGHTS] = [100_000, 50_000]
    run_pull(hub, tmp_path)
    starts = [r.start for r in hub.downloads(WEIGHTS) if r.path.startswith("/storage")]
    assert starts[0] == 0
    assert 0 < starts[1] <= 100_000
    assert starts[1] <= starts[2] <= 150_000
    assert (model_folder(tmp_path, "mine") / WEIGHTS).read_bytes() == model[WEIGHTS]


def test_server_without_ranges_starts_again(hub: FakeHub, tmp_path: Path, model: dict[str, bytes]) -> None:
    """A server that answers a range with the whole file is understood; nothing is written twice."""
    hub.cut[WEIGHTS] = [100_000]
    hub.ignores_range = True
    run_pull(hub, tmp_path)
    assert (model_folder(tmp_path, "mine") / WEIGHTS).read_bytes() == model[WEIGHTS]


def test_abandoned_pull_is_continued_by_the_next(hub: FakeHub, tmp_path: Path, model: dict[str, bytes]) -> None:
    """What a stopped pull has fetched is kept under the models folder, invisible, and used."""
    steps = pull("hub:org/tiny", home=tmp_path, as_name="mine", hub_endpoint=hub.endpoint)
    for step in steps:
        if step.file == WEIGHTS and step.stage == "downloading":
            break
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert installed_models(tmp_path) == ()
    seen = len(hub.seen)
    run_pull(hub, tmp_path)
    again = [r for r in hub.seen[seen:] if r.path.startswith("/storage")]
    assert [r.start for r in again][:1] > [0]
    assert not [r for r in hub.seen[seen:] if r.path.endswith("tokenizer.json")]
    assert (model_folder(tmp_path, "mine") / WEIGHTS).read_bytes() == model[WEIGHTS]
    assert not list(tmp_path.glob("models/.partial-*"))


def test_busy_hub_is_asked_again(hub: FakeHub, tmp_path: Path) -> None:
    """A 503 is waited out."""
    hub.busy = 1
    run_pull(hub, tmp_path)
    assert verify(model_folder(tmp_path, "mine"))


def test_wrong_hash_is_refused_and_the_rest_kept(hub: FakeHub, tmp_path: Path) -> None:
    """A file that is not what the hub states is deleted, nothing is installed, and a later pull mends it."""
    hub.stated[WEIGHTS] = "0" * 64
    with pytest.raises(InvalidRequest, match=r"model\.safetensors of org/tiny is not the expected file") as caught:
        run_pull(hub, tmp_path)
    assert caught.value.code == "wrong_hash"
    assert installed_models(tmp_path) == ()
    assert not list(tmp_path.rglob("*.safetensors*"))
    hub.stated.clear()
    run_pull(hub, tmp_path)
    assert verify(model_folder(tmp_path, "mine"))


def test_small_files_are_checked_too(hub: FakeHub, tmp_path: Path) -> None:
    """A small file whose content differs from its git id is refused."""
    published = hub.repos["org/tiny"]
    listing = dict(published)

    class Tampered(dict[str, bytes]):
        """Lists the honest file and serves another one of the same length."""

        def get(self, name: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
            content = listing.get(name, default)
            return content.replace(b"512", b"640") if content and name == "config.json" else content

    hub.repos["org/tiny"] = Tampered(published)
    with pytest.raises(InvalidRequest, match=r"config\.json of org/tiny is not the expected file: git:"):
        run_pull(hub, tmp_path)


def test_catalog_pin_overrules_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    """A pinned hash must match even when the hub vouches for the file."""
    source = ModelSource(kind=SourceKind.HUB, repo="org/tiny", sha256={WEIGHTS: "f" * 64})
    with pytest.raises(InvalidRequest, match=f"expected sha256:{'f' * 64}"):
        list(fetch_hub(source, tmp_path, endpoint=hub.endpoint))


def test_weights_without_a_hash_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    """A mirror that states no hash for the weights cannot be used without a pin."""
    hub.without_hashes = True
    with pytest.raises(InvalidRequest, match=r"states no hash for model\.safetensors"):
        run_pull(hub, tmp_path)


def test_pickles_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    """A repository with nothing but a pickle is refused before any byte of it is fetched."""
    del hub.repos["org/tiny"][WEIGHTS]
    with pytest.raises(InvalidRequest, match=r"only pytorch_model\.bin, a format that can run code"):
        run_pull(hub, tmp_path)
    assert not hub.downloads("pytorch_model.bin")
    assert list((tmp_path / "models").iterdir()) == [tmp_path / "models" / ".lock-mine"]


@pytest.mark.parametrize(("architecture", "allowed"), [("Phi3ForCausalLM", True), ("OwnForCausalLM", False)])
def test_repository_code(hub: FakeHub, tmp_path: Path, architecture: str, allowed: bool) -> None:
    """`auto_map` is ignored where the architecture is known, as in Phi-3's own repository, and refused elsewhere."""
    config = json.loads(hub.repos["org/tiny"]["config.json"])
    config |= {"architectures": [architecture], "auto_map": {"AutoModelForCausalLM": "modeling_own.X"}}
    hub.repos["org/tiny"]["config.json"] = json.dumps(config).encode()
    if allowed:
        run_pull(hub, tmp_path)
        assert verify(model_folder(tmp_path, "mine"))
    else:
        with pytest.raises(UnsupportedField, match="needs code from its own repository"):
            run_pull(hub, tmp_path)
        assert not hub.downloads(WEIGHTS)


def shard(files: dict[str, bytes], folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The same model with its tensors dealt out over several files and an index."""
    import numpy

    source = folder / WEIGHTS
    source.write_bytes(files[WEIGHTS])
    header = read_tensor_header(source)
    base = source.stat().st_size - max(entry["data_offsets"][1] for entry in header.values())
    index: dict[str, str] = {}
    for number, name in enumerate(names):
        chosen = {k: tuple(v["shape"]) for i, (k, v) in enumerate(header.items()) if i % len(names) == number}
        with TensorWriter(folder / name, chosen) as out:
            for key, shape in chosen.items():
                begin, end = header[key]["data_offsets"]
                raw = files[WEIGHTS][base + begin : base + end]
                out.write(key, numpy.frombuffer(raw, "<f4").reshape(shape))
        index |= dict.fromkeys(chosen, name)
    shards = {name: (folder / name).read_bytes() for name in names}
    rest = {name: content for name, content in files.items() if name != WEIGHTS}
    return rest | shards | {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode()}


def test_sharded_model(hub: FakeHub, tmp_path: Path) -> None:
    """Every file that the index names is fetched, and transformers loads the result."""
    from transformers import AutoModelForCausalLM

    names = tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
    hub.repos["org/tiny"] = shard(hub.repos["org/tiny"], tmp_path, names) | {"consolidated.safetensors": b"no"}
    run_pull(hub, tmp_path / "home")
    folder = model_folder(tmp_path / "home", "mine")
    assert sorted(f.name for f in folder.glob("*.safetensors")) == list(names)
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../../escape.safetensors"}}, "does not list its weight files as plain names"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "does not list its weight files as plain names"),
        ({"weight_map": {}}, "does not list its weight files as plain names"),
        (["weight_map"], "does not list its weight files as plain names"),
        ({"weight_map": {"a": "model-9.safetensors"}}, r"lists model-9\.safetensors in its index and does not have it"),
    ],
)
def test_bad_index(hub: FakeHub, tmp_path: Path, index: object, message: str) -> None:
    """An index that is malformed, leads out of the folder or names a missing file is refused; nothing stays."""
    files = hub.repos["org/tiny"]
    del files[WEIGHTS]
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(InvalidRequest, match=message):
        run_pull(hub, tmp_path)
    assert not list((tmp_path / "models").glob(".partial-*"))


def test_broken_weights_are_not_installed(hub: FakeHub, tmp_path: Path) -> None:
    """Weights that hash right and are not sound safetensors are refused with the file's name."""
    hub.repos["org/tiny"][WEIGHTS] = (1 << 40).to_bytes(8, "little") + b"{}"
    with pytest.raises(InvalidRequest, match=r"model\.safetensors is not a sound safetensors file"):
        run_pull(hub, tmp_path)
    assert installed_models(tmp_path) == ()


def test_unknown_repository_and_revision(hub: FakeHub, tmp_path: Path) -> None:
    """A repository or revision that is not there is named in the error."""
    with pytest.raises(NotFound, match="no repository org/none, or it is private"):
        run_pull(hub, tmp_path, "org/none")
    with pytest.raises(NotFound, match="org/tiny has no revision 'v9'"):
        run_pull(hub, tmp_path, "org/tiny@v9")
    with pytest.raises(InvalidRequest, match="not a hub repository"):
        run_pull(hub, tmp_path, "a/b/c")


def test_hub_that_does_not_answer(tmp_path: Path) -> None:
    """No server at the address is Unavailable, with what to check."""
    with pytest.raises(Unavailable, match="The hub could not be reached for org/tiny"):
        list(pull("hub:org/tiny", home=tmp_path, as_name="mine", hub_endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize("answer", [b"<html>Please log in</html>", b"[]", b"{}", b'{"id": 1, "siblings": 3}'])
def test_answer_that_is_no_listing(hub: FakeHub, tmp_path: Path, answer: bytes) -> None:
    """A login page or another server at the address is Unavailable, not a crash."""
    hub.listing = answer
    with pytest.raises(SmedjeError):
        run_pull(hub, tmp_path)


def pull_in_process(home: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Pull org/tiny in a fresh process, which reads the hub's variables as a user's would."""
    code = (
        "import sys; from pathlib import Path; from smedje.modeling.pull import pull; from smedje.errors import *\n"
        "try:\n    print([p.stage for p in pull('hub:org/tiny', home=Path(sys.argv[1]), as_name='mine')][-1])\n"
        "except SmedjeError as error:\n    print(error.code, error.message)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", code, str(home)],
        env=clean | {"HF_HOME": str(home / "hf")} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not run.returncode, run.stderr
    return run


def test_gated_model_needs_a_token(hub: FakeHub, tmp_path: Path) -> None:
    """Without or with a wrong token the error says how to get access; HF_TOKEN opens it and never goes to storage."""
    hub.gated = frozenset({"org/tiny"})
    for token in ({}, {"HF_TOKEN": "hf_wrong"}):
        found = pull_in_process(tmp_path, {"HF_ENDPOINT": hub.endpoint, **token}).stdout
        assert found.startswith("model_gated org/tiny is open only to those who have accepted its terms.")
        assert "set HF_TOKEN" in found
    assert pull_in_process(tmp_path, {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token}).stdout == "done\n"
    assert {r.token for r in hub.downloads("LICENSE")} == {"", "hf_wrong", hub.token}
    assert {r.token for r in hub.seen if "/storage/" in r.path} == {""}


def test_offline_switch(hub: FakeHub, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE keeps a pull from asking anything."""
    found = pull_in_process(tmp_path, {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "1"}).stdout
    assert found.startswith("hub_offline ")
    assert not hub.seen


def test_killed_pull_is_continued(hub: FakeHub, tmp_path: Path, model: dict[str, bytes]) -> None:
    """kill -9 in the middle leaves no model and no lock; the next pull fetches only the rest."""
    code = (
        "import os, signal, sys; from pathlib import Path; from smedje.modeling.pull import pull\n"
        "for p in pull('hub:org/tiny', home=Path(sys.argv[1]), as_name='mine', hub_endpoint=sys.argv[2]):\n"
        "    if p.stage == 'downloading' and p.file == 'model.safetensors': os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path), hub.endpoint], timeout=60)
    assert run.returncode == -9
    assert installed_models(tmp_path) == ()
    seen = len(hub.seen)
    run_pull(hub, tmp_path)
    again = [r for r in hub.seen[seen:] if "/storage/" in r.path]
    assert len(again) == 1
    assert 0 < again[0].start < len(model[WEIGHTS])
    assert (model_folder(tmp_path, "mine") / WEIGHTS).read_bytes() == model[WEIGHTS]


def test_two_pulls_at_once(hub: FakeHub, tmp_path: Path) -> None:
    """A second pull of the same name waits and then finds the model; every file is fetched once."""
    first = pull("hub:org/tiny", home=tmp_path, as_name="mine", hub_endpoint=hub.endpoint)
    next(first)
    second = pull("hub:org/tiny", home=tmp_path, as_name="mine", hub_endpoint=hub.endpoint)
    assert next(second).stage == "waiting"
    assert [p.stage for p in first][-1] == "done"
    assert [p.stage for p in second][-1] == "present"
    assert len([r for r in hub.seen if "/storage/" in r.path]) == 1


@pytest.mark.slow
def test_line_that_brings_nothing(hub: FakeHub, tmp_path: Path) -> None:
    """A download that gets no further in several tries ends with an error that says what is kept."""
    hub.cut[WEIGHTS] = [0] * 6
    with pytest.raises(Unavailable, match="What has arrived is kept") as caught:
        run_pull(hub, tmp_path)
    assert caught.value.code == "download_failed"
