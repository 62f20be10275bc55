"""obstore's own client for s3:// and gs://, where the extra `fast` is installed and understands every option given.

Its fsspec class is not used: that ignores `mode="create"` and overwrites. Credentials, region and endpoint are those
that botocore and gcsfs would find, asked of them, so that installing the extra changes speed and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from ckptflow.errors import CkptflowError
from ckptflow.storage import faults, redaction
from ckptflow.storage.aws_sessions import blocking_session
from ckptflow.storage.by_fsspec import FsspecStore
from ckptflow.storage.clients import GCS_SCHEMES, NO_CACHE, S3_SCHEMES, bounded_refresh, wants_checksum
from ckptflow.storage.credentials import opening
from ckptflow.storage.replies import StrangeReplyError, as_version
from ckptflow.storage.stalls import STALL_TIMEOUT_S, StalledError, connect_timeout_s
from ckptflow.storage.store import Store
from ckptflow.storage.throttling import tell_of_refusal
from ckptflow.storage.wanted import check_wanted

_log = logging.getLogger("ckptflow.storage")

_CHUNK_BYTES = 2**19  # obstore holds so much of each request until it is copied: of 128 at once 64 MiB
_HASHED_BYTES = 2**20  # hashing what is larger takes longer than asking what is there
_NO_LIMIT = timedelta(days=365)  # None is obstore's own limit, 30 s
_CREDENTIALS_TTL = timedelta(minutes=5)  # how long one look at botocore's credentials, which renew themselves, is kept
_S3_OPTIONS = {
    "key", "username", "secret", "password", "token", "anon", "endpoint_url", "profile", "client_kwargs",
    "config_kwargs",
}  # fmt: skip
_CHECKSUM_OPTIONS = {"request_checksum_calculation", "response_checksum_validation"}
_S3_CLIENT_OPTIONS = {
    "endpoint_url", "region_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
}  # fmt: skip
_GCS_OPTIONS = {"token", "project", "endpoint_url"}


class _NotTranslatableError(CkptflowError):
    """Something in the options or the environment that only s3fs or gcsfs can honour; the text says what."""


def open_by_obstore(
    url: str,
    storage_options: dict[str, Any],
    stall_timeout_s: float | None = STALL_TIMEOUT_S,
    *,
    is_required: bool,
) -> Store | None:
    """The store, or None if fsspec must do it: another scheme, no obstore, or options that obstore has not.

    Where `is_required`, each of these raises ValueError or ImportError instead.
    """
    scheme = url.partition("://")[0]
    try:
        if scheme not in S3_SCHEMES + GCS_SCHEMES:
            raise _NotTranslatableError(f"obstore is used for s3:// and gs:// only, not for {scheme}://")
        if importlib.util.find_spec("obstore") is None:
            if is_required:
                raise ImportError(
                    f"{redaction.redact_url(url)}: obstore is not installed: pip install 'ckptflow[fast]'"
                )
            return None
        return ObstoreStore(url, storage_options, stall_timeout_s, is_required=is_required)
    except _NotTranslatableError as reason:
        if is_required:
            raise ValueError(f"{redaction.redact_url(url)}: {reason}") from None
        _log.debug("%s: through fsspec, not obstore: %s", redaction.redact_url(url), str(reason))
        return None


class ObstoreStore(FsspecStore):
    """S3 or Google Cloud Storage: bytes by obstore, one PUT per object, `create` by the service's own condition.

    Listing and deleting stay with fsspec: of a listing that is a proxy's page, obstore makes an empty one.
    """

    def __init__(
        self,
        url: str,
        storage_options: dict[str, Any],
        stall_timeout_s: float | None = STALL_TIMEOUT_S,
        *,
        is_required: bool = False,
    ) -> None:
        scheme, _, rest = url.partition("://")
        make = _s3_client if scheme in S3_SCHEMES else functools.partial(_gcs_client, is_required=is_required)
        self._make = functools.partial(make, rest.partition("/")[0], dict(storage_options), stall_timeout_s)
        with opening(url, storage_options):
            self._client = self._reader = self._make()
        super().__init__(url, storage_options, stall_timeout_s)
        self._slow_bytes: float = math.inf  # objects of that size and more go by fsspec: see _send_once

    def _sends_checksum_to(self, doing: str) -> bool | None:
        sends = super()._sends_checksum_to(doing) if doing != "read" else None
        return None if sends and "checksum_algorithm" not in self._client.config else sends  # obstore: to AWS alone

    def renew(self, key: str) -> None:
        super().renew(key)
        with suppress(Exception):
            self._reader = self._make(headers=NO_CACHE)

    def _send_once(self, path: str, data: memoryview, *, is_new: bool) -> str | None:
        """By obstore, while its writes come to an end within the limit.

        Its limit is one for the whole of a write, whether anything moves or not. A write that reaches it is given up,
        and the next try is made by fsspec, which can tell a slow one from one that stands still. So are others that are
        no smaller, until one of them was done in that time. It counts as a refusal: where the uplink is what is slow,
        too many at once are why none came to its end.
        """
        if data.nbytes >= self._slow_bytes:
            started = time.monotonic()
            version = super()._send_once(path, data, is_new=is_new)
            if time.monotonic() - started < (self._stall_timeout_s or math.inf):
                self._slow_bytes = math.inf
            return version
        try:
            return self._send_fast(path, data, is_new=is_new)
        except Exception as error:
            if self._stall_timeout_s is None or not faults.is_stall(error):
                raise
            self._slow_bytes = min(self._slow_bytes, data.nbytes)
            tell_of_refusal()  # fewer at once are each quicker; whether anything moved, obstore does not tell
            raise StalledError(f"the write was not done after {self._stall_timeout_s:g} s, and was given up") from error

    def _send_fast(self, path: str, data: memoryview, *, is_new: bool) -> str | None:
        import obstore

        flat = data.cast("B") if data.nbytes else memoryview(b"")
        mode: Any = "create" if is_new else "overwrite"
        result = obstore.put(self._client, path.partition("/")[2], flat, mode=mode, use_multipart=False)
        is_small = data.nbytes <= _HASHED_BYTES
        told = {(result["e_tag"] or "").strip('"')}
        own = {hashlib.md5(flat, usedforsecurity=False).hexdigest()} if is_small else set()
        if told == own:
            return self._version_of(result)
        # A large object, one that is encrypted with a key of its own, or the reply is a proxy's page: what is there?
        with suppress(FileNotFoundError):
            found = obstore.head(self._reader, path.partition("/")[2])
            if found["size"] == data.nbytes and (found["e_tag"] or "").strip('"') in told | own:
                return self._version_of(found)
        raise StrangeReplyError("the reply is not one to a write, and nothing may have been written")

    def _version_of(self, about: Any) -> str | None:
        """Of what obstore says of an object: the ETag on S3, on Google's the generation, which it calls a version."""
        return as_version(about.get("version") if self._is_gcs else about["e_tag"])

    def _read(self, path: str, into: memoryview, start: int) -> int:
        import obstore

        result = obstore.get(self._reader, path.partition("/")[2], options={"range": (start, start + len(into))})
        first, last = result.range
        if first != start or last != min(start + len(into), result.meta["size"]):
            raise StrangeReplyError(f"asked for {len(into):,} bytes from byte {start:,} on, got {first:,} to {last:,}")
        done = 0
        for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
            check_wanted()
            if done + len(chunk) > last - first:
                raise StrangeReplyError(f"{last - first:,} bytes were announced, and more came")
            into[done : done + len(chunk)] = memoryview(chunk)
            done += len(chunk)
        if done != last - first:
            raise StrangeReplyError(f"{last - first:,} bytes were announced, and {done:,} came")
        return done

    @property
    def _client_name(self) -> str:
        return "obstore"

    def _put_raw(self, path: str, data: memoryview) -> None:
        import obstore

        obstore.put(self._client, path.partition("/")[2], data, use_multipart=False)

    def _get_raw(self, path: str, length: int) -> Any:
        import obstore

        return obstore.get_range(self._client, path.partition("/")[2], start=0, length=length)


def _common(
    stall_timeout_s: float | None, headers: dict[str, str] | None, ca_bundle: str | None = None
) -> dict[str, Any]:
    """What both services get: bounded times, plain HTTP where the endpoint asks for it, one try (retries are ours)."""
    client: dict[str, Any] = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=connect_timeout_s(stall_timeout_s)),
        "timeout": _NO_LIMIT,  # of a whole request
    }
    if stall_timeout_s is not None:
        client["read_timeout"] = timedelta(seconds=stall_timeout_s)  # until the reply begins, then between its bytes
    if headers:
        client["default_headers"] = headers
    if ca_bundle:
        with open(ca_bundle, "rb") as pem:
            client["root_certificate"] = pem.read()
    return {"client_options": client, "retry_config": {"max_retries": 0}}


def _refuse_unknown(options: dict[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(name for name, value in options.items() if name not in known and value is not None)
    if unknown:
        raise _NotTranslatableError(f"obstore has no equivalent of {what} {', '.join(unknown)}")


def _s3_client(
    bucket: str, options: dict[str, Any], stall_timeout_s: float | None, headers: dict[str, str] | None = None
) -> Any:
    from obstore.store import S3Store

    _refuse_unknown(options, _S3_OPTIONS, "storage option")
    client_options = dict(options.get("client_kwargs") or {})
    _refuse_unknown(client_options, _S3_CLIENT_OPTIONS, "client_kwargs")
    _refuse_unknown(dict(options.get("config_kwargs") or {}), _CHECKSUM_OPTIONS, "config_kwargs")
    if bucket.endswith("--x-s3") or bucket.startswith("arn:"):
        raise _NotTranslatableError(f"the bucket {bucket} needs a protocol of its own")
    session, found = _botocore_session(options, client_options, stall_timeout_s)
    s3 = dict(found.meta.config.s3 or {})
    if s3.get("addressing_style") == "virtual" or s3.get("use_accelerate_endpoint"):
        raise _NotTranslatableError("botocore is configured for virtual-hosted or accelerated addresses")
    region = client_options.get("region_name") or session.get_config_variable("region")
    is_aws = found.meta.endpoint_url.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    if is_aws and not region:
        raise _NotTranslatableError("no region is configured, and only s3fs finds a bucket's region by itself")
    config: Any = {"region": region or "us-east-1", "endpoint": found.meta.endpoint_url}
    if is_aws and wants_checksum(options):
        config["checksum_algorithm"] = "CRC64NVME"  # checked by the server; obstore knows no crc32c
    common = _common(stall_timeout_s, headers, session.get_config_variable("ca_bundle"))
    if options.get("anon"):
        config["skip_signature"] = True
        return S3Store(bucket, config=config, **common)
    return S3Store(bucket, config=config, credential_provider=_s3_credentials(session), **common)


def _botocore_session(
    options: dict[str, Any], client_options: dict[str, Any], stall_timeout_s: float | None
) -> tuple[Any, Any]:
    """A botocore session with the user's credentials, and a client that knows region, endpoint and configuration."""
    session = blocking_session(options.get("profile"), stall_timeout_s)
    key = options.get("key") or options.get("username") or client_options.get("aws_access_key_id")
    secret = options.get("secret") or options.get("password") or client_options.get("aws_secret_access_key")
    token = options.get("token") or client_options.get("aws_session_token")
    if bool(key) != bool(secret):
        raise _NotTranslatableError("key and secret come together")
    if key:
        session.set_credentials(key, secret, token)
    endpoint = client_options.get("endpoint_url") or options.get("endpoint_url")
    return session, session.create_client("s3", region_name=client_options.get("region_name"), endpoint_url=endpoint)


def _s3_credentials(session: Any) -> Callable[[], Any]:
    credentials = session.get_credentials()
    if credentials is None:
        raise _NotTranslatableError("botocore finds no credentials")

    def provide() -> dict[str, Any]:
        now = credentials.get_frozen_credentials()  # renews itself where it can
        expires_at = datetime.now(UTC) + _CREDENTIALS_TTL
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": expires_at,
        }

    return provide


def _gcs_client(
    bucket: str,
    options: dict[str, Any],
    stall_timeout_s: float | None,
    headers: dict[str, str] | None = None,
    *,
    is_required: bool,
) -> Any:
    from obstore.store import GCSStore

    _refuse_unknown(options, _GCS_OPTIONS, "storage option")
    endpoint = options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
    if endpoint and not is_required:
        raise _NotTranslatableError("obstore speaks Google's XML API, which an emulator or another endpoint may lack")
    common = _common(stall_timeout_s, headers)
    if endpoint and options.get("token") == "anon":
        return GCSStore(bucket, config={"base_url": endpoint, "bearer_token": "anon"}, **common)
    provider = _gcs_credentials(options, stall_timeout_s)
    if provider is None:
        return GCSStore(bucket, config={"skip_signature": True}, **common)
    config: Any = {"base_url": endpoint} if endpoint else {}
    return GCSStore(bucket, config=config, credential_provider=provider, **common)


def _gcs_credentials(options: dict[str, Any], stall_timeout_s: float | None) -> Callable[[], Any] | None:
    """The token that gcsfs would send, renewed by google-auth; None for anonymous access."""
    from gcsfs.credentials import GoogleCredentials
    from google.auth.transport.requests import Request

    if options.get("token") == "anon":
        return None
    found = GoogleCredentials(options.get("project"), "full_control", options.get("token"), True).credentials
    if found is None or not hasattr(found, "refresh"):
        return None
    found = bounded_refresh(found, stall_timeout_s)

    def provide() -> dict[str, Any]:
        if not found.valid:
            found.refresh(Request())
        return {"token": found.token, "expires_at": found.expiry and found.expiry.replace(tzinfo=UTC)}

    return provide
