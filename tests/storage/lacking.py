"""What S3-compatible servers lack, as rules for a proxy in front of one that lacks nothing."""

from __future__ import annotations

import re

from tests.storage.proxy import Reply, Rule


def error(code: str, message: str, status: int) -> Reply:
    """A refusal as S3 says it."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
    return Reply(
        status, b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode(), {"Content-Type": "application/xml"}
    )


def is_bulk_delete(line: str) -> bool:
    return line.startswith("POST") and re.search(r"\?delete(=|&|$)", line) is not None


def no_bulk_delete(reply: Reply) -> Rule:
    """Refuses DeleteObjects, which botocore sends with a CRC32 and without a Content-MD5."""
    return lambda line, headers: reply if is_bulk_delete(line) and "content-md5" not in headers else None


def no_condition(reply: Reply) -> Rule:
    """Refuses a PUT with If-None-Match."""
    return lambda line, headers: reply if line.startswith("PUT") and "if-none-match" in headers else None


def no_copies(reply: Reply) -> Rule:
    """Refuses CopyObject, and takes every other PUT."""
    return lambda line, headers: reply if "x-amz-copy-source" in headers else None


def no_checksums(reply: Reply) -> Rule:
    """Refuses what carries a checksum that S3 has taken since 2022, says that one follows, or asks for one."""

    def rule(line: str, headers: dict[str, str]) -> Reply | None:
        return reply if any(name.startswith(("x-amz-checksum-", "x-amz-sdk-c")) for name in headers) else None

    return rule


def no_writes(reply: Reply) -> Rule:
    """Refuses every PUT, as with a key for encryption that is disabled."""
    return lambda line, headers: reply if line.startswith("PUT") else None


def deleted(inner: str) -> Reply:
    """An answer to DeleteObjects."""
    text = f'<?xml version="1.0"?><DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</DeleteResult>'
    return Reply(200, text.encode(), {"Content-Type": "application/xml"})


NO_BULK_DELETE = [
    error("MissingContentMD5", "Missing required header for this request: Content-Md5.", 400),
    error("InvalidRequest", "DeleteObjects requires one valid Content-MD5 header", 400),
    error("MethodNotAllowed", "The specified method is not allowed against this resource.", 405),
    Reply(501),
    # Answered with success: nothing is said of any object; nothing of some; each is refused; there is a page.
    deleted(""),
    deleted("<Deleted><Key>nothing/there</Key></Deleted>"),
    deleted("<Error><Key>a/1</Key><Code>NotImplemented</Code><Message>no</Message></Error>"),
    deleted("<Error><Key>a/1</Key><Code>SomethingNew</Code></Error><Error><Key>a/2</Key><Code>No</Code></Error>"),
    Reply(200).page(),
]
UNKNOWN_CONDITIONS = [
    error("NotImplemented", "A header you provided implies functionality that is not implemented", 501),
    Reply(501),
    error("InvalidArgument", "Unsupported header 'if-none-match' received for this API call.", 400),
]
NO_COPIES = [
    error("AccessDenied", "no", 403),
    Reply(403),
    error("NotImplemented", "A header you provided implies functionality that is not implemented", 501),
    error("MethodNotAllowed", "The specified method is not allowed against this resource.", 405),
    Reply(501),
]
UNKNOWN_CHECKSUMS = [
    error("InvalidArgument", "Unsupported header 'x-amz-checksum-crc32c' received for this API call.", 400),
    error("NotImplemented", "A header you provided implies functionality that is not implemented", 501),
]
PERMANENT = [
    error("KMS.DisabledException", "arn:aws:kms:eu-west-1:1:key/2 is disabled.", 400),
    error("SomethingNew", "a code of next year", 422),
    Reply(400),
]
