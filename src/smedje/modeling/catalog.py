"""The catalog of base models: loads `catalog.json` and finds entries in it. Knows nothing of what is installed."""

import difflib
from functools import cache
from importlib.resources import files

import msgspec

from smedje.domain.catalog import BaseModel, ModelSource, SourceKind, TrainingDefaults, TrainingLimits
from smedje.errors import NotFound

# For base models that a user installed under a name of their own.
GENERAL_DEFAULTS = TrainingDefaults(learning_rate=3e-4, batch_size=0, max_tokens_per_example=2048)


class _Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: SourceKind
    repo: str = ""
    revision: str = "main"
    package: str = ""
    version: str = ""
    member: str = ""
    path: str = ""
    sha256: dict[str, str] = {}


class _Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    learning_rate: float
    batch_size: int
    max_tokens_per_example: int
    lora_rank: int = 16
    lora_alpha: int = 32


class _Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    max_tokens_per_example: int
    min_learning_rate: float = 1e-7
    max_learning_rate: float = 1e-2
    max_lora_rank: int = 256
    max_batch_size: int = 256
    max_epochs: int = 50


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    family: str
    publisher: str
    display_name: str
    description: str
    parameters: int
    context_tokens: int
    licence: str
    licence_url: str
    architecture: str
    template: str
    methods: tuple[str, ...]
    defaults: _Defaults
    limits: _Limits
    disk_bytes: int
    memory_training_bytes: int
    memory_serving_bytes: int
    sources: tuple[_Source, ...]
    gated: bool = False
    embedded: bool = False


class _Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: tuple[_Model, ...]


def parse_catalog(text: bytes) -> dict[str, BaseModel]:
    """Catalog JSON as base models by name, in the file's order.

    Raises msgspec.ValidationError naming the path of a missing, unknown or wrongly typed key.
    """
    found: dict[str, BaseModel] = {}
    for entry in msgspec.json.decode(text, type=_Catalog).models:
        assert entry.name not in found, f"{entry.name} is in the catalog twice"
        fields = msgspec.structs.asdict(entry)
        fields["defaults"] = TrainingDefaults(**msgspec.structs.asdict(entry.defaults))
        fields["limits"] = TrainingLimits(**msgspec.structs.asdict(entry.limits))
        fields["sources"] = tuple(ModelSource(**msgspec.structs.asdict(source)) for source in entry.sources)
        found[entry.name] = BaseModel(**fields)
    return found


@cache
def _shipped() -> dict[str, BaseModel]:
    return parse_catalog((files("smedje.modeling") / "catalog.json").read_bytes())


def load_catalog() -> dict[str, BaseModel]:
    """Every base model that smedje ships an entry for, by name."""
    return dict(_shipped())


def find_base_model(name: str) -> BaseModel:
    """The entry of this name. Raises NotFound, with the nearest names, when there is none."""
    models = _shipped()
    if name in models:
        return models[name]
    # Hub ids (`microsoft/Phi-3-mini-4k-instruct`) and odd case are near misses of the same name.
    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), models, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise NotFound(
        f"There is no base model {name!r} in the catalog. {hint}List them with: smedje models list",
        code="model_not_found",
        param="model",
    )


def base_defaults(name: str) -> TrainingDefaults:
    """The catalog's defaults for a base model, or general ones for a model that only this machine knows."""
    entry = _shipped().get(name)
    return GENERAL_DEFAULTS if entry is None else entry.defaults


def search_catalog(text: str = "", *, family: str | None = None, method: str | None = None) -> tuple[BaseModel, ...]:
    """Entries that hold every word of `text` in their name, title, family, publisher or description, in catalog order.

    family and method keep only entries of that family, or that can be tuned by that method.
    """
    words = text.lower().split()
    return tuple(
        model
        for model in _shipped().values()
        if (family is None or model.family == family)
        and (method is None or method in model.methods)
        and all(word in _haystack(model) for word in words)
    )


def _haystack(model: BaseModel) -> str:
    parts = (model.name, model.display_name, model.family, model.publisher, model.description, model.licence)
    return " ".join(parts).lower()
