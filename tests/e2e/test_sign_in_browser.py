"""Signing in with a real browser: by keyboard, without scripts, through identity providers, against foreign pages."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.sync_api import Browser, Page, sync_playwright
from tests.api_server import *  # noqa: F403
from tests.api_server import Server, make_app, serving
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, running_provider
from tests.people import PASSWORD, make_person

from smedje.services.oidc import Provider, ProviderSettings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ADA = {"email": "ada@example.org", "email_verified": True, "name": "Ada"}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser of this machine; skips, saying why, where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium or Chrome is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page with cookies of its own, in which no script runs."""
    context = chromium.new_context(java_script_enabled=False)
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()


def test_the_form_is_used_by_keyboard_alone(server: Server, page: Page) -> None:
    """Tab finds the fields in their order, Enter sends them; a failure is announced and keeps the address; after that
    one is where one was going, and Tab and Enter lead out again."""
    make_person(server, "kim@example.org", role="reader")
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(f"{server.url}/login?next=/api/me")
    for typed in ("kim@example.org", "not the password"):
        page.keyboard.press("Tab")
        page.keyboard.type(typed)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    assert alert.inner_text() == "The e-mail address or the password is wrong."
    assert page.title().startswith("Error: ")
    address = page.get_by_label("E-mail address")
    assert address.input_value() == "kim@example.org"
    assert address.get_attribute("aria-describedby") == alert.get_attribute("id")
    page.get_by_label("Password").focus()
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/api/me")
    assert json.loads(page.locator("body").inner_text())["email"] == "kim@example.org"
    page.goto(f"{server.url}/login")
    assert page.get_by_role("heading", level=1).inner_text() == "Signed in"
    assert page.get_by_role("row").nth(1).inner_text().split("\t") == ["Reader", "project default in hub default"]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Sign in").wait_for()
    # The style is the page's own, which its policy lets through; nothing was blocked.
    assert "focus" not in "".join(complaints)
    assert not [text for text in complaints if "Content Security Policy" in text]


def test_a_foreign_pages_form_changes_nothing(server: Server, page: Page) -> None:
    """Another port of this host, to which the browser sends the cookie along, and another host: both are refused."""
    make_person(server, "vic@example.org", role="owner")
    page.goto(f"{server.url}/login")
    page.get_by_label("E-mail address").fill("vic@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()
    foreign = FastAPI()

    @foreign.get("/")
    def trap() -> HTMLResponse:
        return HTMLResponse(f'<form method="post" action="{server.url}/logout"><button>You have won</button></form>')

    with serving(foreign) as url:
        for origin in (url, url.replace("127.0.0.1", "localhost")):
            page.goto(origin)
            page.get_by_role("button", name="You have won").click()
            page.get_by_text("cross_site_request").wait_for()
            page.goto(f"{server.url}/login")
            page.get_by_role("button", name="Sign out").wait_for()


@pytest.fixture(params=["tests/identity_provider.py", "oidc-provider-mock"])
def provider(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a provider that knows Ada: our own strict one, and one that others made."""
    if request.param != "oidc-provider-mock":
        with running_provider() as ours:
            ours.people["ada"] = dict(ADA)
            # Any port: the server that is registered here starts after it.
            ours.redirects = _Anywhere()
            yield ours.url
        return
    if find_spec("oidc_provider_mock") is None:
        pytest.skip("the package oidc-provider-mock is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    person = json.dumps({"sub": "ada", **ADA})
    words = [sys.executable, "-m", "oidc_provider_mock", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        [*words, "--user-claims", person], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            with httpx2.Client(transport=httpx2.HTTPTransport(retries=8)) as http:
                issuer = http.get(f"http://127.0.0.1:{port}/.well-known/openid-configuration").json()["issuer"]
            yield str(issuer)
        finally:
            process.terminate()


class _Anywhere(set[str]):
    """Every redirect address of this machine."""

    def __contains__(self, address: object) -> bool:
        return str(address).startswith("http://127.0.0.1:")


def test_a_person_signs_in_through_a_provider(server: Server, page: Page, provider: str) -> None:
    """The link on our form, the provider's own page, and back, signed in; a role given to the address is there."""
    with server.http() as owner:
        owner.put("/api/members/ada@example.org", json={"role": "ai_developer"})
    settings = ProviderSettings(issuer=provider, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    app = make_app(server.ctx)
    app.state.services = replace(app.state.services, provider=Provider(settings))
    with server.ctx.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE members SET issuer = NULL, subject = NULL")
    with serving(app) as url:
        page.goto(f"{url}/login?next=/api/me")
        page.get_by_role("link", name="Sign in with 127.0.0.1").click()
        page.locator("input[name=sub]").fill("ada")
        page.locator("button").first.click()
        page.wait_for_url(f"{url}/api/me")
        me = json.loads(page.locator("body").inner_text())
        assert (me["kind"], me["email"]) == ("session", "ada@example.org")
        assert [role["role"] for role in me["roles"]] == ["ai_developer"]
        page.goto(f"{url}/login")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Password").wait_for()
