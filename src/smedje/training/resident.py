"""What a process may hold before it knows its run: a base model in memory and its tokenizer. Used only while unchanged.

Knows files and their marks; refuses to know runs, sockets and processes.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import torch

from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.modeling.config import read_decoder_config, read_raw_config, rope_regime, why_not_owned
from smedje.modeling.fallback import FallbackDecoder
from smedje.modeling.load import load_decoder
from smedje.modeling.transformer import Decoder

Marks = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Resident:
    """A base model of fp32 weights on the CPU and a tokenizer, as their folder was when they were read.

    today: the date that the tokenizer's template tells. marks: name, inode, size and time of change of every file.
    """

    folder: Path
    marks: Marks
    decoder: Decoder
    tokenizer: ChatTokenizer
    today: date


def load_resident(folder: Path) -> Resident | None:
    """Read a base model; None for an architecture that is not ours, which each run loads by itself."""
    if why_not_owned(read_raw_config(folder)) is not None:
        return None
    marks, today = _marks(folder), datetime.now(UTC).date()
    tokenizer = load_chat_tokenizer(folder, today=today)
    decoder = load_decoder(folder, dtype=torch.float32, device="cpu")
    assert isinstance(decoder, Decoder)
    return Resident(folder=folder, marks=marks, decoder=decoder, tokenizer=tokenizer, today=today)


def base_decoder(
    resident: Resident | None, folder: Path, *, dtype: torch.dtype, device: str, context_length: int
) -> Decoder | FallbackDecoder:
    """The resident decoder where it is the very one that `load_decoder` would give, else that one."""
    if (
        resident is not None
        and resident.folder == folder
        and device == "cpu"
        and dtype == resident.decoder.embedding.dtype
        and rope_regime(read_decoder_config(folder).rope, context_length) == resident.decoder.regime
        and resident.marks == _marks(folder)
    ):
        return resident.decoder
    return load_decoder(folder, dtype=dtype, device=device, context_length=context_length)


def base_tokenizer(resident: Resident | None, folder: Path, *, today: date) -> ChatTokenizer:
    """The resident tokenizer where it is the very one that would be loaded, else that one."""
    if (
        resident is not None
        and (resident.folder, resident.today) == (folder, today)
        and resident.marks == _marks(folder)
    ):
        return resident.tokenizer
    return load_chat_tokenizer(folder, today=today)


def _marks(folder: Path) -> Marks:
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)
