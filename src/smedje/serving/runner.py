"""Runs the model on a step's chunks: one flat stream in, the logits of the chunks' last rows out.

Knows how rows and adapters meet; knows nothing of who is scheduled and which token is chosen.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch
from torch import Tensor

from smedje.modeling.served_adapters import SegmentedLora
from smedje.modeling.transformer import CausalDecoder
from smedje.serving.adapters import AdapterCache
from smedje.serving.attend import attention
from smedje.serving.kv_cache import KVCache
from smedje.serving.sequence import Chunk

# A step's decode rows take longer than rows of prompts: each looks at keys and values of its own.
DECODE_COST = 2

# Finite, so that what is told of it can be written as JSON.
NO_LABEL = -1e9


class Runner:
    """A model with its cache and adapters."""

    def __init__(self, model: CausalDecoder, cache: KVCache, adapters: AdapterCache, *, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._adapters = adapters
        self._device = device
        half = max(1, torch.get_num_threads() // 2)
        self._beside = ThreadPoolExecutor(1, "stream", torch.set_num_threads, (half,))

    def run_all(self, streams: Sequence[Sequence[Chunk]], merged: CausalDecoder | None = None) -> list[Tensor]:
        """`run` of one stream, or of two side by side, the second on a thread of its own."""
        if len(streams) == 1:
            return [self.run(streams[0], merged)]
        first, second = streams
        beside = self._beside.submit(self.run, second, merged)
        try:
            return [self.run(first, merged), beside.result()]
        finally:
            beside.exception()  # whatever happens, nothing runs on after the step

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk], merged: CausalDecoder | None = None) -> Tensor:
        """Write the chunks' keys and values; logits [R, V] for the R chunks that sample, in their order.

        A classifier's row has its K labels' logits first, where K may be more than V.

        Chunks of one adapter should be neighbours: their rows are then one slice of the stream. merged: the model with
        the adapter of all of them in its weights already.
        """
        tokens = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.start + chunk.count)]
        ends = list(accumulate(chunk.count for chunk in chunks))
        hidden = (merged or self._model).forward(
            torch.tensor(tokens, device=self._device),
            torch.tensor(positions, device=self._device),
            attention(self._cache, chunks, self._model.shape.windows),
            None if merged else self._adapted_rows(chunks, ends),
        )
        last = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
        rows = hidden[last]
        return self._with_labels(self._model.head(rows), rows, [chunk for chunk in chunks if chunk.samples])

    def _with_labels(self, logits: Tensor, hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """The logits, with those of labels first and nothing else likely in the rows of classifiers."""
        adapters = [chunk.sequence.request.adapter for chunk in chunks]
        heads = {row: self._adapters.get(key).head for row, key in enumerate(adapters) if key is not None}
        found = {row: head for row, head in heads.items() if head is not None}
        if not found:
            return logits
        width = max(logits.shape[1], *(len(head) for head in found.values()))
        logits = torch.nn.functional.pad(logits, (0, width - logits.shape[1]), value=NO_LABEL)
        for row, head in found.items():
            logits[row] = NO_LABEL
            logits[row, : len(head)] = (hidden[row].float() @ head.to(hidden.device).T).to(logits.dtype)
        return logits

    def _adapted_rows(self, chunks: Sequence[Chunk], ends: Sequence[int]) -> SegmentedLora | None:
        rows: dict[str, list[Tensor]] = {}
        for chunk, end in zip(chunks, ends, strict=True):
            adapter = chunk.sequence.request.adapter
            if adapter is not None:
                rows.setdefault(adapter, []).append(torch.arange(end - chunk.count, end, device=self._device))
        return SegmentedLora([(self._adapters.get(key), torch.cat(of)) for key, of in rows.items()]) if rows else None


def halves(chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """The chunks, two at least, dealt into streams that take about as long: the longest first, to the emptier one."""
    streams: tuple[list[Chunk], list[Chunk]] = ([], [])
    costs = [0, 0]
    for chunk in sorted(chunks, key=lambda chunk: chunk.count, reverse=True):
        emptier = costs.index(min(costs))
        streams[emptier].append(chunk)
        costs[emptier] += DECODE_COST if chunk.count == 1 else chunk.count
    return streams
