"""The guard of requests to addresses that users give: hostile spellings, names that change, limits, redirects."""

import http.server
import io
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from smedje.errors import InvalidRequest, SmedjeError, TooLarge, Unavailable
from smedje.services.outbound import Bounds, Outbound, check_address, fetch, parse_outbound, post

BOUNDS = Bounds(bytes=100_000, seconds=20)
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")

HOSTILE = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0x7f.0.0.1/",
    "http://0x7f000001/",
    "http://127.0.0.1./",
    "http://0/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00:ec2::254]/",
    "http://[ff02::1]/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://8.8.8.8:25/",
    "http://127.0.0.1%2f@8.8.8.8/",
    "http://user:word@8.8.8.8/",
    "http://8.8.8.8#@127.0.0.1/",
    "http://8.8.8.8\\@127.0.0.1/",
    "http://127。0。0。1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://%31%32%37.0.0.1/",
    "http:///8.8.8.8",
    "http://",
    "//8.8.8.8/",
    "ftp://8.8.8.8/",
    "file:///etc/passwd",
    "gopher://8.8.8.8/",
    "unix:///run/docker.sock",
    "http://8.8.8.8/ HTTP/1.1\r\nHost: inside\r\n\r\n",
    "http://exa mple.org/",
    "http://8.8.8.8:0/",
    "http://8.8.8.8:99999/",
    "http://-bad-.example/",
    "http://" + "a" * 3000 + ".example/",
    "",
]


class Names:
    """A resolver that says each time the next of what it was given for a name, and stays with the last."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        found = self.answers[host.split(".")[0]]
        return found.pop(0) if len(found) > 1 else found[0]


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by path: bytes, redirects, errors, and answers that never end."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a download."""
        seen: list[Any] = self.server.seen  # type: ignore[attr-defined]
        seen.append((self.path, dict(self.headers)))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "bytes":
            self._answer(200, b"x" * int(rest))
        elif kind == "to":
            self._answer(302, b"", location=rest)
        elif kind == "compressed":
            self._answer(200, b"zzz", content_encoding="gzip")
        elif kind == "slow":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            while True:
                self.wfile.write(b".")
                time.sleep(0.05)
        else:
            self._answer(404, b"no")

    def do_POST(self) -> None:
        """Take a message."""
        seen: list[Any] = self.server.seen  # type: ignore[attr-defined]
        seen.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
        self._answer(302 if self.path == "/elsewhere" else 204, b"", location="http://127.0.0.1/")

    def handle(self) -> None:
        """A caller who hangs up is expected here."""
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def site(tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Any]]]:
    """A server on 127.0.0.1; its port, and what it was asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    server.seen = []  # type: ignore[attr-defined]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, server.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def refusal(outbound: Outbound, url: str) -> SmedjeError:
    """The error that a download of the URL ends with."""
    with pytest.raises(SmedjeError) as found:
        fetch(outbound, url, io.BytesIO(), BOUNDS)
    return found.value


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_spelling_is_refused_before_anything_is_sent(url: str) -> None:
    """With the whole public internet open, no spelling of an inner address, user or scheme gets through."""
    with pytest.raises(InvalidRequest) as found:
        check_address(Outbound(public=True), url)
    assert found.value.code in ("invalid_url", "address_refused")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4009::1"])
def test_public_addresses_are_open_when_public_is(address: str) -> None:
    """A name that leads to public addresses passes, with IPv4 and with IPv6; without `public` nothing does."""
    names = Names(good=[[address]])
    check_address(Outbound(public=True, resolve=names), "https://good.example/path?x=1")
    with pytest.raises(InvalidRequest, match="SMEDJE_OUTBOUND_ALLOW"):
        check_address(Outbound(resolve=names), "https://good.example/")


def test_one_inner_address_among_public_ones_is_enough_to_refuse() -> None:
    """A name with a public and a private address is refused, whichever comes first."""
    for answer in (["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"]):
        names = Names(mixed=[answer])
        assert refusal(Outbound(public=True, resolve=names), "http://mixed.example/").code == "address_refused"


def test_a_name_that_leads_inside_and_one_that_is_not_there_look_the_same() -> None:
    """Nothing about inner names can be learnt from a refusal."""
    inside = Outbound(public=True, resolve=Names(wiki=[["10.0.0.7"]]))
    absent = Outbound(public=True, resolve=Names(wiki=[[]]))
    first, second = refusal(inside, "http://wiki.corp/"), refusal(absent, "http://wiki.corp/")
    assert (first.code, first.message) == (second.code, second.message)


def test_a_name_that_changes_its_mind_is_asked_once_and_its_first_answer_used() -> None:
    """After the check nothing is resolved again, so a rebinding name reaches only the address that was checked."""
    with site() as (port, seen):
        names = Names(rebind=[["127.0.0.1"], ["169.254.169.254"]])
        open_loopback = Outbound(networks=(LOOPBACK,), resolve=names)
        out = io.BytesIO()
        found = fetch(open_loopback, f"http://rebind.example:{port}/bytes/5", out, BOUNDS)
        assert out.getvalue() == b"x" * 5
        assert found.bytes == 5
        assert names.asked == 1
        assert seen[0][1]["host"] == f"rebind.example:{port}"
        # The second answer leads inside and is refused.
        assert refusal(open_loopback, f"http://rebind.example:{port}/bytes/5").code == "address_refused"
        assert len(seen) == 1


def test_every_redirect_is_checked_anew() -> None:
    """A redirect inside or to another scheme is refused; one to an allowed place is followed, but not for ever."""
    with site() as (port, seen):
        here = ipaddress.ip_network("127.0.0.1/32")
        names = Names(inside=[["10.0.0.1"]])
        outbound = Outbound(networks=(here,), public=True, resolve=names)
        base = f"http://127.0.0.1:{port}"
        assert fetch(outbound, f"{base}/to/{base}/bytes/3", io.BytesIO(), BOUNDS).url == f"{base}/bytes/3"
        assert refusal(outbound, f"{base}/to/http://169.254.169.254/").code == "address_refused"
        assert refusal(outbound, f"{base}/to/http://127.0.0.2:{port}/bytes/3").code == "address_refused"
        assert refusal(outbound, f"{base}/to/http://inside.example/").code == "address_refused"
        assert refusal(outbound, f"{base}/to/file:///etc/passwd").code == "invalid_url"
        before = len(seen)
        assert "more than 5" in refusal(outbound, f"{base}/to/" * 8).message
        assert len(seen) - before == 6


def test_bytes_and_seconds_are_bounded() -> None:
    """More bytes than allowed end a download, and so does an answer that drips; compressed bytes are refused."""
    with site() as (port, _):
        outbound = Outbound(networks=(LOOPBACK,))
        with pytest.raises(TooLarge) as large:
            fetch(outbound, f"http://127.0.0.1:{port}/bytes/2000", io.BytesIO(), Bounds(bytes=1999, seconds=20))
        assert large.value.code == "download_too_large"
        started = time.monotonic()
        with pytest.raises(Unavailable, match="did not finish"):
            fetch(outbound, f"http://127.0.0.1:{port}/slow", io.BytesIO(), Bounds(bytes=9999, seconds=0.4))
        assert time.monotonic() - started < 5
        assert refusal(outbound, f"http://127.0.0.1:{port}/compressed").code == "download_failed"
        assert "status 404" in refusal(outbound, f"http://127.0.0.1:{port}/nowhere").message


def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies that the environment names are not used."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with site() as (port, _):
        outbound = Outbound(networks=(LOOPBACK,))
        assert fetch(outbound, f"http://127.0.0.1:{port}/bytes/1", io.BytesIO(), BOUNDS).bytes == 1


def test_a_message_is_posted_with_its_headers_and_never_redirected() -> None:
    """The body and headers arrive as given; a redirect is an answer like any other."""
    with site() as (port, seen):
        outbound = Outbound(networks=(LOOPBACK,))
        base = f"http://127.0.0.1:{port}"
        assert post(outbound, f"{base}/in", b"{}", {"webhook-id": "7", "host": "forged"}, seconds=20) == 204
        path, headers, body = seen[0]
        assert (path, headers["webhook-id"], headers["host"], body) == ("/in", "7", f"127.0.0.1:{port}", b"{}")
        assert post(outbound, f"{base}/elsewhere", b"{}", {}, seconds=20) == 302
        assert len(seen) == 2


def test_nobody_there_is_said_and_not_waited_for() -> None:
    """A closed port is `address_unreachable`."""
    with site() as (port, _):
        pass
    assert refusal(Outbound(networks=(LOOPBACK,)), f"http://127.0.0.1:{port}/").code == "address_unreachable"


def test_tls_is_checked_against_the_name_though_the_connection_goes_to_an_address(tmp_path: Path) -> None:
    """A certificate for the name passes; the same server under another name, or without a known issuer, does not."""
    trusted = make_certificate(tmp_path, "good.example")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    names = Names(good=[["127.0.0.1"]], other=[["127.0.0.1"]])
    with site(serving) as (port, seen):
        outbound = Outbound(networks=(LOOPBACK,), resolve=names, tls=trusted)
        assert fetch(outbound, f"https://good.example:{port}/bytes/4", io.BytesIO(), BOUNDS).bytes == 4
        assert refusal(outbound, f"https://other.example:{port}/bytes/4").code == "address_unreachable"
        unknown = Outbound(networks=(LOOPBACK,), resolve=names)
        assert refusal(unknown, f"https://good.example:{port}/bytes/4").code == "address_unreachable"
        plain = f"http://127.0.0.1:{port}/"
        assert refusal(outbound, f"https://good.example:{port}/to/{plain}").code == "download_failed"
        assert len(seen) == 2


def make_certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A self-signed certificate in the folder, and a context that trusts it alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ssl.create_default_context(cadata=pem.decode())


def test_the_setting_reads_names_networks_and_public() -> None:
    """Names, suffixes, networks and `public` are understood; anything else is refused with the setting's name."""
    found = parse_outbound("public, hooks.example.org,.corp.example, 10.1.0.0/16,::1/128")
    assert found.public
    assert found.hosts == {"hooks.example.org", ".corp.example"}
    assert [str(one) for one in found.networks] == ["10.1.0.0/16", "::1/128"]
    assert parse_outbound("") == Outbound()
    for bad in ("http://example.org", "10.1.0.0/33", "10.1.0.1/16", "exa mple", "127.1"):
        with pytest.raises(InvalidRequest, match="neither"):
            parse_outbound(bad)


def test_a_listed_name_may_lead_anywhere() -> None:
    """A name, or any name below a suffix, that the operator listed passes wherever it leads; its neighbours do not."""
    names = Names(hooks=[["10.0.0.1"]], a=[["10.0.0.1"]], corp=[["10.0.0.1"]])
    outbound = Outbound(hosts=frozenset({"hooks.example", ".corp.example"}), resolve=names)
    check_address(outbound, "http://hooks.example:25/")
    check_address(outbound, "http://a.corp.example/")
    for url in ("http://hooks.example.org/", "http://a.hooks.example/", "http://corp.example/", "http://10.0.0.1/"):
        with pytest.raises(InvalidRequest):
            check_address(outbound, url)
