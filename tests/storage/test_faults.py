"""Raw errors of every client to ours: what is worth trying again, what is not, and no secret in any message."""

from __future__ import annotations

import errno

import aiohttp
import botocore.exceptions
import gcsfs.retry
import hypothesis.strategies as st
import obstore.exceptions
import pytest
import s3fs.errors
from hypothesis import given

from ckptflow.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from ckptflow.storage import faults, redaction
from ckptflow.storage.by_obstore import open_by_obstore
from ckptflow.storage.remote import RemoteCalls
from tests.ports import free_ports


def s3_error(code: str, status: int, message: str = "a message") -> BaseException:
    """What s3fs raises for an S3 reply: a translated error with botocore's as its cause."""
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: BaseException = s3fs.errors.translate_boto_error(botocore.exceptions.ClientError(response, "PutObject"))
    return error


def obstore_error(code: str, status: int, kind: type[BaseException] = obstore.exceptions.GenericError) -> BaseException:
    """What obstore raises for an S3 reply, as seen from its release 0.12."""
    reply = f"<Error><Code>{code}</Code><Message>a message</Message></Error>" if code else ""
    return kind(
        f"Generic S3 error: Error performing PUT http://host/bucket/key in 1ms - Server returned non-2xx status code: "
        f"{status} Some Words: {reply}\n\nDebug source:\nGeneric {{ store: S3 }}"
    )


S3_CODES: list[tuple[str, int, type[StorageError]]] = [
    ("SlowDown", 503, StorageUnavailableError),
    ("ServiceUnavailable", 503, StorageUnavailableError),
    ("InternalError", 500, StorageUnavailableError),
    ("RequestTimeout", 400, StorageUnavailableError),
    ("RequestLimitExceeded", 503, StorageUnavailableError),
    ("ThrottlingException", 400, StorageUnavailableError),
    ("TooManyRequests", 429, StorageUnavailableError),
    ("ConditionalRequestConflict", 409, StorageUnavailableError),
    ("OperationAborted", 409, StorageUnavailableError),
    ("BadDigest", 400, StorageUnavailableError),
    ("504", 504, StorageUnavailableError),
    ("PreconditionFailed", 412, ObjectExistsError),
    ("NoSuchKey", 404, ObjectNotFoundError),
    ("NoSuchBucket", 404, StorageError),
    ("PermanentRedirect", 301, StorageError),
    ("AccessDenied", 403, StorageAccessError),
    ("403", 403, StorageAccessError),
    ("InvalidAccessKeyId", 403, StorageAccessError),
    ("SignatureDoesNotMatch", 403, StorageAccessError),
    ("ExpiredToken", 400, StorageAccessError),
    ("RequestTimeTooSkewed", 403, StorageAccessError),
    ("QuotaExceeded", 403, StorageFullError),
    ("XMinioStorageFull", 507, StorageFullError),
    ("EntityTooLarge", 400, StorageError),
    ("NotImplemented", 501, StorageError),
    ("MissingContentMD5", 400, StorageError),
    ("KMS.DisabledException", 400, StorageError),
    ("KMS.KMSInvalidStateException", 400, StorageError),
    ("KMS.ThrottlingException", 400, StorageUnavailableError),
    ("MethodNotAllowed", 405, StorageError),
    ("InvalidObjectState", 403, StorageAccessError),
    ("NeverHeardOf", 422, StorageError),
    ("NeverHeardOf", 451, StorageError),
    ("NeverHeardOf", 505, StorageError),
    ("NeverHeardOf", 500, StorageUnavailableError),
    ("520", 520, StorageUnavailableError),
    ("425", 425, StorageUnavailableError),
    ("304", 304, ObjectExistsError),
]


@pytest.mark.parametrize(("code", "status", "expected"), S3_CODES)
def test_s3_codes(code: str, status: int, expected: type[StorageError]) -> None:
    for error in (s3_error(code, status), obstore_error(code, status)):
        mapped = faults.from_client_error(error, "write", "s3://bucket/run/key")
        assert type(mapped) is expected
        assert str(mapped).startswith("s3://bucket/run/key: cannot write: ")
        assert "a message" in str(mapped)
        assert "Debug source" not in str(mapped)


NO_HEADERS = s3_error("InvalidArgument", 400, "Unsupported header 'x-amz-checksum-crc32c'")
HEADERS = s3_error("InvalidRequest", 400, "Content-MD5 OR x-amz-checksum- HTTP header is required")


@pytest.mark.parametrize(
    ("error", "sends", "advised"),
    [
        (NO_HEADERS, True, "set AWS_REQUEST_CHECKSUM_CALCULATION and AWS_RESPONSE_CHECKSUM_VALIDATION to when"),
        (NO_HEADERS, None, "not retryable"),
        (HEADERS, False, "do not switch them off"),
        (HEADERS, None, "not retryable"),
        (s3_error("NotImplemented", 501), False, "not retryable"),
    ],
)
def test_what_is_advised_of_checksums(error: BaseException, sends: bool | None, advised: str) -> None:
    """A setting is named where it can help: where such headers are sent, or were switched off and are asked for."""
    mapped = faults.from_client_error(error, "write", "s3://bucket/run/key", sends_checksum=sends)
    assert advised in str(mapped)
    assert str(mapped).count("AWS_REQUEST_CHECKSUM_CALCULATION") == ("retryable" not in advised)


CLIENT_ERRORS: list[tuple[BaseException, type[StorageError]]] = [
    (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), StorageUnavailableError),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), StorageUnavailableError),
    (botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x"), StorageUnavailableError),
    (botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"), StorageUnavailableError),
    (botocore.exceptions.NoCredentialsError(), StorageAccessError),
    (botocore.exceptions.PartialCredentialsError(provider="env", cred_var="x"), StorageAccessError),
    (botocore.exceptions.ParamValidationError(report="x"), StorageError),
    (aiohttp.ServerDisconnectedError(), StorageUnavailableError),
    (aiohttp.ClientPayloadError("cut off"), StorageUnavailableError),
    (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), StorageUnavailableError),
    (aiohttp.ServerTimeoutError(), StorageUnavailableError),
    (TimeoutError(), StorageUnavailableError),
    (ConnectionResetError(errno.ECONNRESET, "reset"), StorageUnavailableError),
    (gcsfs.retry.HttpError({"code": 429, "message": "slow down"}), StorageUnavailableError),
    (gcsfs.retry.HttpError({"code": 503, "message": "x"}), StorageUnavailableError),
    (gcsfs.retry.HttpError({"code": 401, "message": "Invalid Credentials"}), StorageAccessError),
    (gcsfs.retry.HttpError({"code": 400, "message": "x"}), StorageError),
    (OSError("Forbidden: https://storage.googleapis.com/b\nno access"), StorageAccessError),
    (gcsfs.retry.ChecksumError("x"), StorageUnavailableError),
    (FileExistsError("x"), ObjectExistsError),
    (FileNotFoundError("x"), ObjectNotFoundError),
    (PermissionError("x"), StorageAccessError),
    (obstore.exceptions.PermissionDeniedError("x"), StorageAccessError),
    (
        obstore.exceptions.UnauthenticatedError("… External AWS credential provider: ReadTimeoutError: Read timeout"),
        StorageUnavailableError,
    ),
    (
        obstore.exceptions.UnauthenticatedError("… External GCP credential provider: RefreshError: invalid_grant"),
        StorageAccessError,
    ),
    (obstore_error("", 503), StorageUnavailableError),
    *[
        (
            botocore.exceptions.CredentialRetrievalError(
                provider="container-role",
                error_msg=f"Error retrieving metadata: Received non 200 response {status} from container metadata: x",
            ),
            expected,
        )
        for status, expected in (
            (503, StorageUnavailableError),
            (429, StorageUnavailableError),
            (403, StorageAccessError),
        )
    ],
    (
        obstore.exceptions.UnauthenticatedError(
            "… External AWS credential provider: CredentialRetrievalError: Error when retrieving credentials from "
            "container-role: Error retrieving metadata: Received error when attempting to retrieve container metadata"
        ),
        StorageUnavailableError,
    ),
    (
        obstore.exceptions.GenericError(
            "Error performing GET http://x in 1s - HTTP error: error sending\n\nDebug source:\n"
        ),
        StorageUnavailableError,
    ),
    (KeyError("anything else"), StorageError),
    (ValueError("anything else"), StorageError),
]


@pytest.mark.parametrize(("error", "expected"), CLIENT_ERRORS, ids=lambda value: type(value).__name__)
def test_client_errors(error: BaseException, expected: type[StorageError]) -> None:
    assert type(faults.from_client_error(error, "read", "s3://bucket/key")) is expected


ASK_FOR_LESS = {
    "SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "ThrottlingException", "TooManyRequests",
    "KMS.ThrottlingException",
}  # fmt: skip


@pytest.mark.parametrize(("code", "status", "kind"), S3_CODES)
def test_which_codes_ask_for_fewer_requests(code: str, status: int, kind: type[StorageError]) -> None:
    for error in (s3_error(code, status), obstore_error(code, status)):
        mapped = faults.from_client_error(error, "write", "s3://bucket/run/key")
        assert getattr(mapped, "asks_for_less", False) == (code in ASK_FOR_LESS)


@pytest.mark.parametrize(("error", "kind"), CLIENT_ERRORS, ids=lambda value: type(value).__name__)
def test_what_is_no_answer_does_not_ask_for_fewer_requests(error: BaseException, kind: type[StorageError]) -> None:
    """Connections that are refused, cut off or time out: an outage ends whatever the number of requests."""
    mapped = faults.from_client_error(error, "read", "s3://bucket/key")
    is_said = isinstance(error, gcsfs.retry.HttpError) or "status code: 503" in str(error)
    assert getattr(mapped, "asks_for_less", False) == (is_said and kind is StorageUnavailableError)


def test_the_table_names_every_code_once() -> None:
    groups = [faults._TRANSIENT_CODES, faults._ACCESS_CODES, faults._FULL_CODES, faults._EXISTS_CODES]
    groups += [faults._MISSING_CODES, faults._BUCKET_CODES]
    assert sum(map(len, groups)) == len(faults.REMOTE_FAULTS)


LOCAL: list[tuple[int, type[StorageError]]] = [
    (errno.ENOSPC, StorageFullError), (errno.EDQUOT, StorageFullError), (errno.EFBIG, StorageFullError),
    (errno.EACCES, StorageAccessError), (errno.EPERM, StorageAccessError), (errno.EROFS, StorageAccessError),
    (errno.ENOENT, ObjectNotFoundError), (errno.EIO, StorageUnavailableError), (errno.ESTALE, StorageUnavailableError),
    (errno.ETIMEDOUT, StorageUnavailableError), (errno.ELOOP, StorageError), (errno.ENAMETOOLONG, StorageError),
]  # fmt: skip


@pytest.mark.parametrize(("number", "expected"), LOCAL)
def test_local_errors(number: int, expected: type[StorageError]) -> None:
    mapped = faults.from_os_error(OSError(number, "whatever"), "write", "/data/run/key")
    assert type(mapped) is expected
    assert mapped.errno == number
    assert str(mapped).startswith("/data/run/key: cannot write: ")
    assert ";" in str(mapped)  # what to do


@pytest.mark.parametrize("code", ["NoSuchKey", "NoSuchBucket", "AccessDenied", "InvalidRange"])
def test_what_the_caller_was_handling_does_not_count(code: str) -> None:
    """A listing that looks whether it is the bucket that is missing is itself made while a 404 is handled."""

    def listing() -> None:
        with RemoteCalls("s3://bucket", {}, None)._mapped("list"):
            try:
                raise ConnectionResetError("cut off")
            except OSError as error:
                if not faults.is_past_end(error):
                    raise

    try:
        raise s3_error(code, 404)
    except Exception:
        with pytest.raises(StorageUnavailableError):
            listing()


def test_what_led_to_an_error_counts() -> None:
    def listing() -> None:
        with RemoteCalls("s3://bucket", {}, None)._mapped("list"):
            try:
                raise s3_error("NoSuchKey", 404)
            except Exception:
                raise RuntimeError("the client's own")  # noqa: B904 - without a cause

    with pytest.raises(ObjectNotFoundError):
        listing()


# ---- secrets


SECRETS = ["AKIAPLANTEDKEY000001", "planted/secret+key/aaaaaaaaaaaaaaaaaaaaa", "planted-session-token"]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_known_secret_in_running_text(secret: str) -> None:
    error = faults.from_client_error(OSError(f"key {secret} was refused"), "read", "s3://b/k", [secret])
    assert "key *** was refused" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:{}@host/path was refused",
        "https://{}@host/path?x=1 was refused",
        "GET https://host/b/k?X-Amz-Signature={}&X-Amz-Date=1 failed",
        "header Authorization: Bearer {} refused",
        "'Authorization': 'Bearer {}'",
        "aws_secret_access_key={} wrong",
        '{{"access_token": "{}"}}',
    ],
)
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("is_known", [True, False])
def test_no_secret_in_a_message(text: str, secret: str, is_known: bool) -> None:
    error = faults.from_client_error(OSError(text.format(secret)), "read", "s3://b/k", [secret] if is_known else [])
    assert secret not in str(error)
    assert "s3://b/k: cannot read: " in str(error)


def test_a_message_is_left_as_it_is_where_nothing_is_secret() -> None:
    text = "The request signature we calculated does not match the signature you provided. Check your key."
    assert redaction.redact(text) == text
    assert redaction.redact("see https://host:8333/bucket/key for more") == "see https://host:8333/bucket/key for more"


@given(user=st.text("abcdef019", min_size=4, max_size=12), path=st.text("abcxyz/._-", max_size=20))
def test_a_redacted_url_keeps_its_place_and_loses_its_user(user: str, path: str) -> None:
    url = redaction.redact_url(f"ftp://{user}XX:{user}YY@host:21/{path}?sig={user}ZZ")
    assert not any(f"{user}{mark}" in url for mark in ("XX", "YY", "ZZ"))
    assert url.startswith("ftp://host:21/")
    assert path.lstrip("/") in url


def test_what_obstore_met_is_told() -> None:
    """Its own text ends before the cause."""
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint}}
    store = open_by_obstore("s3://bucket/run", options, is_required=True)
    assert store is not None
    with pytest.raises(StorageUnavailableError, match=r"\(Connection refused\); nothing listens there") as refused:
        store.get("x", memoryview(bytearray(1)))
    assert refused.value.is_unreachable
