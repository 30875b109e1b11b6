"""The pages by which people sign in, as plain HTML: no scripts, no fonts or links to anywhere else.

Knows words, headings and labels; knows nothing of who may do what.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from starlette.responses import HTMLResponse

if TYPE_CHECKING:
    from jinja2 import Template

STYLE = """
:root { color-scheme: light dark; }
body { font: 1.125rem/1.5 system-ui, sans-serif; margin: 0; color: #1b1b1b; background: #fff; }
main { max-width: 26rem; margin: 10vh auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; }
label { display: block; font-weight: 600; margin: 1rem 0 .25rem; }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .5rem;
  border: 2px solid #555; border-radius: 4px; }
button, .button { font: inherit; font-weight: 600; display: inline-block; margin-top: 1.5rem; padding: .6rem 1.2rem;
  border: 2px solid #0b4f9e; border-radius: 4px; background: #0b4f9e; color: #fff; text-decoration: none; }
:focus-visible { outline: 3px solid #b35900; outline-offset: 2px; }
.problem { border-left: 6px solid #a00; padding: .5rem .75rem; margin: 0 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid #999; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #151515; }
  input { background: #222; color: #eee; border-color: #aaa; }
  button, .button { background: #9cc8ff; border-color: #9cc8ff; color: #10233a; }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% if problem %}Error: {% endif %}{{ title }} - smedje</title>
<style>{{ style|safe }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{%- if problem %}
<p class="problem" role="alert" id="problem">{{ problem }}</p>
{%- endif %}
{%- if account %}
<p>You are signed in as <strong>{{ account.email }}</strong>.</p>
{%- if account.roles %}
<table>
<caption>Your roles</caption>
<thead><tr><th scope="col">Role</th><th scope="col">Where</th></tr></thead>
<tbody>
{%- for role, where in account.roles %}
<tr><td>{{ role }}</td><td>{{ where }}</td></tr>
{%- endfor %}
</tbody>
</table>
{%- else %}
<p>You have no role in any project yet. Ask an owner for one.</p>
{%- endif %}
<form method="post" action="/logout"><button type="submit">Sign out</button></form>
{%- else %}
<form method="post" action="/login">
<input type="hidden" name="next" value="{{ next }}">
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" value="{{ email }}" autocomplete="username" required maxlength="256"
 {%- if problem %} aria-describedby="problem" aria-invalid="true"{% endif %}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="256"
 {%- if problem %} aria-describedby="problem" aria-invalid="true"{% endif %}>
<button type="submit">Sign in</button>
</form>
{%- if provider %}
<p><a class="button" href="/login/provider?next={{ next|urlencode }}">Sign in with {{ provider }}</a></p>
{%- endif %}
{%- endif %}
</main>
</body>
</html>
"""

_STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode("ascii")
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    # The form's own origin has to come with it, or the server could not tell it from a foreign page's.
    "referrer-policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who is signed in, and what they are where."""

    email: str
    roles: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class SignInForm:
    """What the form shows. next: where to go afterwards. provider: name of the identity provider, if there is one."""

    next: str
    email: str = ""
    problem: str = ""
    provider: str | None = None


def sign_in_page(form: SignInForm, *, status: int = 200) -> HTMLResponse:
    """The form."""
    text = _page().render(title="Sign in", style=STYLE, **vars(form))
    return HTMLResponse(text, status_code=status, headers=HEADERS)


def account_page(account: Account) -> HTMLResponse:
    """Who is signed in, and the way out."""
    return HTMLResponse(_page().render(title="Signed in", style=STYLE, account=account), headers=HEADERS)


@cache
def _page() -> "Template":
    # Imported here: few servers ever show a page, and Jinja takes 2 MB.
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(PAGE)
