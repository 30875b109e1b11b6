"""A model's files from the Hugging Face hub or a mirror of it. Knows the hub's routes and hashes, not the models.

Listing, authentication and errors are huggingface_hub's, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and a stored login
work as everywhere. The byte loop is ours: the library's own blocks without progress that a generator could pass on, and
takes the Xet route unless a process-wide switch forbids it. Every file is held against the hash that the hub states
(SHA-256 of large files, git's blob id of small ones) and against the catalog's pin where there is one.
"""

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from smedje.domain.catalog import ModelSource
from smedje.errors import InvalidRequest, NotFound, SmedjeError, Unavailable
from smedje.modeling.folder import check_room, file_sha256
from smedje.modeling.sources.files import check_config, settings_files, weight_files
from smedje.modeling.sources.progress import PullProgress

STEP = 1 << 18
LISTING_SECONDS = 30
TRIES = 5
FIRST_WAIT_SECONDS = 0.5
BUSY = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository at one commit. digest: `sha256:…` or `git:…` (a blob id); empty when none is stated."""

    name: str
    url: str
    bytes: int
    digest: str


def fetch_hub(source: ModelSource, folder: Path, *, endpoint: str | None = None) -> Generator[PullProgress, None, str]:
    """Put configuration, tokenizer, licence and safetensors of a repository into the folder; returns what was fetched.

    All files come from the one commit that the revision names now. Parts of an earlier try are completed. endpoint: the
    hub's address, from HF_ENDPOINT when None. Raises NotFound, Unavailable (out of reach, gated, cut off again and
    again), InvalidRequest (no safetensors, wrong hash), UnsupportedField (needs the repository's code), OutOfStorage.
    """
    yield PullProgress(stage="listing", file=source.repo)
    commit, listed = _list_files(source, endpoint)
    where = f"{source.repo}@{commit[:12]}"
    small = settings_files(listed, where=where)
    yield from _fetch_all(source, [listed[n] for n in small], folder)
    check_config(folder, where=where)
    weights = weight_files(folder, where=where)
    missing = sorted(set(weights) - listed.keys())
    if missing:
        raise InvalidRequest(
            f"{where} lists {missing[0]} in its index and does not have it. Nothing was installed.",
            code="incomplete_model",
            param=missing[0],
        )
    large = [listed[n] for n in weights]
    for file in large:
        if not file.digest and file.name not in source.sha256:
            raise InvalidRequest(
                f"The hub states no hash for {file.name} of {where}, so it cannot be checked. Use another hub address "
                "(HF_ENDPOINT).",
                code="no_hash",
                param=file.name,
            )
    present = sum(f.stat().st_size for f in (_part(folder, file) for file in large) if f.exists())
    present += sum(file.bytes for file in large if (folder / file.name).exists())
    check_room(folder, name=source.repo, needed=sum(file.bytes for file in large) - present)
    yield from _fetch_all(source, large, folder)
    return f"hub {source.repo}@{commit}"


def _list_files(source: ModelSource, endpoint: str | None) -> tuple[str, dict[str, HubFile]]:
    import httpx2
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        info = HfApi(endpoint=endpoint).model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=LISTING_SECONDS
        )
    except HFValidationError:
        raise InvalidRequest(
            f"{source.repo!r} is not a hub repository. Write it as organisation/name.",
            code="invalid_model_name",
            param="model",
        ) from None
    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise _hub_error(source, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(
            f"What answers at the hub's address for {source.repo} is not a hub: its listing cannot be read. Check "
            "HF_ENDPOINT, and whether the network wants a login first.",
            code="hub_unreachable",
        ) from error
    commit = info.sha or source.revision
    files = {}
    for entry in info.siblings or ():
        if entry.lfs is not None:
            digest = f"sha256:{entry.lfs.sha256}"
        else:
            digest = f"git:{entry.blob_id}" if entry.blob_id else ""
        url = hf_hub_url(source.repo, entry.rfilename, revision=commit, endpoint=endpoint)
        files[entry.rfilename] = HubFile(name=entry.rfilename, url=url, bytes=entry.size or 0, digest=digest)
    return commit, files


def _fetch_all(source: ModelSource, files: list[HubFile], folder: Path) -> Iterator[PullProgress]:
    for file in files:
        target = folder / file.name
        if target.is_file():
            # Only checked files carry their final name.
            yield PullProgress(stage="present", file=file.name, bytes_done=file.bytes, bytes_total=file.bytes)
            continue
        part = _part(folder, file)
        yield from _download(source, file, part)
        yield PullProgress(stage="verifying", file=file.name, bytes_done=file.bytes, bytes_total=file.bytes)
        pin = source.sha256.get(file.name)
        for expected in filter(None, (file.digest, f"sha256:{pin}" if pin else "")):
            found = _digest(part, expected.partition(":")[0])
            if found != expected:
                part.unlink()
                raise InvalidRequest(
                    f"{file.name} of {source.repo} is not the expected file: {found}, expected {expected}. It was "
                    "deleted and nothing was installed; pull again, or check the hub address.",
                    code="wrong_hash",
                    param=file.name,
                )
        part.replace(target)


def _download(source: ModelSource, file: HubFile, part: Path) -> Iterator[PullProgress]:
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    failures = 0
    while True:
        before = _size(part)
        if part.exists() and before == file.bytes:
            return
        failure = "the connection ended early"
        try:
            yield from _stream(file, part, before)
        except httpx2.TransportError as error:
            failure = str(error) or type(error).__name__
        except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
            if getattr(getattr(error, "response", None), "status_code", 0) not in BUSY:
                raise _hub_error(source, error) from error
            failure = str(error).partition("\n")[0]
        # A slow line that is cut again and again still arrives; only tries that bring nothing count.
        failures = 0 if _size(part) > before else failures + 1
        if failures >= TRIES:
            raise Unavailable(
                f"{file.name} of {source.repo} could not be downloaded: {failure}. What has arrived is kept; pull "
                "again to go on from there.",
                code="download_failed",
                param=file.name,
            )
        if failures:
            sleep(FIRST_WAIT_SECONDS * 2 ** (failures - 1))


def _stream(file: HubFile, part: Path, have: int) -> Iterator[PullProgress]:
    from huggingface_hub import constants, get_session, get_token, hf_raise_for_status

    # Identity: a compressed answer could be neither continued nor measured.
    headers = {"Accept-Encoding": "identity", "User-Agent": "smedje"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", file.url, headers=headers, timeout=timeout) as response:
        if response.status_code == 416:
            part.unlink()
            return
        hf_raise_for_status(response)
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        goes_on = response.status_code == 206 and begins
        with part.open("ab" if goes_on else "wb") as out:
            told = out.tell()
            # As they come off the wire: larger pieces would be lost when the connection drops.
            for chunk in response.iter_bytes():
                out.write(chunk)
                done = out.tell()
                if done > file.bytes:
                    break
                if done - told >= STEP:
                    told = done
                    yield PullProgress(stage="downloading", file=file.name, bytes_done=done, bytes_total=file.bytes)
    if _size(part) > file.bytes:
        part.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _part(folder: Path, file: HubFile) -> Path:
    # Named after the content, so a part of an older commit is never continued with a newer one's bytes.
    key = hashlib.sha256(f"{file.digest} {file.bytes} {file.url}".encode()).hexdigest()[:16]
    return folder / f".{file.name}.{key}.part"


def _digest(path: Path, kind: str) -> str:
    if kind == "sha256":
        return f"sha256:{file_sha256(path)}"
    # Git's blob id is SHA-1 over a short header and the content; only small files are stored that way.
    content = path.read_bytes()
    return "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _hub_error(source: ModelSource, error: Exception) -> SmedjeError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"https://huggingface.co/{source.repo}"
    match error:
        case errors.OfflineModeIsEnabled():
            return Unavailable(
                f"{source.repo} has to be downloaded and HF_HUB_OFFLINE forbids it. Unset it, or pull from a folder on "
                "this machine.",
                code="hub_offline",
            )
        case errors.GatedRepoError():
            return Unavailable(
                f"{source.repo} is open only to those who have accepted its terms. Accept them at {page}, make a token "
                "with read access at https://huggingface.co/settings/tokens, set HF_TOKEN to it, and pull again.",
                code="model_gated",
                param="model",
            )
        case errors.RevisionNotFoundError():
            return NotFound(
                f"{source.repo} has no revision {source.revision!r}.", code="model_not_found", param="model"
            )
        case errors.RepositoryNotFoundError():
            return NotFound(
                f"The hub has no repository {source.repo}, or it is private. Check the name; for a private one set "
                "HF_TOKEN to a token that may read it.",
                code="model_not_found",
                param="model",
            )
    if status in (401, 403):
        return Unavailable(
            f"The hub refuses access to {source.repo} (HTTP {status}). Accept the model's terms at {page}, or set "
            "HF_TOKEN to a token that may read it.",
            code="model_gated",
            param="model",
        )
    reason = f"HTTP {status}" if status else str(error).partition("\n")[0] or type(error).__name__
    return Unavailable(
        f"The hub could not be reached for {source.repo}: {reason}. Check the network and HF_ENDPOINT, then pull "
        "again.",
        code="hub_unreachable",
    )
