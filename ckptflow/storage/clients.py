"""Which client speaks to which storage, with our limits of time, one try, and replies that are checked."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import os
import re
from collections.abc import Callable
from types import MethodType
from typing import Any

import fsspec
import fsspec.asyn
from fsspec.dircache import DirCache

from ckptflow.errors import UsageError
from ckptflow.storage import redaction
from ckptflow.storage.aws_sessions import asynchronous_session, without_redirects
from ckptflow.storage.faults import from_client_error
from ckptflow.storage.replies import RANGE, StrangeReplyError, check_gcs
from ckptflow.storage.stalls import STALL_TIMEOUT_S, check_stall_timeout, connect_timeout_s, socket_factory
from ckptflow.storage.throttling import MOST_AT_ONCE
from ckptflow.storage.wanted import check_wanted

S3_SCHEMES = ("s3", "s3a")
GCS_SCHEMES = ("gs", "gcs")
_MOST_CONNECTIONS = MOST_AT_ONCE + 8  # small requests, as for receipts, have room beside transfers
_MOST_REPLY_BYTES = 2**26  # of a listing, or of an error
_READ_BYTES = 2**18
_TIME = re.compile(rb"<LastModified>[^<]*</LastModified>")
# What fsspec's own base classes take, of any storage.
_OF_ALL_FSSPEC = frozenset(
    ["batch_size", "listings_expiry_time", "max_paths", "skip_instance_cache", "use_listings_cache"]
)
NO_CACHE = {"Cache-Control": "no-cache"}
_SENSIBLE = "a path, file://, s3://, gs://, memory://, or another that fsspec knows (abfs://, sftp://, hdfs://, …)"


def split_options(storage_options: dict[str, Any]) -> tuple[dict[str, Any], str | None, float | None]:
    """What goes to the file system, and what is for us: `client` and `stall_timeout_s`. Raises ValueError."""
    options = dict(storage_options)
    client = options.pop("client", None)
    if client not in (None, "fsspec", "obstore"):
        raise ValueError(f'storage_options["client"] is {client!r}; it can be "fsspec" or "obstore"')
    return options, client, check_stall_timeout(options.pop("stall_timeout_s", STALL_TIMEOUT_S))


def check_url(url: str) -> None:
    """Raises ValueError for a URL of a bucket that names none, and for a scheme that is known in lower case."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() != scheme and scheme.lower() in (known := fsspec.available_protocols()) and scheme not in known:
        raise ValueError(f"{redaction.redact_url(url)}: a scheme is in lower case: write {scheme.lower()}://…")
    if scheme in S3_SCHEMES + GCS_SCHEMES and not rest.partition("/")[0]:
        raise ValueError(f"{redaction.redact_url(url)} names no bucket: write {scheme}://BUCKET/PATH")


def open_file_system(
    url: str,
    scheme: str,
    storage_options: dict[str, Any],
    *,
    stall_timeout_s: float | None = STALL_TIMEOUT_S,
    past_caches: bool = False,
) -> tuple[Any, str]:
    """fsspec's file system for `url`, with our limits of time and no retries of its own, and the path there.

    Its connections are its own. With `past_caches`, what is read from S3 and GCS is not to come from a cache between.
    A limit that the options set themselves stays as it is.
    """
    check_url(url)
    try:
        kind = _class_for(scheme)
    except ImportError as error:
        raise ImportError(f"{redaction.redact_url(url)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{redaction.redact_url(url)}: no scheme {scheme!r} is known; use {_SENSIBLE}") from error
    if scheme in GCS_SCHEMES and kind.__module__.startswith("gcsfs."):
        _check_gcs_options(kind, url, storage_options)
    # What is not for one class that is known stays out of its options: some hand all of them on, as SFTP's does to SSH.
    options: dict[str, Any] = kind._get_kwargs_from_urls(url) | storage_options
    connect_s = connect_timeout_s(stall_timeout_s)
    if scheme in S3_SCHEMES:
        tries = {"retries": {"total_max_attempts": 1, "mode": "standard"}}  # ours are above
        config = tries | {"connect_timeout": connect_s, "read_timeout": stall_timeout_s}
        config["max_pool_connections"] = _MOST_CONNECTIONS  # botocore has 10, aiohttp 100
        given = dict(options.get("config_kwargs") or {})
        if "http_session_cls" not in given:
            connector = {"socket_factory": socket_factory(stall_timeout_s)} | dict(given.get("connector_args") or {})
            given |= {"http_session_cls": _s3_session(connect_s), "connector_args": connector}
        options["config_kwargs"] = config | given
    elif scheme in GCS_SCHEMES:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=stall_timeout_s)
        options.setdefault("requests_timeout", timeout)
        given = dict(options.get("session_kwargs") or {})
        if "connector" not in given and not _has_client_certificate():
            given["connector"] = fsspec.asyn.sync(fsspec.asyn.get_loop(), _connector, stall_timeout_s)
        given["trace_configs"] = [*(given.get("trace_configs") or []), _refusing_redirects()]
        options["session_kwargs"] = {"response_class": _bounded_response()} | given
    elif scheme in redaction.HTTP_SCHEMES:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=stall_timeout_s)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True} | dict(options.get("client_kwargs") or {})
        options.setdefault("get_client", functools.partial(_http_client, connect_s))
    file_system = kind(**{"skip_instance_cache": True} | options)  # fsspec takes that out again
    if "use_listings_cache" not in options:
        _cache_no_listings(file_system)
    path = str(kind._strip_protocol(url))
    # One try each: retries are ours, above, where they are bounded, logged once and know what must not be tried again.
    if scheme in S3_SCHEMES:
        file_system.retries = 1
        if file_system.session is None:
            http_session = _s3_session(connect_s)
            try:
                file_system.session = asynchronous_session(file_system.kwargs, http_session, stall_timeout_s)
            except TypeError as error:  # s3fs hands on what it does not know itself
                raise from_client_error(error, "open", redaction.redact_url(url), options=file_system.kwargs) from error
        if past_caches:
            for verb in ("GetObject", "ListObjectsV2", "HeadObject"):
                _on_s3_event(file_system, path.partition("/")[0], f"before-send.s3.{verb}", _ask_past_caches)
    elif scheme in GCS_SCHEMES and hasattr(kind._request, "__wrapped__"):
        file_system._request = MethodType(_checked(kind._request.__wrapped__, past_caches), file_system)
        login = file_system.credentials
        login.credentials = bounded_refresh(login.credentials, stall_timeout_s)
    return file_system, path


def _class_for(scheme: str) -> Any:
    kind = fsspec.get_filesystem_class(scheme)
    if scheme in GCS_SCHEMES and kind.__module__.startswith("gcsfs."):
        # The default class asks Google's gRPC endpoint of each bucket what it is, for half a minute where that is out
        # of reach. In a zonal one it writes in place, creates whatever is there, and logs what fails at the end.
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem
    return kind


def _check_gcs_options(kind: type, url: str, storage_options: dict[str, Any]) -> None:
    """Raises `UsageError` for an option that gcsfs does not know: it takes any, and passes over it."""
    known = _options_of(kind)
    unknown = sorted(set(storage_options) - known)
    if unknown:
        name = redaction.redact(unknown[0])
        raise UsageError(
            f"{redaction.redact_url(url)}: unknown storage option {name!r}; check storage_options, or -o of the "
            f"command. Known are {', '.join(sorted(known))}"
        )


def _options_of(kind: type) -> set[str]:
    takes = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return {each.name for each in takes if each.kind is each.POSITIONAL_OR_KEYWORD} - {"self"} | _OF_ALL_FSSPEC


def options_for_others(url: str, storage_options: dict[str, Any]) -> list[str]:
    """Which options are not for the storage at `url`, by name. Of another storage than S3 or GCS nobody knows: none."""
    scheme = url.partition("://")[0]
    if scheme not in S3_SCHEMES + GCS_SCHEMES or not storage_options:
        return []
    try:
        kind = _class_for(scheme)
    except ImportError:
        return []  # whoever opens it says so
    return sorted(set(split_options(storage_options)[0]) - _options_of(kind))


def _cache_no_listings(file_system: Any) -> None:
    cache = getattr(file_system, "dircache", None)
    if isinstance(cache, DirCache):
        cache.use_listings_cache = False
        cache.clear()


@functools.cache
def _s3_session(connect_s: float) -> Any:
    from aiobotocore.httpsession import AIOHTTPSession
    from botocore.exceptions import ClientError

    class Session(AIOHTTPSession):  # type: ignore[misc]
        """Sends bodies without asking first: aiohttp waits for "100 Continue" without limit; not all proxies say it.

        Of a reply that is collected, and not streamed, no more is read than a listing or an error can have. A redirect
        is a reply like others: aiohttp would follow it to any host, with the session's token, the keys and the data.
        """

        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            session._response_class = _bounded_response()
            return without_redirects(session)

        async def _create_connector(self, proxy_url: str | None) -> Any:
            return connect_in_time(await super()._create_connector(proxy_url), connect_s)

        async def send(self, request: Any) -> Any:
            if "Expect" in request.headers:
                del request.headers["Expect"]
            reply = await super().send(request)
            is_lost = 300 <= reply.status_code < 400 and "x-amz-bucket-region" not in reply.headers
            if is_lost and request.method == "HEAD":  # botocore would ask for the region by another HEAD, without end
                about = {"HTTPStatusCode": reply.status_code, "HTTPHeaders": dict(reply.headers)}
                raise ClientError({"Error": {"Code": str(reply.status_code)}, "ResponseMetadata": about}, "Head")
            return reply

    return Session


def _refusing_redirects() -> Any:
    """What makes a session of aiohttp's raise at a redirect: gcsfs would have it followed to any host."""
    import aiohttp

    async def refuse(session: Any, context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        headers = redirect.response.headers
        if "Location" in headers or "URI" in headers:  # without, 308 is how an upload goes on
            redirect.response.close()
            raise StrangeReplyError(f"a redirect ({redirect.response.status}) is not followed")

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(refuse)
    return tracing


async def _connector(stall_timeout_s: float | None) -> Any:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=_MOST_CONNECTIONS, socket_factory=socket_factory(stall_timeout_s))
    return connect_in_time(connector, connect_timeout_s(stall_timeout_s))


async def _http_client(connect_s: float, **words: Any) -> Any:
    import aiohttp

    if words.get("connector") is None:
        words["connector"] = connect_in_time(aiohttp.TCPConnector(limit=_MOST_CONNECTIONS), connect_s)
    return aiohttp.ClientSession(**words)


def connect_in_time(connector: Any, connect_s: float) -> Any:
    """The connector of aiohttp's, whose connections are there in time or not at all.

    aiohttp's own limits hold for TCP and TLS alone: not for names to be resolved, nor for a proxy's reply to CONNECT.
    Its limit for all of it would count the time in which connections are merely in use, too.
    """
    create = connector._create_connection

    async def create_in_time(*args: Any, **words: Any) -> Any:
        async with asyncio.timeout(connect_s):
            return await create(*args, **words)

    connector._create_connection = create_in_time
    return connector


@functools.cache
def _bounded_response() -> Any:
    import aiohttp

    class Response(aiohttp.ClientResponse):
        """A reply of which no more is read than was asked for, and one byte: gcsfs takes all that comes, unpacked.

        `StrangeReplyError` for a listing or an error that does not end.
        """

        async def read(self) -> bytes:
            if self._body is not None:
                return self._body
            wanted = RANGE.fullmatch(self.request_info.headers.get("Range", ""))
            is_part = wanted is not None and self.status < 400
            left = int(wanted[2]) - int(wanted[1]) + 2 if wanted and is_part else _MOST_REPLY_BYTES
            parts: list[bytes] = []
            try:
                while left > 0 and (part := await self.content.read(min(left, _READ_BYTES))):
                    check_wanted()
                    parts.append(part)
                    left -= len(part)
            except BaseException:
                self.close()
                raise
            if left <= 0:
                self.close()
                if not is_part:
                    raise StrangeReplyError(f"the reply has {_MOST_REPLY_BYTES:,} bytes, and does not end")
            self._body = b"".join(parts)
            return self._body

    return Response


def _has_client_certificate() -> bool:
    """Whether gcsfs makes a connector of its own, which shows the machine's certificate to Google."""
    from google.auth.transport import mtls

    return bool(mtls.should_use_client_cert() and mtls.has_default_client_cert_source())


def bounded_refresh(credentials: Any, stall_timeout_s: float | None) -> Any:
    """google-auth's credentials, whose request for a new token gives up as others do: its own limit is two minutes.

    Where the service for tokens has failed, and has refused nothing, they raise `TransportError`.
    """
    if not hasattr(credentials, "refresh"):
        return credentials
    from google.auth.exceptions import RefreshError, TransportError

    bounded = copy.copy(credentials)  # the user's own may be used elsewhere
    refresh = bounded.refresh

    def refresh_in_time(request: Callable[..., Any]) -> None:
        def ask(*args: Any, **words: Any) -> Any:
            if words.get("timeout") is None:
                words["timeout"] = stall_timeout_s
            return request(*args, **{"allow_redirects": False} | words)  # what is sent is a secret

        setattr(ask, "session", getattr(request, "session", None))  # noqa: B010 - some look for it
        try:
            refresh(ask)
        except RefreshError as error:
            if error.retryable or _is_failure(error.__cause__):
                raise TransportError(str(error)) from error
            raise

    bounded.refresh = refresh_in_time
    return bounded


def _is_failure(error: BaseException | None) -> bool:
    """Whether google-auth got no answer of a machine's service for tokens, or none about who asks."""
    from google.auth.exceptions import TransportError

    status = getattr(error.args[-1], "status", 500) if error is not None and error.args else 500
    return isinstance(error, TransportError) and (status == 429 or status >= 500)


def parse_listings_quickly(file_system: Any, bucket: str) -> None:
    """From here on s3fs's client passes over the times in listings: parsing them takes 70 of 90 ms for 1,000 names."""
    _on_s3_event(file_system, bucket, "before-parse.s3.ListObjectsV2", _drop_times)


def _on_s3_event(file_system: Any, bucket: str, event: str, handler: Callable[..., None]) -> None:
    client = fsspec.asyn.sync(file_system.loop, _s3_client, file_system, bucket)
    client.meta.events.register(event, handler, unique_id=f"ckptflow-{event}")  # once, however often it is called


async def _s3_client(file_system: Any, bucket: str) -> Any:
    await file_system.set_session()
    return await file_system.get_s3(bucket)


def _ask_past_caches(request: Any, **_: Any) -> None:
    request.headers.update(NO_CACHE)


def _drop_times(response_dict: dict[str, Any], **_: Any) -> None:
    response_dict["body"] = _TIME.sub(b"", response_dict["body"])


def _checked(once: Callable[..., Any], past_caches: bool) -> Callable[..., Any]:
    """gcsfs's one way to make a request, each reply held to be one to it."""

    async def request(file_system: Any, method: str, path: str, *args: Any, **words: Any) -> Any:
        asked = dict(words.pop("headers", None) or {})
        if past_caches and method == "GET":
            asked |= NO_CACHE
        reply = await once(file_system, method, path, *args, headers=asked, **words)
        check_gcs(method, path, words, asked, reply)
        return reply

    return request


def wants_checksum(storage_options: dict[str, Any], setting: str = "request_checksum_calculation") -> bool:
    """Whether S3 is sent checksums; with the setting "response_checksum_validation" whether it is asked for them."""
    chosen = dict(storage_options.get("config_kwargs") or {}).get(setting)
    chosen = chosen or os.environ.get(f"AWS_{setting.upper()}", "when_supported")
    return str(chosen).lower() != "when_required"
