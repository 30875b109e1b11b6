"""The one guard of every request that the server makes to an address which a user gave: downloads and webhooks.

Nothing may be reached unless the operator allowed it; "public" allows the public internet and never this machine, its
network or a cloud's metadata. A name is resolved once, its addresses are checked, and the connection goes to the
checked address itself, so a name that changes its mind in between gains nothing. Each redirect is checked anew.
Knows addresses, limits and HTTP; refuses to know what is fetched or told.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from smedje.errors import InvalidRequest, TooLarge, Unavailable

# The HTTP client is imported where it is used: a server that never asks another one does without its 2 MB.
if TYPE_CHECKING:
    import httpx2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], list[str]]

PUBLIC = "public"
LONGEST_URL = 2048
MOST_REDIRECTS = 5
MOST_ADDRESSES = 3
CONNECT_SECONDS = 10.0
DEFAULT_PORTS = {"http": 80, "https": 443}
# Below this live services that an HTTP request could confuse (mail, for one).
FIRST_FREE_PORT = 1024
HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*\Z"
)
NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\Z")

# IANA's special-purpose registries and multicast; 168.63.129.16 is Azure's own service address, public by its number.
CLOSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
# Only global unicast is open, less what is special in it: Teredo, documentation and 6to4 (which carries IPv4).
OPEN_V6 = ipaddress.IPv6Network("2000::/3")
CLOSED_V6 = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))


class Sink(Protocol):
    """Where downloaded bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


def system_addresses(host: str, port: int) -> list[str]:
    """What the operating system's resolver says about a name, each address once, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


@dataclass(frozen=True, kw_only=True)
class Outbound:
    """What users may make the server reach.

    public: the public internet. hosts: names that are allowed wherever they lead; one that begins with a dot stands
    for all names below it. networks: allowed addresses. tls: None for the usual roots of trust.
    """

    public: bool = False
    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    resolve: Resolve = system_addresses
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The most that one exchange may take: bytes of the answer, seconds from first to last."""

    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came: how many bytes, and what the last answer called them. url: after redirects."""

    url: str
    bytes: int
    content_type: str


def parse_outbound(text: str) -> Outbound:
    """From the setting: names, `.example.org` for all names below, networks, `public`; divided by commas.

    Raises InvalidRequest for anything else.
    """
    hosts, networks = set(), []
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    for word in words:
        if word == PUBLIC:
            continue
        network = _network(word)
        if network is not None:
            networks.append(network)
        elif HOST.match(word.removeprefix(".")) and not NUMERIC_END.match(word):
            hosts.add(word)
        else:
            raise InvalidRequest(
                f"{word[:100]!r} is neither `public`, a host name nor a network such as 10.1.0.0/16.",
                code="invalid_setting",
                param="SMEDJE_OUTBOUND_ALLOW",
            )
    return Outbound(public=PUBLIC in words, hosts=frozenset(hosts), networks=tuple(networks))


def check_address(outbound: Outbound, url: str, *, param: str = "url") -> None:
    """Raises InvalidRequest unless the URL is of an allowed form and leads, at this moment, only to allowed places."""
    _target(outbound, url, param)


def fetch(outbound: Outbound, url: str, sink: Sink, bounds: Bounds, *, param: str = "url") -> Fetched:
    """Download into `sink`, from a thread without an event loop. What was written before a failure is the caller's.

    Raises InvalidRequest (`invalid_url`, `address_refused`, `download_failed` for an answer that is no success),
    TooLarge (`download_too_large`) and Unavailable (`address_unreachable`, also when time is up).
    """
    for _ in range(MOST_REDIRECTS + 1):
        target = _target(outbound, url, param)
        exchange = _Exchange(method="GET", target=target, bounds=bounds, param=param, sink=sink)
        answer = asyncio.run(_exchange(outbound, exchange))
        if answer.location is None:
            if not 200 <= answer.status < 300:
                raise _failed(
                    exchange, f"answered with status {answer.status}. Check that the URL is right and needs no sign-in"
                )
            return Fetched(url=str(target.url), bytes=answer.bytes, content_type=answer.content_type)
        following = _joined(target.url, answer.location, param)
        if target.url.scheme == "https" and following.scheme != "https":
            raise _failed(exchange, "redirects from https to something else")
        url = str(following)
    raise _failed(exchange, f"redirects more than {MOST_REDIRECTS} times")


def post(
    outbound: Outbound, url: str, data: bytes, headers: Mapping[str, str], *, seconds: float, param: str = "url"
) -> int:
    """Send `data` and return the answer's status; its text is not read, a redirect is not followed.

    From a thread without an event loop. Raises as `fetch`, never TooLarge.
    """
    exchange = _Exchange(
        method="POST",
        target=_target(outbound, url, param),
        bounds=Bounds(bytes=0, seconds=seconds),
        param=param,
        data=data,
        headers=headers,
    )
    return asyncio.run(_exchange(outbound, exchange)).status


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A URL that was checked. addresses: where it may be connected to, each checked."""

    url: "httpx2.URL"
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Exchange:
    """One request to one target, and what its answer may be."""

    method: str
    target: _Target
    bounds: Bounds
    param: str
    data: bytes | None = None
    headers: Mapping[str, str] | None = None
    sink: Sink | None = None


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: int
    location: str | None = None
    content_type: str = ""
    bytes: int = 0


def _target(outbound: Outbound, text: str, param: str) -> _Target:
    url = _parsed(text, param)
    host = url.host.lower()
    port = url.port or DEFAULT_PORTS[url.scheme]
    named = _is_named(outbound, host)
    literal = _literal(host)
    try:
        found = [host] if literal is not None else outbound.resolve(host, port)
        addresses = [ipaddress.ip_address(one.partition("%")[0]) for one in found]
    except (OSError, ValueError, UnicodeError):
        addresses = []
    usual = port in DEFAULT_PORTS.values() or port >= FIRST_FREE_PORT
    # One bad address among good ones is how a name is made to lead inside: all must be allowed.
    if not addresses or not (named or (usual and all(_is_allowed(outbound, one) for one in addresses))):
        allowed = (
            "Nothing but what SMEDJE_OUTBOUND_ALLOW lists may be reached"
            if not outbound.public
            else ("Private, local and reserved addresses are closed unless SMEDJE_OUTBOUND_ALLOW lists them")
        )
        raise InvalidRequest(
            f"The server does not reach {host[:100]}:{port}. {allowed}; the operator of this server can change that.",
            code="address_refused",
            param=param,
        )
    return _Target(url=url, addresses=tuple(str(one) for one in addresses[:MOST_ADDRESSES]))


def _parsed(text: str, param: str) -> "httpx2.URL":
    """Raises InvalidRequest unless it is an http(s) URL with a plain host and nothing that names a user."""
    import httpx2

    problem = None
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, TypeError, ValueError, UnicodeError):
        raise _bad_url("it cannot be understood", param) from None
    host = url.host.lower().removesuffix(".")
    if len(text) > LONGEST_URL:
        problem = f"it has more than {LONGEST_URL} characters"
    elif not text.isascii() or not text.isprintable() or any(c in text for c in ' \\<>"`{}|^'):
        problem = "it has characters that a URL does not have"
    elif url.scheme not in DEFAULT_PORTS:
        problem = "it must begin with https:// or http://"
    elif url.userinfo or "@" in url.netloc.decode("ascii", "replace"):
        problem = "it must not carry a user name or password"
    elif url.fragment:
        problem = "it must not have a #fragment"
    elif url.port is not None and not 0 < url.port < 65536:
        problem = "its port must lie between 1 and 65535"
    elif _literal(host) is None and (
        not HOST.match(host.removesuffix(".")) or NUMERIC_END.match(host.removesuffix("."))
    ):
        problem = "its host is neither a name nor an address in the usual form"
    if problem is not None:
        raise _bad_url(problem, param)
    return url


def _bad_url(problem: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"This URL cannot be used: {problem}.", code="invalid_url", param=param)


def _network(word: str) -> Network | None:
    try:
        return ipaddress.ip_network(word)
    except ValueError:
        return None


def _literal(host: str) -> Address | None:
    """The address that a host is, spelled in the one usual way; None for a name and for every other spelling."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_named(outbound: Outbound, host: str) -> bool:
    name = host.removesuffix(".")
    above = name.partition(".")
    tails = []
    while above[2]:
        tails.append(f".{above[2]}")
        above = above[2].partition(".")
    return name in outbound.hosts or any(tail in outbound.hosts for tail in tails)


def _is_allowed(outbound: Outbound, address: Address) -> bool:
    if any(address in network for network in outbound.networks if network.version == address.version):
        return True
    if not outbound.public:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in CLOSED_V4)
    return address in OPEN_V6 and not any(address in network for network in CLOSED_V6)


async def _exchange(outbound: Outbound, exchange: _Exchange) -> _Answer:
    import httpx2

    seconds, host = exchange.bounds.seconds, exchange.target.url.host
    try:
        async with asyncio.timeout(seconds):
            return await _first_that_connects(outbound, exchange)
    except TimeoutError:
        what = f"did not finish within {seconds:.0f} s"
    except httpx2.HTTPError as error:
        what = f"failed ({type(error).__name__})"
    raise Unavailable(f"The exchange with {host} {what}.", code="address_unreachable", param=exchange.param)


async def _first_that_connects(outbound: Outbound, exchange: _Exchange) -> _Answer:
    import httpx2

    timeout = httpx2.Timeout(exchange.bounds.seconds, connect=CONNECT_SECONDS)
    verify = True if outbound.tls is None else outbound.tls
    addresses = exchange.target.addresses
    # trust_env: no proxies, netrc or certificates from the environment.
    async with httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout, verify=verify) as client:
        for address in addresses[:-1]:
            with suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await _once(client, exchange, address)
        return await _once(client, exchange, addresses[-1])


async def _once(client: "httpx2.AsyncClient", exchange: _Exchange, address: str) -> _Answer:
    """One request to one address, under the name that was asked for: in the Host header and in TLS."""
    url = exchange.target.url
    mine = {"user-agent": "smedje", "accept-encoding": "identity", "host": url.netloc.decode("ascii")}
    request = client.build_request(
        exchange.method,
        url.copy_with(host=address),
        headers={**(exchange.headers or {}), **mine},
        content=exchange.data,
        extensions={"sni_hostname": url.host.removesuffix(".")},
    )
    answer = await client.send(request, stream=True)
    try:
        location = answer.headers.get("location") if answer.is_redirect else None
        count = 0
        if exchange.sink is not None and answer.is_success:
            count = await _received(exchange, exchange.sink, answer)
        kind = answer.headers.get("content-type", "")
        return _Answer(status=answer.status_code, location=location, content_type=kind, bytes=count)
    finally:
        await answer.aclose()


async def _received(exchange: _Exchange, sink: Sink, answer: "httpx2.Response") -> int:
    """Hand the answer's bytes on as they come. A compressed one could grow without bound, so it is refused."""
    if answer.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise _failed(exchange, "sends compressed bytes that were not asked for")
    count = 0
    async for piece in answer.aiter_raw():
        count += len(piece)
        if count > exchange.bounds.bytes:
            raise TooLarge(
                f"What {exchange.target.url.host} sends is larger than the limit of {exchange.bounds.bytes} bytes.",
                code="download_too_large",
                param=exchange.param,
            )
        sink.write(piece)
    return count


def _joined(url: "httpx2.URL", location: str, param: str) -> "httpx2.URL":
    import httpx2

    try:
        return url.join(location)
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        raise _bad_url("it redirects to something that cannot be understood", param) from None


def _failed(exchange: _Exchange, what: str) -> InvalidRequest:
    return InvalidRequest(f"{exchange.target.url.host} {what}.", code="download_failed", param=exchange.param)
