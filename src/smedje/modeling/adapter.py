"""An adapter as two files in PEFT's format: adapter_model.safetensors and adapter_config.json.

Knows PEFT's LoRA fields and which of them change the mathematics; refuses every adapter it cannot compute exactly, by
the field's name. Refuses to know base models and decoders: names and sizes are checked where an adapter meets one.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.lora import AdapterConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAGNITUDE = ".lora_magnitude_vector"

# Fields that describe, name or initialise without changing what a loaded adapter computes.
_NEUTRAL = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    )
)
_READ = frozenset(
    (
        "bias",
        "init_lora_weights",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "r",
        "target_modules",
        "use_dora",
        "use_rslora",
    )
)
# Ways to draw A and B that leave the base weights alone; others (pissa, olora, corda, loftq ...) alter the base model.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def adapter_files(weights: Mapping[str, Tensor], config: AdapterConfig, base_model_name: str) -> dict[str, bytes]:
    """The two files' contents by name. The same weights and configuration give the same bytes.

    weights: PEFT names (base_model.model.<module>.lora_A.weight) to fp32 tensors.
    """
    fields: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_model_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None if config.layers is None else list(config.layers),
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(config.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": config.dora,
        "use_rslora": config.rslora,
    }
    plain = {name: weights[name].detach().to("cpu", torch.float32).contiguous() for name in sorted(weights)}
    return {
        WEIGHTS_FILE: save_safetensors(plain, metadata={"format": "pt"}),
        CONFIG_FILE: (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode(),
    }


def save_adapter(folder: Path, weights: Mapping[str, Tensor], config: AdapterConfig, base_model_name: str) -> None:
    """Write the two files into `folder`, made if needed. Neither atomic nor synced: checkpoints take care of that."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in adapter_files(weights, config, base_model_name).items():
        (folder / name).write_bytes(content)


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Read an adapter that we or PEFT wrote: fp32 tensors under PEFT's names, and its configuration.

    Tensors that are stored in fp32 are mapped from the file, which may be removed but not written over meanwhile.
    Raises InvalidRequest for missing or broken files, UnsupportedField for a setting that would change the result.
    """
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not weights_path.exists():
        pickled = [path.name for path in sorted(folder.glob("adapter_model.*"))]
        found = f" (found {', '.join(pickled)}: only safetensors is read)" if pickled else ""
        raise InvalidRequest(f"{weights_path} is missing{found}.", code="invalid_adapter")
    try:
        fields = json.loads(config_path.read_bytes())
        weights = load_safetensors(weights_path)
    except FileNotFoundError:
        raise InvalidRequest(f"{config_path} is missing.", code="invalid_adapter") from None
    except (ValueError, OSError, SafetensorError) as error:
        raise InvalidRequest(f"The adapter in {folder} cannot be read: {error}.", code="invalid_adapter") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{config_path} must hold one JSON object.", code="invalid_adapter")
    return _checked(fields, weights, folder)


def _checked(
    fields: dict[str, Any], weights: dict[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], AdapterConfig]:
    where = folder / CONFIG_FILE
    if fields.get("peft_type") != "LORA":
        raise UnsupportedField(f"{where}: peft_type {fields.get('peft_type')!r} is not 'LORA'.", param="peft_type")
    if fields.get("bias", "none") != "none":
        raise UnsupportedField(f"{where}: bias {fields['bias']!r} is not offered, only 'none'.", param="bias")
    if fields.get("init_lora_weights", True) not in _PLAIN_INITS:
        raise UnsupportedField(
            f"{where}: init_lora_weights {fields['init_lora_weights']!r} alters the base model; convert the adapter to "
            "plain LoRA with PEFT first (path_initial_model_for_weight_conversion).",
            param="init_lora_weights",
        )
    for name, value in sorted(fields.items()):
        if name not in _NEUTRAL and name not in _READ and value not in (None, False, [], {}, ""):
            raise UnsupportedField(f"{where}: {name} = {value!r} is not offered.", param=name)
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not isinstance(rank, int) or rank <= 0 or not isinstance(alpha, int | float):
        raise InvalidRequest(f"{where}: r and lora_alpha must be numbers, r above 0.", code="invalid_adapter")
    for name, tensor in weights.items():
        _check_tensor(name, tensor, rank, folder)
    if not weights:
        raise InvalidRequest(f"{folder / WEIGHTS_FILE} holds no tensors.", code="invalid_adapter")
    config = AdapterConfig(
        rank=rank,
        alpha=float(alpha),
        targets=_targets(fields.get("target_modules"), weights),
        dropout=float(fields.get("lora_dropout") or 0.0),
        rslora=bool(fields.get("use_rslora", False)),
        layers=_layers(fields.get("layers_to_transform")),
        dora=bool(fields.get("use_dora", False)),
    )
    return {name: tensor.float() for name, tensor in weights.items()}, config


def _check_tensor(name: str, tensor: Tensor, rank: int, folder: Path) -> None:
    where = folder / WEIGHTS_FILE
    # A sum is finite only where every value is; it may overflow where all are, so then each is looked at.
    if not math.isfinite(tensor.sum().item()) and not torch.isfinite(tensor).all():
        raise InvalidRequest(f"{where}: tensor {name} holds values that are not finite.", code="invalid_adapter")
    if name.endswith(MAGNITUDE) and tensor.ndim == 1:
        return
    module, _, kind = name.removesuffix(".weight").rpartition(".")
    if not name.startswith("base_model.model.") or not module or kind not in ("lora_A", "lora_B"):
        raise UnsupportedField(f"{where}: tensor {name} is no LoRA factor of a linear.", param=name)
    if tensor.ndim != 2 or tensor.shape[0 if kind == "lora_A" else 1] != rank:
        raise InvalidRequest(
            f"{where}: tensor {name} is {tuple(tensor.shape)}, which does not fit rank {rank}.", code="invalid_adapter"
        )


def _targets(named: object, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The targets' last names: as listed, or from the tensors where PEFT was given a pattern or 'all-linear'."""
    factors = (name for name in sorted(weights) if not name.endswith(MAGNITUDE))
    present = tuple(dict.fromkeys(name.rsplit(".", 3)[-3] for name in factors))
    if isinstance(named, list) and all(isinstance(name, str) for name in named) and set(named) == set(present):
        return tuple(named)
    return present


def _layers(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    listed = value if isinstance(value, list) else [value]
    return tuple(int(layer) for layer in listed)
