"""Which client speaks to which storage, with our limits of time, one try, and replies that are checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import MethodType
from typing import Any

import fsspec
import fsspec.asyn

from ckptflow.storage import faults
from ckptflow.storage.replies import check_gcs

S3_SCHEMES = ("s3", "s3a")
GCS_SCHEMES = ("gs", "gcs")
HTTP_SCHEMES = ("http", "https")
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUEST_TIMEOUT_S = 10, 60, 120
_TIME = re.compile(rb"<LastModified>[^<]*</LastModified>")
NO_CACHE = {"Cache-Control": "no-cache"}
_SENSIBLE = "a path, file://, s3://, gs://, memory://, or another that fsspec knows (abfs://, sftp://, hdfs://, …)"


def open_file_system(
    url: str, scheme: str, storage_options: dict[str, Any], *, past_caches: bool = False
) -> tuple[Any, str]:
    """fsspec's file system for `url`, with our limits of time and no retries of its own, and the path there.

    Its connections are its own. With `past_caches`, what is read from S3 and GCS is not to come from a cache between.
    """
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ImportError(f"{faults.redact_url(url)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{faults.redact_url(url)}: no scheme {scheme!r} is known; use {_SENSIBLE}") from error
    if scheme in GCS_SCHEMES and (storage_options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")):
        from gcsfs.core import GCSFileSystem  # the default class asks Google's gRPC endpoint, which no emulator has

        kind = GCSFileSystem
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    options |= kind._get_kwargs_from_urls(url) | storage_options
    if scheme in S3_SCHEMES:
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        tries = {"retries": {"total_max_attempts": 1, "mode": "standard"}}  # ours are above
        options["config_kwargs"] = timeouts | tries | dict(options.get("config_kwargs") or {})
    elif scheme in GCS_SCHEMES:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        options.setdefault("requests_timeout", timeout)
    elif scheme in HTTP_SCHEMES:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True} | dict(options.get("client_kwargs") or {})
    file_system = kind(**options)
    path = str(kind._strip_protocol(url))
    # One try each: retries are ours, above, where they are bounded, logged once and know what must not be tried again.
    if scheme in S3_SCHEMES:
        file_system.retries = 1
        if past_caches:
            for verb in ("GetObject", "ListObjectsV2", "HeadObject"):
                _on_s3_event(file_system, path.partition("/")[0], f"before-send.s3.{verb}", _ask_past_caches)
    elif scheme in GCS_SCHEMES and hasattr(kind._request, "__wrapped__"):
        file_system._request = MethodType(_checked(kind._request.__wrapped__, past_caches), file_system)
    return file_system, path


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


def wants_checksum(storage_options: dict[str, Any]) -> bool:
    chosen = dict(storage_options.get("config_kwargs") or {}).get("request_checksum_calculation")
    chosen = chosen or os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    return str(chosen).lower() != "when_required"
