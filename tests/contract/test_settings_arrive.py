"""Each setting arrives where it acts. What it does there is told by that part's own tests."""

from dataclasses import fields
from pathlib import Path

import pytest
from tests.api_server import TINY, install_tiny_model, serving
from tests.server_process import ServerProcess, server_home, wait_for

from smedje import wiring
from smedje.executors.local import LocalExecutor
from smedje.services.oidc import Provider
from smedje.settings import Settings, load_settings
from smedje.wiring import open_context

# Settings that other tests set in the environment of a real server, and see the effect of.
ELSEWHERE = {
    "home": "tests/contract/test_api_wiring.py",
    "bootstrap_api_key": "tests/server_process.py",
    "device": "tests/numerics/test_device.py",
    "engine_idle_seconds": "tests/e2e/test_deployment_story.py",
    "lease_seconds": "tests/e2e/test_crash.py",
    "outbound_allow": "tests/e2e/test_job_events_told.py",
}
HERE = {
    "database_url",
    "objects_url",
    "max_running_jobs",
    "threads",
    "warm_seconds",
    "warm_model",
    "location",
    "wandb_api_key",
    "public_url",
    "oidc_issuer",
    "oidc_client_id",
    "oidc_client_secret",
    "oidc_domains",
    "oidc_roles",
}


def test_no_setting_is_without_a_test() -> None:
    """Each one is set here, or in the file named, where its variable stands."""
    root = Path(__file__).parents[2]
    names = {field.name for field in fields(Settings) if field.name != "serving"}
    assert names <= HERE | ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        assert f"SMEDJE_{name.upper()}" in (root / file).read_text(encoding="utf-8"), name


def test_storage_and_location_are_the_settings(tmp_path: Path) -> None:
    """Database, objects and location are those that were named, not those of the state folder."""
    home, database, objects = tmp_path / "home", tmp_path / "other.db", tmp_path / "bucket"
    settings = load_settings(
        {
            "SMEDJE_HOME": str(home),
            "SMEDJE_DATABASE_URL": f"sqlite:///{database}",
            "SMEDJE_OBJECTS_URL": objects.as_uri(),
            "SMEDJE_LOCATION": "cellar",
        }
    )
    ctx = open_context(settings)
    ctx.objects.put("here", b"1")
    assert ctx.location == "cellar"
    assert database.is_file()
    assert (objects / "here").read_bytes() == b"1"
    assert not (home / "smedje.db").exists()
    ctx.database.close()


def test_limits_of_jobs_are_the_settings(tmp_path: Path) -> None:
    """Runs at once, threads, the lease, the waiting process and the tracker's key are handed to the scheduler."""
    given = {"MAX_RUNNING_JOBS": "3", "THREADS": "5", "LEASE_SECONDS": "77", "WARM_SECONDS": "12", "WANDB_API_KEY": "w"}
    settings = load_settings({"SMEDJE_HOME": str(tmp_path), **{f"SMEDJE_{name}": text for name, text in given.items()}})
    ctx = open_context(settings)
    scheduler = wiring._scheduler(ctx, settings, LocalExecutor())
    limits = scheduler.limits
    assert (limits.max_running_jobs, limits.threads, limits.lease_seconds) == (3, 5, 77)
    assert scheduler.warm is not None
    assert (scheduler.warm.idle_seconds, scheduler.trackers.wandb_api_key) == (12, "w")
    assert wiring._engine_settings(settings).threads == 5
    ctx.database.close()


@pytest.mark.parametrize(
    ("said", "spins"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)]
)
def test_threads_of_an_engine_spin_unless_the_operator_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], spins: str | None
) -> None:
    """They look for work for a moment before they sleep; training's never do by themselves."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    settings = load_settings({"SMEDJE_HOME": str(tmp_path)})
    assert wiring._engine_settings(settings).env.get("GOMP_SPINCOUNT") == spins
    ctx = open_context(settings)
    workers = wiring._scheduler(ctx, settings, LocalExecutor()).worker_env
    assert workers.get("GOMP_SPINCOUNT") == said.get("GOMP_SPINCOUNT")
    assert workers["OMP_WAIT_POLICY"] == "PASSIVE"
    ctx.database.close()


def test_the_provider_is_the_settings(tmp_path: Path) -> None:
    """Issuer, client, secret (from a file), domains and roles are those of the sign-in; none without an issuer."""
    (tmp_path / "secret").write_text("hush\n", encoding="utf-8")
    plain = {"SMEDJE_HOME": str(tmp_path)}
    settings = load_settings(
        {
            **plain,
            "SMEDJE_OIDC_ISSUER": "https://id.example.org",
            "SMEDJE_OIDC_CLIENT_ID": "forge",
            "SMEDJE_OIDC_CLIENT_SECRET_FILE": str(tmp_path / "secret"),
            "SMEDJE_OIDC_DOMAINS": "example.org, Example.com",
            "SMEDJE_OIDC_ROLES": "tuners=ai_developer@default/default",
        }
    )
    provider = wiring._provider(settings)
    assert isinstance(provider, Provider)
    found = provider.settings
    assert (found.issuer, found.client_id, found.client_secret) == ("https://id.example.org", "forge", "hush")
    assert found.domains == ("example.org", "example.com")
    assert [one.group for one in found.roles] == ["tuners"]
    assert wiring._provider(load_settings(plain)) is None


def test_samples_name_the_public_address(tmp_path: Path) -> None:
    """Programs that ask a deployment use the address that browsers reach, where one is set."""
    import httpx2

    install_tiny_model(tmp_path)
    settings = {"SMEDJE_HOME": str(tmp_path), "SMEDJE_THREADS": "1", "SMEDJE_BOOTSTRAP_API_KEY": "k" * 24}
    public = "https://forge.example.org"
    app = wiring.build_app(load_settings({**settings, "SMEDJE_PUBLIC_URL": public}))
    with serving(app) as url, httpx2.Client(base_url=url, headers={"authorization": f"Bearer {'k' * 24}"}) as http:
        assert http.post("/api/deployments", json={"name": "d", "model": TINY}).status_code == 200
        assert f"{public}/v1" in http.get("/api/deployments/d/samples").json()["python"]


@pytest.mark.parametrize("seconds", ["600", "0"])
def test_a_base_model_is_held_from_the_start_on(tmp_path: Path, seconds: str) -> None:
    """SMEDJE_WARM_MODEL starts the waiting process before there is a job, unless SMEDJE_WARM_SECONDS is 0."""
    settings = {"SMEDJE_WARM_MODEL": "tiny-llama", "SMEDJE_WARM_SECONDS": seconds}
    server = ServerProcess(server_home(tmp_path), settings=settings)
    server.start()
    try:
        if seconds == "0":
            with server.client() as client:
                assert client.models.list().data
            assert server.waiting() == []
        else:
            wait_for(server.waiting, what="the process that waits")
    finally:
        server.stop()
