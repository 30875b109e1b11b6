"""Process settings, read once from the environment. Knows names and defaults; knows nothing of what they configure.

Only `wiring` and `cli` may import this module: everything else is handed the values it needs.
An unknown variable that begins with SMEDJE_ is refused, so that a misspelt setting never passes for a default.
"""

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from smedje.errors import InvalidRequest

PREFIX = "SMEDJE_"
# Read by the command line's client side or by spawned workers, not part of Settings.
OTHER_VARIABLES = frozenset({"SMEDJE_BASE_URL", "SMEDJE_API_KEY", "SMEDJE_PROJECT"})
# Settings of which only these values are known.
CHOICES = {
    f"{PREFIX}DEVICE": ("auto", "cpu", "cuda"),
    f"{PREFIX}ENGINE": ("torch", "vllm"),
    f"{PREFIX}SERVING_WEIGHTS": ("fp32", "bf16", "int8"),
    f"{PREFIX}SERVING_MERGED": ("auto", "off"),
}


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """Settings of the engines that answer; each is a variable of its own like those of Settings.

    engine: what answers: `torch`, our own engine, or `vllm`, a vLLM server in an environment of its own.
    engine_idle_seconds: an engine without requests for this long is stopped.
    serving_weights: what our own engine holds base models in: `fp32`, exact, or, for models that pass a check of
    what they say, `bf16` (half the size, quickest for many) or `int8` (a quarter, quickest for one).
    serving_merged: `auto` lets our own engine put an adapter that is asked alone into a copy of the weights, for which
    memory must be free; `off` never.
    vllm: vLLM's program, a path or a name on PATH. vllm_options: further options for `vllm serve`, as in a shell.
    """

    engine: str = "torch"
    engine_idle_seconds: int = 900
    serving_weights: str = "fp32"
    serving_merged: str = "auto"
    vllm: str = "vllm"
    vllm_options: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server process.

    home: state folder; everything below it moves with it.
    database_url: SQLAlchemy URL of the control plane's database.
    objects_url: where bytes live: a `file://` folder, or `s3://`, `az://`, `gs://`.
    bootstrap_api_key: first owner key; generated on first run when None.
    max_running_jobs: fine-tuning jobs that may run at once on this machine.
    threads: compute threads for one worker; 0 means all usable cores.
    device: what jobs train on: `cpu`, `cuda`, or `auto` for an NVIDIA GPU where there is one.
    serving: the engines that answer.
    warm_seconds: a process that holds a base model for the next job ends after this long without one; 0: none is kept.
    warm_model: base model that is held from the server's start on; empty: the one of the latest job.
    lease_seconds: how long a scheduler may be silent before another takes its jobs.
    wandb_api_key: with it jobs' `integrations` are sent to Weights & Biases; without it they are written offline.
    location: the name of this machine as a compute target; hubs name it, and their jobs run here.
    outbound_allow: what the server may reach of addresses that users give (downloads, webhooks): `public` for the
    public internet, host names, `.example.org` for all names below it, networks; divided by commas. Empty: nothing.
    public_url: where browsers reach the server, for coming back from an identity provider; empty: wherever they say.
    oidc_issuer, oidc_client_id, oidc_client_secret: the OpenID Connect provider by which people may sign in.
    oidc_domains: only addresses of these domains may; divided by commas, empty for any.
    oidc_roles: roles of the provider's groups: `group=role@hub` or `group=role@hub/project`, divided by commas.
    """

    home: Path = field(default_factory=lambda: Path(platformdirs.user_data_dir("smedje", appauthor=False)))
    database_url: str = ""
    objects_url: str = ""
    bootstrap_api_key: str | None = None
    max_running_jobs: int = 1
    threads: int = 0
    device: str = "auto"
    serving: ServingSettings = field(default_factory=ServingSettings)
    warm_seconds: int = 600
    warm_model: str = ""
    lease_seconds: int = 8
    location: str = "local"
    wandb_api_key: str = ""
    outbound_allow: str = ""
    public_url: str = ""
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: str = ""
    oidc_domains: str = ""
    oidc_roles: str = ""


def variables() -> dict[str, Field[Any]]:
    """Every environment variable of Settings, with the field that it fills."""
    plain = [one for one in fields(Settings) if one.name != "serving"]
    return {f"{PREFIX}{one.name.upper()}": one for one in (*plain, *fields(ServingSettings))}


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment.

    `NAME_FILE` may stand in for `SMEDJE_NAME` for secrets: the value is then the file's stripped text.
    Raises InvalidRequest for an unknown SMEDJE_ variable or a value of the wrong kind.
    """
    env = os.environ if environ is None else environ
    known = variables()
    values: dict[str, object] = {}
    for name, raw in env.items():
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES:
            continue
        key, text = (name.removesuffix("_FILE"), None) if name.endswith("_FILE") else (name, raw)
        if key not in known:
            listed = ", ".join(sorted(known))
            raise InvalidRequest(
                f"Unknown setting {name}. Known settings: {listed}. Correct the name or unset it.",
                code="unknown_setting",
                param=name,
            )
        if text is None:
            text = Path(raw).read_text(encoding="utf-8").strip()
        values[known[key].name] = _parse(name, known[key].type, text)
    serving = {one.name: values.pop(one.name) for one in fields(ServingSettings) if one.name in values}
    # Each value was parsed to its field's type just above.
    settings = Settings(serving=ServingSettings(**serving), **values)  # type: ignore[arg-type]
    return _with_defaults(settings)


def _parse(name: str, kind: object, text: str) -> object:
    if kind is Path:
        return Path(text).expanduser().resolve()
    if kind is int:
        try:
            number = int(text)
        except ValueError:
            number = -1
        if number < 0:
            raise InvalidRequest(
                f"{name} must be a whole number of at least 0, found {text!r}.", code="invalid_setting", param=name
            )
        return number
    if text not in CHOICES.get(name, (text,)):
        raise InvalidRequest(
            f"{name} must be one of {', '.join(CHOICES[name])}, found {text!r}.", code="invalid_setting", param=name
        )
    return text


def _with_defaults(settings: Settings) -> Settings:
    from dataclasses import replace

    home = settings.home
    return replace(
        settings,
        database_url=settings.database_url or f"sqlite:///{home / 'smedje.db'}",
        objects_url=settings.objects_url or (home / "objects").as_uri(),
    )
