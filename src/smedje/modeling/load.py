"""From a model folder to a decoder in memory, and its weights back out under their Hugging Face names.

Knows safetensors files (one or sharded), which tensor goes where, and when a fallback model takes over. Refuses to
fetch anything, to read pickles, and to load a folder in which one tensor is missing, left over or of a wrong size.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.config import read_decoder_config, read_raw_config, rope_regime, why_not_owned
from smedje.modeling.fallback import FallbackDecoder, load_fallback
from smedje.modeling.products import Numbers
from smedje.modeling.transformer import Decoder


def load_decoder(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    context_length: int | None = None,
    numbers: Numbers | None = None,
    weights: Path | None = None,
) -> Decoder | FallbackDecoder:
    """Load a base model for training or serving; every weight frozen.

    weights: a folder whose safetensors files stand for the model folder's own, such as a checkpoint of a full tuning.
    context_length: the longest sequence this job or deployment admits; picks longrope's factors (config.rope_regime).
    numbers: what our own decoder stores and multiplies, in place of `dtype` for everything.
    Raises InvalidRequest (code invalid_base_model) naming the file or tensor at fault.
    """
    if why_not_owned(read_raw_config(folder)) is not None:
        if weights is not None:
            raise UnsupportedField(f"{folder} is of an architecture whose weights cannot be exchanged.", param="model")
        return load_fallback(folder, dtype=dtype, device=device)
    config = read_decoder_config(folder)
    regime = rope_regime(config.rope, context_length)
    decoder = Decoder(config, dtype=dtype, device=device, regime=regime, numbers=numbers)
    whole = {} if numbers is None else {parameter.data_ptr(): parameter for parameter in decoder.parameters()}
    _fill(decoder.export_state(), weights or folder, whole, tied=config.tie_embeddings)
    return decoder


def export_state(decoder: Decoder | FallbackDecoder) -> Mapping[str, Tensor]:
    """Every tensor of the decoder under its Hugging Face name, as views of its storage."""
    return decoder.export_state()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The folder's safetensors files: those of the index, or the only one. InvalidRequest when there is none."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InvalidRequest(f"{index} is no valid safetensors index.", code="invalid_base_model") from None
        return tuple(folder / name for name in names)
    single = folder / "model.safetensors"
    if single.exists():
        return (single,)
    raise InvalidRequest(
        f"{folder} holds no model.safetensors (pickled weights are not read): pull the base model again.",
        code="invalid_base_model",
    )


@torch.no_grad()
def _fill(wanted: Mapping[str, Tensor], folder: Path, whole: Mapping[int, nn.Parameter], *, tied: bool) -> None:
    """Copy each stored tensor into the view of the decoder's storage that carries its name, in the decoder's type.

    whole: parameters by address that may take a stored matrix of their own type and size as it is, mapped from its
    file: its pages are read when they are first used, and can be dropped again. A norm's few numbers are copied, or
    they would keep all pages of a file in memory whose matrices are of another type.
    """
    seen: set[str] = set()
    for name, stored in _stored(folder):
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        target = wanted.get(name)
        if target is None:
            raise InvalidRequest(f"{folder}: unexpected tensor {name}.", code="invalid_base_model", param=name)
        if target.shape != stored.shape:
            raise InvalidRequest(
                f"{folder}: tensor {name} is {tuple(stored.shape)}, config.json asks for {tuple(target.shape)}.",
                code="invalid_base_model",
                param=name,
            )
        parameter = whole.get(target.data_ptr())
        fits = parameter is not None and (parameter.shape, parameter.dtype) == (stored.shape, stored.dtype)
        if parameter is not None and fits and stored.ndim == 2:
            parameter.data = stored
        else:
            target.copy_(stored)
        seen.add(name)
    missing = sorted(wanted.keys() - seen)
    if missing:
        raise InvalidRequest(
            f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}.",
            code="invalid_base_model",
            param=missing[0],
        )


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's files, mapped into memory one at a time."""
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield name, stored.get_tensor(name)
        except (FileNotFoundError, SafetensorError) as error:
            raise InvalidRequest(f"{path} cannot be read: {error}.", code="invalid_base_model") from None
