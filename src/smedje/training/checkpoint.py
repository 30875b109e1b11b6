"""Saved state of a run, for an exact resume, and checkpoints, for people to deploy. The manifest comes last.

Saved state = trained tensors, the optimizer's moments, counters, the best step. A checkpoint = a PEFT adapter folder,
for a classifier with its head and label names beside it, or one file with all weights. Both lie under the run folder; a
folder without a manifest, or whose digests do not match it, does not exist as far as a reader is concerned.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import safetensors.torch
import torch

from smedje.domain.catalog import FULL_WEIGHTS_FILE
from smedje.errors import NotFound
from smedje.modeling.adapter import adapter_files
from smedje.modeling.classifier import head_files
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import ByteSink, Objects
from smedje.training.full import write_tensors
from smedje.training.loop import Best, State

# One file of a folder: its bytes, or the tensors of a safetensors file that is never whole in memory.
Content = bytes | Mapping[str, torch.Tensor]

KEEP_STATES = 2
MANIFEST = "manifest.json"
STATE_FILE = "state.safetensors"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a saved folder holds. files: name to SHA-256. metrics: figures of the step, for checkpoints.

    best_*: the lowest full validation loss so far (None: none yet), for saved states. run: the run that wrote it. seal:
    SHA-256 of the manifest itself with an empty seal, so that a flipped bit in it is noticed too.
    """

    step: int
    trained_tokens: int
    files: dict[str, str] = {}
    metrics: dict[str, float] = {}
    best_step: int = 0
    best_loss: float | None = None
    best_since: int = 0
    run: str = ""
    seal: str = ""


class _Hashed:
    """A sink that passes bytes on and knows their SHA-256."""

    def __init__(self, out: ByteSink) -> None:
        self._out = out
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview, /) -> None:
        self.sha256.update(data)
        self._out.write(data)


def _publish(objects: Objects, prefix: str, files: Mapping[str, Content], manifest: Manifest) -> None:
    """Write the files, then the manifest with their digests and its seal."""
    digests = {name: _put(objects, f"{prefix}/{name}", content) for name, content in files.items()}
    manifest = msgspec.structs.replace(manifest, files=digests)
    objects.put(f"{prefix}/{MANIFEST}", msgspec.json.encode(msgspec.structs.replace(manifest, seal=_seal(manifest))))


def _put(objects: Objects, key: str, content: Content) -> str:
    if isinstance(content, bytes):
        objects.put(key, content)
        return hashlib.sha256(content).hexdigest()
    with objects.writer(key) as out:
        hashed = _Hashed(out)
        write_tensors(hashed, content)
    return hashed.sha256.hexdigest()


def _seal(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, seal=""))).hexdigest()


def _read_manifest(objects: Objects, folder: RunFolder, key: str) -> Manifest:
    """Raises NotFound unless the manifest is whole, and belongs to this run and to the place where it lies."""
    try:
        manifest = msgspec.json.decode(objects.get(key), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise NotFound(f"The manifest {key} is damaged.") from None
    if manifest.seal != _seal(manifest) or manifest.run != folder.run_id:
        raise NotFound(f"The manifest {key} is damaged, or another run's.")
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_state(objects: Objects, folder: RunFolder, state: State) -> None:
    """Save the state of `state.step`; keeps this and the one before it."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in state.trained().items():
        tensors[f"weight/{name}"] = parameter.detach().contiguous()
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().contiguous()
    best = state.best
    # An adapter's are packed in memory.
    packed = tensors if state.lora is None else safetensors.torch.save(tensors)
    manifest = Manifest(
        step=state.step,
        trained_tokens=state.trained_tokens,
        best_step=best.step,
        best_loss=best.loss if math.isfinite(best.loss) else None,
        best_since=best.since,
        run=folder.run_id,
    )
    _publish(objects, folder.state_prefix(state.step), {STATE_FILE: packed}, manifest)
    for step in saved_steps(objects, folder)[:-KEEP_STATES]:
        objects.delete_prefix(folder.state_prefix(step))


def saved_steps(objects: Objects, folder: RunFolder) -> list[int]:
    """Steps whose state is complete, oldest first."""
    steps = set()
    for info in objects.list(f"runs/{folder.run_id}/state"):
        if info.key.endswith("/" + MANIFEST):
            with suppress(NotFound):
                step = _read_manifest(objects, folder, info.key).step
                if info.key == f"{folder.state_prefix(step)}/{MANIFEST}":
                    steps.add(step)
    return sorted(steps)


def load_state(objects: Objects, folder: RunFolder, step: int, state: State, *, cache: Path) -> None:
    """Put the saved state of `step` into `state`. From a bucket it is fetched into the folder `cache` for the moment.

    Raises NotFound when the folder is incomplete or a digest does not match its manifest.
    """
    prefix = folder.state_prefix(step)
    manifest = _read_manifest(objects, folder, f"{prefix}/{MANIFEST}")
    with objects.lent_path(f"{prefix}/{STATE_FILE}", cache) as saved:
        if _digest(saved) != manifest.files[STATE_FILE]:
            raise NotFound(f"The saved state of step {step} is damaged: its SHA-256 differs from the manifest's.")
        tensors = safetensors.torch.load_file(saved)
    with torch.no_grad():
        for name, parameter in state.trained().items():
            parameter.copy_(tensors.pop(f"weight/{name}"))
    for name, parameter in state.trained().items():
        ending = "/" + name
        # Copies: what was read may lie in the file's own pages.
        moments = {key.removesuffix(ending): value.clone() for key, value in tensors.items() if key.endswith(ending)}
        if moments:
            state.optimizer.state[parameter] = moments
    state.step = manifest.step
    state.trained_tokens = manifest.trained_tokens
    loss = math.inf if manifest.best_loss is None else manifest.best_loss
    state.best = Best(step=manifest.best_step, loss=loss, since=manifest.best_since)


def load_latest_state(objects: Objects, folder: RunFolder, state: State, *, cache: Path) -> bool:
    """Load the newest whole state of a run; falls back to the one before a damaged one. False when there is none."""
    for step in reversed(saved_steps(objects, folder)):
        try:
            load_state(objects, folder, step, state, cache=cache)
        except NotFound:
            continue
        return True
    return False


def save_checkpoint(
    objects: Objects,
    folder: RunFolder,
    state: State,
    *,
    base_model: str,
    metrics: Mapping[str, float],
    labels: Sequence[str] = (),
) -> str:
    """Publish the adapter of `state.step` in PEFT's format, or all weights; returns its object-storage prefix.

    labels: a classifier's label names, in the order of its head's rows.
    """
    prefix = folder.checkpoint_prefix(state.step)
    files: dict[str, Content] = {}
    if state.lora is None:
        files[FULL_WEIGHTS_FILE] = state.decoder.export_state()
    else:
        files |= adapter_files(state.lora.weights(), state.lora.config, base_model)
    if state.head is not None:
        files |= head_files(state.head, labels)
    manifest = Manifest(step=state.step, trained_tokens=state.trained_tokens, metrics=dict(metrics), run=folder.run_id)
    _publish(objects, prefix, files, manifest)
    return prefix
