"""Base models and fine-tuned models as nouns, and how a fine-tuned model is named.

Knows nothing of where the catalog's data or a model's files are kept. Sizes are bytes, times Unix seconds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from smedje.errors import InvalidRequest

# Beside a tuned model's adapter, or in its place: a classifier's head and labels, all weights of a full tuning.
HEAD_FILE = "classifier.safetensors"
LABELS_FILE = "classifier.json"
FULL_WEIGHTS_FILE = "model.safetensors"
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z")
SUFFIX_PATTERN = re.compile(r"[A-Za-z0-9_.-]{0,64}\Z")
FINE_TUNED_PATTERN = re.compile(
    r"ft:(?P<base>[^:]+):(?P<project>[^:]+):(?P<suffix>[^:]*):(?P<job>[A-Za-z0-9]{8})(?::ckpt-step-(?P<step>\d{1,12}))?\Z"
)


class SourceKind(StrEnum):
    """Where a base model's files come from."""

    HUB = "hub"
    FOLDER = "folder"
    GGUF = "gguf"
    PACKAGE = "package"
    GENERATED = "generated"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One place that holds a base model's files.

    repo and revision: a hub repository (`org/name`) and a branch, tag or commit. package, version and member: a
    registry package and the path inside its wheel. path: a folder or file on this machine.
    sha256: file name -> hex digest that must match.
    """

    kind: SourceKind
    repo: str = ""
    revision: str = "main"
    package: str = ""
    version: str = ""
    member: str = ""
    path: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class TrainingDefaults:
    """What "auto" starts from for this base model.

    learning_rate: the LoRA rate that a multiplier of 1.0 stands for. batch_size: examples per optimizer step; 0 means
    the general rule. max_tokens_per_example: longer examples are cut or refused.
    """

    learning_rate: float
    batch_size: int
    max_tokens_per_example: int
    lora_rank: int = 16
    lora_alpha: int = 32


@dataclass(frozen=True, kw_only=True)
class TrainingLimits:
    """The widest values a job on this base model may ask for. `max_tokens_per_example` fits the context window."""

    max_tokens_per_example: int
    min_learning_rate: float = 1e-7
    max_learning_rate: float = 1e-2
    max_lora_rank: int = 256
    max_batch_size: int = 256
    max_epochs: int = 50


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A pretrained model that can be fine-tuned and served.

    parameters: weights counted once when embeddings are tied. architecture: the Hugging Face class name. template:
    short name of its chat template. methods: what it can be tuned to do. disk_bytes: installed size.
    memory_training_bytes: LoRA at the default rank and batch; memory_serving_bytes: one engine at a short context;
    both estimates for fp32 below 0.9 billion parameters and bf16 above. sources: tried in order. embedded: the default
    model, which set-up installs.
    """

    name: str
    family: str
    publisher: str
    display_name: str
    parameters: int
    context_tokens: int
    licence: str
    architecture: str
    template: str
    methods: tuple[str, ...]
    description: str
    defaults: TrainingDefaults
    limits: TrainingLimits
    disk_bytes: int
    memory_training_bytes: int
    memory_serving_bytes: int
    sources: tuple[ModelSource, ...]
    licence_url: str = ""
    gated: bool = False
    embedded: bool = False


@dataclass(frozen=True, kw_only=True)
class FineTunedModel:
    """A named result of a job that can be deployed. checkpoint_key: object-storage prefix of the adapter's files."""

    id: str
    project_id: str
    base_model: str
    job_id: str
    suffix: str
    checkpoint_key: str
    step: int
    created_at: int


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """A model's name in its parts. A base model has a `base` only; `step` is set for a checkpoint."""

    base: str
    project: str = ""
    suffix: str = ""
    job: str = ""
    step: int | None = None

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the name stands for the result of a job."""
        return bool(self.job)


def check_base_name(name: str) -> str:
    """`name` itself when it can name a base model (and its folder).

    Raises InvalidRequest: lower-case letters, digits, `.`, `_` and `-`, 1..63 characters, no `..`.
    """
    if not NAME_PATTERN.match(name) or ".." in name:
        raise InvalidRequest(
            f"{name!r} cannot name a base model. Use 1 to 63 lower-case letters, digits, '.', '_' or '-', beginning "
            "and ending with a letter or digit.",
            code="invalid_model_name",
            param="model",
        )
    return name


def fine_tuned_name(base: str, project: str, suffix: str | None, job_id: str, *, step: int | None = None) -> str:
    """`ft:{base}:{project}:{suffix}:{8 characters of the job's id}`, plus `:ckpt-step-{n}` for a checkpoint.

    An empty suffix leaves a double colon, as in OpenAI's names. A base that is itself a fine-tuned model contributes
    its own base. Raises InvalidRequest when the suffix or a part has characters that would make the name ambiguous.
    """
    text = suffix or ""
    if not SUFFIX_PATTERN.match(text):
        raise InvalidRequest(
            f"The suffix {text!r} is not allowed. Use at most 64 letters, digits, '-', '_' or '.'.",
            code="invalid_suffix",
            param="suffix",
        )
    root = parse_model_name(base).base
    job = "".join(c for c in job_id.replace("_", "-").rpartition("-")[2] if c.isalnum())[-8:]
    name = f"ft:{root}:{project}:{text}:{job}" + ("" if step is None else f":ckpt-step-{step}")
    if not FINE_TUNED_PATTERN.match(name):
        raise InvalidRequest(
            f"A fine-tuned model cannot be called {name!r}: project and job id must be plain names without ':'.",
            code="invalid_model_name",
            param="model",
        )
    return name


def parse_model_name(name: str) -> ModelName:
    """The parts of a base model's, fine-tuned model's or checkpoint's name.

    Raises InvalidRequest for text that begins with `ft:` and does not go on like a fine-tuned model's name.
    """
    if not name.startswith("ft:"):
        return ModelName(base=name)
    found = FINE_TUNED_PATTERN.match(name)
    if not found:
        raise InvalidRequest(
            f"{name!r} is not a fine-tuned model's name. It should look like ft:BASE:PROJECT:SUFFIX:JOB, "
            "with :ckpt-step-N after it for a checkpoint.",
            code="invalid_model_name",
            param="model",
        )
    step = found["step"]
    return ModelName(
        base=found["base"],
        project=found["project"],
        suffix=found["suffix"],
        job=found["job"],
        step=None if step is None else int(step),
    )
