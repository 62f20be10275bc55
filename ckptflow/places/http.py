"""A file on a web server, brought to this disk. A redirect is followed as far as its sender may be trusted."""

from __future__ import annotations

import io
import ipaddress
import os
import socket
import unicodedata
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import fsspec.asyn
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ckptflow.places.room import check_room
from ckptflow.storage import faults, redaction
from ckptflow.storage.clients import connect_in_time, open_file_system, split_options
from ckptflow.storage.credentials import opening
from ckptflow.storage.positional import write_at
from ckptflow.storage.remote import RemoteCalls
from ckptflow.storage.replies import StrangeReplyError
from ckptflow.storage.retry import Retries
from ckptflow.storage.stalls import connect_timeout_s, retry_time_s

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10
_STEP_BYTES = 2**18
_PORTS = {"http": 80, "https": 443}
# Where a machine in a cloud is told its own credentials, beside the link-local addresses.
_METADATA = {*map(ipaddress.ip_address, ("fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))}
_OF_AMAZON = ipaddress.IPv6Network("fd00:ec2::/32")  # machines' credentials, and those of containers
# What begins so ends with an address of version 4: compatible, mapped, translated (as of the system, of a network).
_HOLDS_V4 = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)


class RefusedRedirectError(Exception):
    """A redirect to where none must lead."""


class HttpFile(RemoteCalls):
    """One file at an `http://` or `https://` URL, read as a stream. Errors never show the URL's query.

    What the user has set for requests (headers, cookies, a login) goes to the origin of the URL alone. A redirect to
    another one is asked without it; one from https to http, or to a link-local address, is refused.
    """

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        options, _, limit_s = split_options(storage_options)
        with opening(url, options):
            scheme = url.partition("://")[0]
            self._fs, self._address = open_file_system(url, scheme, options, stall_timeout_s=limit_s)
        super().__init__(url, options, limit_s)

    def download(self, path: str, max_bytes: int) -> None:
        """Writes the file to `path`, tried again from its start where that may help.

        Raises `ObjectNotFoundError`, and `UsageError` or `StorageFullError` as soon as it is known to be too long.
        """
        Retries(max_wait_s=retry_time_s(self._stall_timeout_s)).run(lambda: self._download(path, max_bytes))

    def _download(self, path: str, max_bytes: int) -> None:
        def check(size_bytes: int) -> None:
            check_room(self._url, size_bytes, max_bytes, os.path.dirname(path))

        with self._mapped("read"), _Bounded(path, max_bytes, check) as file:
            fsspec.asyn.sync(self._fs.loop, self._stream, file, check)

    async def _stream(self, file: _Bounded, check: Callable[[int], None]) -> None:
        # Else a server may pack what is packed already, and say the length of that.
        headers = {"Accept-Encoding": "identity"}
        settings: dict[str, Any] = {**self._fs.kwargs, "headers": headers | dict(self._fs.kwargs.get("headers") or {})}
        session = await self._fs.set_session()
        url = str(self._fs.encode_url(self._address))
        is_strange = False
        async with AsyncExitStack() as stack:
            for _ in range(_MAX_REDIRECTS + 1):
                asked = URL(url, encoded=True)
                if is_strange:
                    settings = {"headers": headers, **_proxy_for(asked)}
                reply = await session.get(asked, **{**settings, "allow_redirects": False})
                stack.push_async_callback(_release, reply)
                if reply.status not in _REDIRECTS or "Location" not in reply.headers:
                    await _receive(reply, file, check)
                    return
                target = _with_login(url, urljoin(url, reply.headers["Location"]))
                _check_redirect(url, target)
                if _origin(url) != _origin(target):
                    session, is_strange = await stack.enter_async_context(self._strangers()), True
                url = target
        raise RefusedRedirectError(f"more than {_MAX_REDIRECTS} redirects")

    def _strangers(self) -> aiohttp.ClientSession:
        """A session for an origin that a redirect names: nothing of the user's goes there."""
        limit_s = self._stall_timeout_s
        connect_s = connect_timeout_s(limit_s)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=limit_s)
        connector = connect_in_time(aiohttp.TCPConnector(resolver=_PublicResolver()), connect_s)
        return aiohttp.ClientSession(timeout=timeout, connector=connector)  # with trust_env, a login of ~/.netrc would


def _proxy_for(url: URL) -> dict[str, Any]:
    """The proxy that the environment names for a URL, as an argument of a request."""
    try:
        proxy, login = aiohttp.helpers.get_env_proxy_for_url(url)
    except LookupError:
        return {}
    return {"proxy": proxy, "proxy_auth": login}


async def _release(reply: aiohttp.ClientResponse) -> None:
    reply.close()


async def _receive(reply: aiohttp.ClientResponse, file: _Bounded, check: Callable[[int], None]) -> None:
    reply.raise_for_status()
    if reply.status != 200:
        raise StrangeReplyError(f"asked for a file, got status {reply.status}")
    check(reply.content_length or 0)
    async for data in reply.content.iter_chunked(_STEP_BYTES):
        file.write(data)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme.lower(), 0)


def _with_login(url: str, target: str) -> str:
    """A redirect's target, within the origin with the login that `url` has: an absolute one comes without."""
    login, at, _ = urlsplit(url).netloc.rpartition("@")
    parts = urlsplit(target)
    if not at or "@" in parts.netloc or _origin(url) != _origin(target):
        return target
    return parts._replace(netloc=f"{login}@{parts.netloc}").geturl()


def _check_redirect(url: str, target: str) -> None:
    """Raises for a redirect from `url` that must not be followed."""
    before, after = _origin(url), _origin(target)
    why = ""
    if after[0] not in _PORTS:
        why = f"to the scheme {after[0]!r}"
    elif (before[0], after[0]) == ("https", "http"):
        why = "from https to http"
    elif before != after and is_forbidden(after[1]):
        why = "to a link-local address"
    if why:
        raise RefusedRedirectError(f"a redirect {why} is not followed: {redaction.redact_url(target)}")


def is_forbidden(host: str) -> bool:
    """Whether `host` is an address at which a machine finds its own secrets, or its neighbours on the link."""
    address = _address(host.partition("%")[0])
    if address is None:
        return False  # a name: it is looked at once it is resolved
    inside: list[ipaddress.IPv4Address | ipaddress.IPv6Address | None] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inside += [address.sixtofour, *(address.teredo or ())]
        if any(address in network for network in _HOLDS_V4):
            inside.append(ipaddress.IPv4Address(address.packed[-4:]))
    if address.version == 6 and address in _OF_AMAZON:
        return True
    return any(each.is_link_local or each in _METADATA for each in inside if each is not None)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, also in the spellings of old (`127.1`, `0x7f000001`) and in digits of other kinds."""
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".").rstrip(".")
    try:
        return ipaddress.ip_address(plain)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(plain))
    except (OSError, ValueError):
        return None


class _PublicResolver(AbstractResolver):
    """Resolves as aiohttp does by default, and drops what `is_forbidden`."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if any(is_forbidden(each["host"]) for each in found):
            raise RefusedRedirectError(f"a redirect to a link-local address is not followed: {host}")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class _Bounded(io.FileIO):
    """A file that raises what `too_long` raises rather than become longer than `max_bytes`."""

    def __init__(self, path: str, max_bytes: int, too_long: Callable[[int], None]) -> None:
        super().__init__(path, "wb")
        self._path, self._max_bytes, self._too_long = path, max_bytes, too_long
        self._end = 0

    def write(self, data: Any) -> int:
        begin, self._end = self._end, self._end + len(data)
        if self._end > self._max_bytes:
            self._too_long(self._end)
        with faults.os_errors("write", self._path):
            write_at(self.fileno(), memoryview(data), begin)
        return len(data)
