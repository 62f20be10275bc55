"""What went wrong, in our words: one table per client from its raw errors to `ckptflow.errors`, and no secret in any.

A handler asks one question first: does trying again help? So every raw error becomes `StorageUnavailableError` (yes) or
one of the others (no: something is or is not there, a person must act, or make room). Messages say where, what and what
to do; `redaction` takes credentials out of whatever a client or a server put into its text.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from ckptflow.errors import (
    CkptflowError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.printable import said
from ckptflow.storage.redaction import redact
from ckptflow.storage.replies import DeleteError
from ckptflow.threads import saying

_FULL = "make room, raise the quota or the file-size limit; nothing older was deleted"
_ACCESS = "check the credentials, the permissions and whether the storage is mounted read-only"
_NOBODY = "nothing listens there: check the address, and that the server is running"
_AGAIN = "the storage may recover: try again later"
_PERMANENT = "this error is not retryable"
_CERTIFICATE = (
    "check the address, this machine's clock and the certificates that it trusts (SSL_CERT_FILE, AWS_CA_BUNDLE)"
)
_NO_CHECKSUMS = (
    "if the server knows no checksum headers, set AWS_REQUEST_CHECKSUM_CALCULATION and "
    "AWS_RESPONSE_CHECKSUM_VALIDATION to when_required, or "
    'storage_options={"config_kwargs": {"request_checksum_calculation": "when_required", '
    '"response_checksum_validation": "when_required"}}: the one is for writes, the other for reads'
)

_WANTS_CHECKSUMS = (
    "if the server asks for checksum headers, do not switch them off: leave AWS_REQUEST_CHECKSUM_CALCULATION, or "
    'storage_options={"config_kwargs": {"request_checksum_calculation": …}}, at when_supported'
)

# Local disk: errno -> (error, what to do).
LOCAL_FAULTS: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (ObjectNotFoundError, "not found"),
    errno.ENOTDIR: (ObjectNotFoundError, "a part of the path is a file, not a folder"),
    errno.EISDIR: (ObjectNotFoundError, "it is a folder, not a file"),
    errno.EEXIST: (ObjectExistsError, "the name is taken"),
    errno.ENOSPC: (StorageFullError, _FULL),
    errno.EDQUOT: (StorageFullError, _FULL),
    errno.EFBIG: (StorageFullError, _FULL),
    errno.EACCES: (StorageAccessError, _ACCESS),
    errno.EPERM: (StorageAccessError, _ACCESS),
    errno.EROFS: (StorageAccessError, _ACCESS),
    errno.EIO: (StorageUnavailableError, "look at the kernel's log: a failing disk or a lost network share"),
    errno.ESTALE: (StorageUnavailableError, "the network share was exported again: remount it if this persists"),
    errno.ETIMEDOUT: (StorageUnavailableError, _AGAIN),
    errno.EBUSY: (StorageUnavailableError, _AGAIN),
    errno.EMFILE: (StorageUnavailableError, "too many open files: raise `ulimit -n`"),
    errno.ENFILE: (StorageUnavailableError, "too many open files on this machine"),
}

# Object storage: the error codes that S3 and compatible storages send, and HTTP statuses if there is no better word.
_TRANSIENT_CODES = {
    "ConditionalRequestConflict", "InternalError", "OperationAborted", "PriorRequestNotComplete",
    "RequestLimitExceeded", "RequestThrottled", "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable",
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "BadDigest", "IncompleteBody",
    "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "302", "303", "307", "308", "408", "409", "425", "429",
    "500", "502", "503", "504", "TemporaryRedirect", "NoReply",
}  # fmt: skip
# Of these, what asks for fewer requests: the storage has answered, and said that it is busy. No answer, or a failure of
# its own (500, 502, 504), is an outage, which fewer requests do not end, and after which as many pay as before.
_THROTTLING_CODES = {
    "RequestLimitExceeded", "RequestThrottled", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
    "TooManyRequests", "429", "503",
}  # fmt: skip
_ACCESS_CODES = {
    "AccessDenied", "AccountProblem", "AllAccessDisabled", "AuthorizationHeaderMalformed", "AuthFailure",
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidAccessKey", "InvalidClientTokenId",
    "InvalidSecurity", "InvalidToken", "NotSignedUp", "RequestExpired", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException", "401", "403",
}  # fmt: skip
_FULL_CODES = {
    "QuotaExceeded", "QuotaExceededException", "StorageQuotaExceeded", "XMinioStorageFull", "507",
}  # fmt: skip
_EXISTS_CODES = {"PreconditionFailed", "412", "304"}  # 304: MinIO, in older releases
_MISSING_CODES = {"NoSuchKey", "404"}
_BUCKET_CODES = {"NoSuchBucket", "InvalidBucketName", "PermanentRedirect", "301"}

REMOTE_FAULTS: dict[str, tuple[type[StorageError], str]] = {
    **dict.fromkeys(_TRANSIENT_CODES, (StorageUnavailableError, _AGAIN)),
    **dict.fromkeys(_ACCESS_CODES, (StorageAccessError, _ACCESS)),
    **dict.fromkeys(_FULL_CODES, (StorageFullError, _FULL)),
    **dict.fromkeys(_EXISTS_CODES, (ObjectExistsError, "the name is taken")),
    **dict.fromkeys(_MISSING_CODES, (ObjectNotFoundError, "not found")),
    **dict.fromkeys(_BUCKET_CODES, (StorageError, "no such bucket: check the URL and the region")),
}

# Python exceptions that carry no code, by class name so that no client has to be imported: whether trying again helps.
_TRANSIENT_CLASSES = {
    "ConnectionError", "TimeoutError", "FSTimeoutError", "IncompleteReadError", "IncompleteRead",
    "HTTPClientError", "ConnectionClosedError", "ConnectTimeoutError", "EndpointConnectionError",
    "ReadTimeoutError", "ResponseParserError", "ResponseStreamingError", "ClientConnectionError",
    "ClientPayloadError", "ServerDisconnectedError", "ChecksumError", "ProxyError", "ChunkedEncodingError",
    "ContentDecodingError", "Timeout", "TransportError", "gaierror", "AioConnectionClosedError",
    "FlexibleChecksumError", "StrangeReplyError", "StalledError", "EOFError", "SSHException", "error_temp",
}  # fmt: skip
_STALL_CLASSES = {"SocketTimeoutError", "ReadTimeoutError"}
_ACCESS_CLASSES = {
    "PermissionError", "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
    "TokenRetrievalError", "NoAuthTokenError", "ProfileNotFound", "SSOTokenLoadError",
    "UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError", "PermissionDeniedError",
    "UnauthenticatedError", "AuthenticationException", "BadHostKeyException",
}  # fmt: skip

# s3fs and MemoryFileSystem leave an errno where the code is gone.
_REMOTE_ERRNO = {
    errno.EBUSY: "503", errno.EIO: "500", getattr(errno, "EREMOTEIO", errno.EIO): "500", errno.EACCES: "403",
    errno.EPERM: "403", errno.ETIMEDOUT: "503", errno.ECONNRESET: "503", errno.ECONNREFUSED: "503", errno.EPIPE: "503",
}  # fmt: skip


def from_os_error(error: OSError, doing: str, where: str) -> StorageError:
    """The `StorageError` for a failed system call: `where` is the path, `doing` what was tried."""
    code = error.errno or 0
    kind, advice = LOCAL_FAULTS.get(code, (StorageError, _PERMANENT))
    mapped = kind(f"{where}: cannot {doing}: {os.strerror(code) if code else error}; {advice}")
    mapped.errno = error.errno
    return mapped


@contextmanager
def os_errors(doing: str, where: str) -> Iterator[None]:
    """A system call that fails in the block raises its `StorageError`. Our own errors stay as they are."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CkptflowError):
            raise
        raise from_os_error(error, doing, where) from error


# What was being handled when a client was called. Python takes it for the context of whatever the client raises.
_NOTHING: list[BaseException | None] = []
_handled: ContextVar[list[BaseException | None]] = ContextVar("_handled", default=_NOTHING)


def client_call() -> AbstractContextManager[None]:
    """An error that comes in this block is judged by what led to it in the block, not by what the caller handles."""
    return saying(_handled, sys.exception())


def from_client_error(
    error: BaseException,
    doing: str,
    where: str,
    secrets: Iterable[str] = (),
    *,
    sends_checksum: bool | None = None,
    options: Collection[str] = (),
) -> StorageError | UsageError:
    """The `StorageError` for whatever an object storage client raised: its code decides, then its class.

    A `UsageError` for one of the storage `options` that the client does not know, as some find out at their first
    request.

    `sends_checksum`: whether the request had checksum headers; None if no setting has a say in that.
    An error that no table knows is permanent: a retry that cannot help would only hide it for a minute.
    """
    kind, advice = _kind_of(error)
    text = text_of(error, secrets)
    unknown = (_UNKNOWN_OPTION.search(said(link)) for link in _links(error) if isinstance(link, TypeError))
    option = next((match[1] for match in unknown if match and match[1].strip("'") in options), None)
    if option is not None:
        name = redact(option, secrets)
        return UsageError(f"{where}: unknown storage option {name}; check storage_options, or -o of the command")
    shown = f"{text} {_all_codes(error)}"
    if kind is StorageError and sends_checksum and _ABOUT_CHECKSUMS.search(shown):
        advice = _NO_CHECKSUMS
    elif kind is StorageError and sends_checksum is False and _ASKS_FOR_CHECKSUMS.search(shown):
        advice = _WANTS_CHECKSUMS
    is_unreachable = kind is StorageUnavailableError and _is_refused_connection(error)
    mapped = kind(f"{where}: cannot {doing}: {text}; {_NOBODY if is_unreachable else advice}")
    if isinstance(mapped, StorageUnavailableError):
        codes = {code.removeprefix("KMS.") for code in _all_codes(error)}
        mapped.asks_for_less = not _THROTTLING_CODES.isdisjoint(codes)
        mapped.is_unreachable = is_unreachable
    return mapped


def is_refused_request(error: BaseException) -> bool:
    """Whether the server answered that it does not take such a request, whatever that is about: not who asks, not that
    it is busy, and not that there is no such bucket. Another kind of request may do."""
    codes = _all_codes(error)
    kind, _ = _kind_of(error)
    is_answered = _status(codes) > 0 or isinstance(error, DeleteError)  # which a reply with 200 holds
    is_refused = kind is ObjectNotFoundError or (kind is StorageError and is_answered)
    return is_refused and not _BUCKET_CODES & set(codes)


def is_refused_condition(error: BaseException) -> bool:
    """Whether the server answered that it does not know a condition on a write (`If-None-Match`)."""
    is_named = {"NotImplemented", "501"} & set(_all_codes(error)) or _CONDITION.search(said(error))
    return bool(is_named) and is_refused_request(error)


def is_refused_copy(error: BaseException) -> bool:
    """Whether the server answered that it does not copy objects, or not for who asks: to write them may be allowed."""
    codes = _all_codes(error)
    names = {code for code in codes if not code.isdigit()}
    is_forbidden = "AccessDenied" in names or (not names and "403" in codes)
    return is_forbidden or (is_refused_request(error) and _kind_of(error)[0] is not ObjectNotFoundError)


def is_past_end(error: BaseException) -> bool:
    """Whether the server answered that an object ends before the range that was asked for."""
    return not {"416", "InvalidRange"}.isdisjoint(_all_codes(error))


def is_stall(error: BaseException) -> bool:
    """Whether the client gave a request up because nothing moved."""
    for link in _links(error):
        names = {base.__name__ for base in type(link).__mro__}
        if "StalledError" in names:
            return False  # says so itself
        if names & _STALL_CLASSES or (isinstance(link, OSError) and link.errno == errno.ETIMEDOUT):
            return True
        _, _, details = said(link).partition(_OBSTORE)
        if _TIMED_OUT in details and not _REPLIED_OR_CONNECTING.search(details):
            return True
    return False


def _is_refused_connection(error: BaseException) -> bool:
    """Whether nobody listens at the address."""
    links = [*_links(error)]
    is_errno = any(isinstance(link, OSError) and link.errno == errno.ECONNREFUSED for link in links)
    return is_errno or any("kind: ConnectionRefused" in said(link).partition(_OBSTORE)[2] for link in links)


def text_of(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """What a client's error says, on one line, without the secrets; cut, but only then, if it is long."""
    text = redact(_text_of(error), secrets)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _kind_of(error: BaseException) -> tuple[type[StorageError], str]:
    if any(_UNTRUSTED.search(f"{type(link).__name__}: {link}") for link in _links(error)):
        return StorageError, _CERTIFICATE
    codes = _all_codes(error)
    for code in codes:
        # What says most wins: a bucket's absence hides behind the same 404 as a key's.
        if code in _BUCKET_CODES:
            return REMOTE_FAULTS[code]
    for code in codes:
        code = code.removeprefix("KMS.")  # S3 hands on what its key service says
        if code in REMOTE_FAULTS:
            return REMOTE_FAULTS[code]
    # The server has answered, and no client's class or errno for it says more: s3fs makes an I/O error of any code that
    # it does not know.
    if _status(codes) >= 500 and _status(codes) not in (501, 505):
        return REMOTE_FAULTS["503"]
    if _status(codes):
        return StorageError, _PERMANENT
    for link in _links(error):
        if isinstance(link, FileExistsError):
            return REMOTE_FAULTS["412"]
        if isinstance(link, FileNotFoundError | IsADirectoryError | NotADirectoryError):  # of what has folders
            return REMOTE_FAULTS["404"]
        names = {base.__name__ for base in type(link).__mro__}
        provider = _PROVIDER.search(said(link))  # obstore: all that our credentials raise is a refusal to it
        if (provider and provider[1] in _TRANSIENT_CLASSES) or _CONTAINER_FAILED.search(said(link)):
            return REMOTE_FAULTS["503"]
        if names & _ACCESS_CLASSES:
            return REMOTE_FAULTS["403"]
        if names & _TRANSIENT_CLASSES:
            return REMOTE_FAULTS["503"]
        if isinstance(link, OSError) and said(link) == "Socket is closed":  # paramiko
            return REMOTE_FAULTS["503"]
        if isinstance(link, OSError) and link.errno in _REMOTE_ERRNO:
            return REMOTE_FAULTS[_REMOTE_ERRNO[link.errno]]
    return StorageError, _PERMANENT


def _all_codes(error: BaseException) -> list[str]:
    return [code for link in _links(error) for code in codes_of(link)]


def _status(codes: Iterable[str]) -> int:
    """The HTTP status of an error among the codes; 0 if there is none."""
    return next((int(code) for code in codes if re.fullmatch("[45][0-9]{2}", code)), 0)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _links(error: BaseException) -> Iterator[BaseException]:
    """The same, but for what is not the client's own."""
    for link in chain(error):
        if link in _handled.get() and link is not error:
            return
        yield link


def codes_of(error: BaseException) -> list[str]:
    """The S3 error code and HTTP status that one exception carries, as text; most telling first."""
    codes: list[str] = []
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        codes.append(str(response.get("Error", {}).get("Code", "")))
        codes.append(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
    # aiohttp's errors of what it read are no replies, and carry 400.
    is_reply = "HttpProcessingError" not in {base.__name__ for base in type(error).__mro__}
    for name in ("status", "status_code", "code"):  # aiohttp, which warns of its code, and gcsfs's HttpError
        value = getattr(error, name, None) if is_reply else None
        if isinstance(value, int | str):
            codes.append(str(value))
            break
    text = said(error)
    if _OBSTORE in text:  # the reply is in the text, whatever the class
        codes += re.findall(r"<Code>([\w.]+)</Code>", text) + re.findall(r"status code: (\d{3})", text)
        # No reply at all (refused, reset, timed out), or one to something else.
        if not codes and ("HTTP error" in text or _STRANGE.search(text)):
            codes.append("NoReply")
    elif type(error) is OSError and text.startswith("Forbidden"):  # gcsfs for 403
        codes.append("403")
    return [code for code in codes if code]


def _text_of(error: BaseException) -> str:
    text = said(error)
    if _OBSTORE in text:
        text, _, details = text.partition(_OBSTORE)
        reply, is_there, _ = text.partition("<Message>")[2].partition("</Message>")
        causes = _CAUSE.findall(details)  # of what came to no reply: refused, no such host, a certificate
        if is_there:
            text = f"{reply} ({', '.join(codes_of(error)[:1])})"
        elif causes:
            text = f"{text.rstrip()} ({causes[-1]})"
    return " ".join(text.split()) or type(error).__name__


_SHOWN = 400  # characters of a client's text
_OBSTORE = "Debug source:"  # what its messages carry at their end
_UNKNOWN_OPTION = re.compile(r"(?i)got (?:an )?unexpected keyword argument ('\w{1,100}')")  # of Python, and of botocore
_CAUSE = re.compile(r'(?:message|error): "([^"\\]{1,200})"')  # in there
_TIMED_OUT = "kind: Timeout"  # in there
_REPLIED_OR_CONNECTING = re.compile(r"\b(?:Status \{|Connect,)")  # the time is then not that of silence
# Texts come from servers and from storage: each of these takes time in proportion to its text, whatever that is.
# A server that does not know a header tells its name, or says no more than that one is not implemented.
_ABOUT_CHECKSUMS = re.compile(
    r"(?i)checksum|x-amz-(?:sdk|trailer)|aws-chunked|trailer|header you|unsupported header|\bnot ?implemented\b"
)
_ASKS_FOR_CHECKSUMS = re.compile(r"(?i)checksum|content-?md5")
_CONDITION = re.compile(r"(?i)if-none-match|conditional (?:put|write|request|header)")
_PROVIDER = re.compile(r"External [A-Z]{3} credential provider: ([A-Za-z]+):")
# botocore, which leaves nothing but this text: the service that gives a container its credentials has failed.
_CONTAINER_FAILED = re.compile(
    r"Received non 200 response (?:429|5\d\d) from container|Received error when attempting to retrieve container"
)
# Of Python and OpenSSL, and of obstore.
_UNTRUSTED = re.compile(r"SSLCertVerificationError|CERTIFICATE_VERIFY_FAILED|error: InvalidCertificate\(")
_STRANGE = re.compile(
    r"(?i)non-partial response|header missing from response|content.range header|Requested .{1,200}?, got "
)


def closed_error(url: str) -> CkptflowError:
    """What a verb raises on a store that has been closed."""
    return UsageError(f"{url}: this store is closed; open another one")
