"""Fetches images from the internet for `serve --allow-urls`, and only from public addresses.

A host's name is resolved once, every address is checked, and the connection goes to a checked address: a name server
that gives another address the second time (DNS rebinding) changes nothing. Redirects are followed by hand, with the
same checks. Proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from flamboyance.files import is_web_url
from flamboyance.serving.errors import ApiError, bad
from flamboyance.serving.limits import Limits
from flamboyance.serving.pictures import too_large

REDIRECTS = 3
SECONDS = 20.0  # of one file, redirects included

# Not of the internet, though Python's `is_global` says so of them, or did in older versions: Azure's platform, local
# addresses of IPv6 (the old ones, and those that translate to IPv4), 6to4 relays, and documentation.
INSIDE = [
    ipaddress.ip_network(network)
    for network in ("168.63.129.16/32", "192.88.99.0/24", "fec0::/10", "64:ff9b:1::/48", "3fff::/20")
]

Resolve = Callable[[str, int], Awaitable[list[str]]]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and not of this machine, its network, or a cloud's metadata."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that stand for one of IPv4: mapped, translated (64:ff9b::/96), 6to4 and Teredo.
        translated = ip in ipaddress.ip_network("64:ff9b::/96")
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if translated else inner
        if inner is not None and inner is not False:
            return is_public(str(inner))
    if any(ip in network for network in INSIDE):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """Fetches images and videos.

    Args:
        resolve, allowed: the addresses of a host, and whether one may be connected to.
    """

    def __init__(self, limits: Limits, resolve: Resolve = resolve, allowed: Callable[[str], bool] = is_public):
        self.limits, self._resolve, self._allowed = limits, resolve, allowed

    async def fetch(self, url: str, place: str) -> bytes:
        """The content of a URL.

        Raises:
            ApiError: 400; its host has an address that is not public, it does not answer in time, or the file is too
                large.
        """
        try:
            async with asyncio.timeout(SECONDS):
                for _ in range(REDIRECTS + 1):
                    answer = await self._get(url, place)
                    if isinstance(answer, bytes):
                        return answer
                    url = answer
        except TimeoutError:
            raise _failed(place, f"the server did not send the file within {SECONDS:.0f} seconds") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failed(place, f"it cannot be fetched ({type(error).__name__})") from None
        raise _failed(place, f"more than {REDIRECTS} redirects")

    async def _get(self, url: str, place: str) -> bytes | str:
        """The content, or the URL of a redirect."""
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        if not is_web_url(url) or not host or parts.username is not None:
            raise _failed(place, "expected http or https, a host, and no password in it")
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self._allowed, addresses)):
            raise bad(place, f"{place}: the address of its host is not public; it is not fetched", "forbidden_url")
        connector = aiohttp.TCPConnector(resolver=_Known(addresses), limit=1, force_close=True, use_dns_cache=False)
        options: dict[str, Any] = {"trust_env": False, "cookie_jar": aiohttp.DummyCookieJar(), "auto_decompress": False}
        # A literal address is connected to as it is; it is the one that was checked.
        async with aiohttp.ClientSession(connector=connector, **options) as session:
            headers = {"Accept": "image/*, video/*", "Accept-Encoding": "identity", "User-Agent": "flamboyance"}
            async with session.get(url, allow_redirects=False, headers=headers) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    return urljoin(url, answer.headers["Location"])
                if answer.status != 200:
                    raise _failed(place, f"the server answered with status {answer.status}")
                data = bytearray()
                async for some in answer.content.iter_chunked(65536):
                    data += some
                    if len(data) > self.limits.image_bytes:
                        raise too_large(place, self.limits)
                return bytes(data)


class _Known(AbstractResolver):
    """Gives the addresses that were checked, whatever it is asked."""

    def __init__(self, addresses: list[str]):
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


def _failed(place: str, why: str) -> ApiError:
    return bad(place, f"{place}: {why}", "image_not_fetched")
