"""Process settings, read once from the environment. Knows names and defaults; knows nothing of what they configure.

Only `wiring` and `cli` may import this module: everything else is handed the values it needs.
An unknown variable that begins with SMEDJE_ is refused, so that a misspelt setting never passes for a default.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import platformdirs

from smedje.errors import InvalidRequest

PREFIX = "SMEDJE_"
# Read by the command line's client side or by spawned workers, not part of Settings.
OTHER_VARIABLES = frozenset({"SMEDJE_BASE_URL", "SMEDJE_API_KEY", "SMEDJE_PROJECT"})
DEVICES = ("auto", "cpu", "cuda")


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
    engine_idle_seconds: an engine without requests for this long is stopped.
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
    engine_idle_seconds: int = 900
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


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment.

    `NAME_FILE` may stand in for `SMEDJE_NAME` for secrets: the value is then the file's stripped text.
    Raises InvalidRequest for an unknown SMEDJE_ variable or a value of the wrong kind.
    """
    env = os.environ if environ is None else environ
    known = {f"{PREFIX}{f.name.upper()}": f for f in fields(Settings)}
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
    settings = Settings(**values)  # type: ignore[arg-type]  # each value was parsed to its field's type just above
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
    if name == f"{PREFIX}DEVICE" and text not in DEVICES:
        raise InvalidRequest(
            f"{name} must be one of {', '.join(DEVICES)}, found {text!r}.", code="invalid_setting", param=name
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
