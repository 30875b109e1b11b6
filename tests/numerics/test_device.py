"""The GPU's way of training, as far as a machine without one can show it: policy, shapes and types, memory."""

import os
from pathlib import Path

import msgspec
import pytest
import torch
from tests.training_runs import Bench, bench

from smedje.errors import InvalidRequest
from smedje.modeling.config import read_decoder_config, targets_of
from smedje.modeling.forest_attention import ForestAttention
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.products import plain
from smedje.modeling.transformer import Decoder
from smedje.modeling.tree_attention import Segment
from smedje.objects import machine
from smedje.settings import load_settings
from smedje.training.precision import base_numbers, check_device
from smedje.wiring import open_context


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("device"))


def test_a_gpu_gets_bf16_unless_fp32_is_asked_for(place: Bench) -> None:
    """On a GPU one type serves weights, rows and products: bf16, or fp32 for who asks for exactness."""
    spec = msgspec.structs.replace(place.spec, device="cuda")
    base = Path(spec.base_folder)
    for precision, dtype in (("bf16", torch.bfloat16), ("auto", torch.bfloat16), ("fp32", torch.float32)):
        lora = msgspec.structs.replace(spec.lora, precision=precision)
        assert base_numbers(msgspec.structs.replace(spec, lora=lora), base) == plain(dtype)


def test_a_bf16_step_stays_in_bf16_and_on_the_device(place: Bench) -> None:
    """Forward and backward of a whole decoder with an adapter over shared beginnings, on tensors without values: no
    operation meets a tensor of another device, the rows are bf16, and the adapter's gradients are fp32."""
    config = read_decoder_config(Path(place.spec.base_folder))
    decoder = Decoder(config, dtype=torch.bfloat16, device="meta")
    adapter = AdapterConfig(rank=4, alpha=8.0, targets=targets_of(decoder.slots))
    lora = TrainableLora(decoder.slots, adapter, generator=torch.Generator().manual_seed(0), device="cpu").to("meta")
    tokens, positions = (torch.empty(40, dtype=torch.int64, device="meta") for _ in range(2))
    segments = [Segment(0, 10, 40), Segment(10, 25, 25), Segment(25, 40, 40)]
    hidden = decoder.forward(tokens, positions, ForestAttention(segments, "meta"), lora)
    assert (hidden.dtype, hidden.device.type) == (torch.bfloat16, "meta")
    decoder.head(hidden).float().sum().backward()  # type: ignore[no-untyped-call]
    assert {p.grad.dtype for p in lora.parameters() if p.grad is not None} == {torch.float32}
    assert all(p.grad is not None for p in lora.parameters())


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Asked for by the server's setting or by a spec, a missing GPU is an error that says what to do."""
    if machine.gpu() is not None:
        pytest.skip("this machine has an NVIDIA GPU")
    wanted = {"SMEDJE_HOME": str(tmp_path), "SMEDJE_DEVICE": "cuda"}
    with pytest.raises(InvalidRequest, match="no NVIDIA GPU"):
        open_context(load_settings(wanted))
    assert open_context(load_settings({**wanted, "SMEDJE_DEVICE": "auto"})).device == "cpu"
    with pytest.raises(InvalidRequest, match="SMEDJE_DEVICE"):
        load_settings({**wanted, "SMEDJE_DEVICE": "tpu"})
    with pytest.raises(InvalidRequest, match="PyTorch"):
        check_device("cuda")


def test_memory_is_the_cards_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nvidia-smi tells is what jobs on the GPU must fit into; the processor's memory is another matter."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    machine.gpu.cache_clear()
    try:
        assert machine.gpu_memory() == machine.training_memory("cuda") == 81559 * 2**20
        assert machine.training_memory("cpu") == machine.usable_memory()
    finally:
        machine.gpu.cache_clear()
