"""What a reply must show before it is believed. A proxy, a gateway or a sign-in page answers anything with 200.

A page of HTML parses as an S3 listing of nothing, as a write that was done, and as a deletion without errors.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote_plus

import crc32c

from ckptflow.errors import ObjectChangedError

# One request by botocore's name for it: `call("list_objects_v2", Bucket=…)` gives the parsed reply.
Request = Callable[..., Any]
RANGE = re.compile(r"bytes[ =](\d+)-(\d+)(?:/(\d+|\*))?")
_GENERATION = re.compile("[1-9][0-9]{0,17}")
_VERSION = re.compile(r'[^\x00-\x20"*,\x7f-\U0010ffff]{1,128}')


class StrangeReplyError(Exception):
    """A reply with 200 that is not one to the request. Worth another try: what is between may have been mended."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; something between here and the storage (a proxy, a sign-in page) may have answered")


class DeleteError(Exception):
    """One of the errors in the reply to a deletion of many, with its code."""

    def __init__(self, code: str, text: str, count: int) -> None:
        super().__init__(f"{text} ({code}; {count} in all)")
        self.code = code


def as_version(told: object) -> str | None:
    """An ETag without its quotes, or a generation, as a condition can name it.

    None for what is none: it is weak, could stand for several, or does not go into a header.
    """
    bare = str(told or "").strip('"')
    return bare if _VERSION.fullmatch(bare) else None


def check_range(status: int, headers: Mapping[str, str], size_bytes: int, start: int, length: int) -> None:
    """Raises unless a reply with `size_bytes` of body is to a request for `length` bytes from `start` on."""
    if status == 200 and size_bytes == 0 and headers.get("etag"):
        return  # an empty object, where the server does not say 416
    content_range = headers.get("content-range")
    found = RANGE.fullmatch(content_range or "")
    if status != 206 or found is None:
        raise StrangeReplyError(f"asked for a range, got status {status} and {size_bytes:,} bytes without one")
    first, last, total = int(found[1]), int(found[2]), found[3]
    is_all = last == start + length - 1 or total == str(last + 1)
    if first != start or not is_all or last >= start + length or size_bytes != last - first + 1:
        raise StrangeReplyError(
            f"asked for {length:,} bytes from byte {start:,} on, got {size_bytes:,} bytes said to be {content_range}"
        )


# ---- S3


def list_s3(call: Request, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of every object whose name begins with `prefix`, a page for each request."""
    token: str | None = None
    while True:
        more = {"ContinuationToken": token} if token else {}
        reply = call("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        before, token = token, reply.get("NextContinuationToken")
        entries = reply.get("Contents", [])
        is_listing = "Name" in reply and isinstance(reply.get("IsTruncated"), bool)
        # Compared as decoded: not every server encodes what it says it does.
        if not is_listing or unquote_plus(reply.get("Prefix") or "") != unquote_plus(prefix):
            raise StrangeReplyError("the reply is not the listing that was asked for")
        if any("Size" not in entry or not entry["Key"].startswith(prefix) for entry in entries):
            raise StrangeReplyError("the listing holds names that were not asked for")
        yield from ((entry["Key"], entry["Size"]) for entry in entries)
        if not reply["IsTruncated"]:
            return
        if not token or token == before:
            raise StrangeReplyError("the listing goes on, and does not say where")


def check_put(reply: Mapping[str, Any]) -> str | None:
    """The version. Raises unless this is S3's reply to a PUT, which has one, and no body."""
    headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if not reply.get("ETag") or headers.get("content-length", "0") != "0":
        raise StrangeReplyError("the reply is not one to a write, and nothing may have been written")
    return as_version(reply["ETag"])


def copy_s3(call: Request, bucket: str, source: str, name: str, version: str) -> str | None:
    """Copies one object inside a bucket, if it is that version; returns the version of the copy."""
    reply = call(
        "copy_object",
        Bucket=bucket,
        Key=name,
        CopySource={"Bucket": bucket, "Key": source},
        CopySourceIfMatch=f'"{version}"',
    )
    etag = (reply.get("CopyObjectResult") or {}).get("ETag")
    if not etag:
        raise StrangeReplyError("the reply is not one to a copy, and nothing may have been copied")
    return as_version(etag)


def check_delete(reply: Mapping[str, Any]) -> None:
    """Raises unless this is S3's reply to the deletion of one object: no body."""
    about = reply.get("ResponseMetadata", {})
    if about.get("HTTPStatusCode") != 204 and about.get("HTTPHeaders", {}).get("content-length") != "0":
        raise StrangeReplyError("the reply is not one to a deletion")


def delete_s3(call: Request, bucket: str, names: Sequence[str]) -> None:
    """Deletes up to a thousand objects; the reply must account for each."""
    objects = [{"Key": name} for name in names]
    reply = call("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": False})
    errors = reply.get("Errors", [])
    failed = [error for error in errors if error.get("Code") != "NoSuchKey"]
    if failed:
        first = failed[0]
        raise DeleteError(first.get("Code", ""), f"{first.get('Key')}: {first.get('Message')}", len(failed))
    if len(reply.get("Deleted", [])) + len(errors) < len(names):
        raise StrangeReplyError("the reply does not say of each object that it is deleted")


# ---- Google Cloud Storage, by its JSON API


def list_gcs(call: Request, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of every object whose name begins with `prefix`; `call` is gcsfs's."""
    token: str | None = None
    while True:
        more = {"pageToken": token} if token else {}
        reply = _of_kind("storage#objects", call("GET", "b/{}/o", bucket, prefix=prefix, **more)[1], "a listing")
        before, token = token, reply.get("nextPageToken")
        for entry in reply.get("items", []):
            if not str(entry.get("name")).startswith(prefix):
                raise StrangeReplyError("the listing holds names that were not asked for")
            yield entry["name"], int(entry["size"])
        if not token:
            return
        if token == before:
            raise StrangeReplyError("the listing goes on, and does not say where")


def put_gcs(call: Request, server: str, bucket: str, name: str, data: memoryview, *, is_new: bool) -> str | None:
    """Writes one object in one request; with `is_new`, where there is none. The service compares the checksum.

    Returns its version.

    gcsfs's own request ends a part at a text that is always the same, and that data may hold.
    """
    checksum = base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
    edge = secrets.token_hex(16)
    about = json.dumps({"name": name, "crc32c": checksum})
    head = (
        f"--{edge}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n"
        f"--{edge}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    body = b"".join((head.encode(), data, f"\r\n--{edge}--\r\n".encode()))
    headers = {"Content-Type": f'multipart/related; boundary="{edge}"'}
    path = f"{server}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
    condition = {"ifGenerationMatch": "0"} if is_new else {}
    _, told = call("POST", path, uploadType="multipart", headers=headers, data=body, **condition)
    reply = _of_kind("storage#object", told, "one to a write, and nothing may have been written")
    if int(reply.get("size", -1)) != data.nbytes or reply.get("crc32c", checksum) != checksum:
        raise StrangeReplyError(f"{data.nbytes:,} bytes were sent, and others, or another number of them, were written")
    return as_version(reply.get("generation"))


def copy_gcs(call: Request, bucket: str, source: str, name: str, version: str) -> str | None:
    """Copies one object inside a bucket, if it is that version; returns the version of the copy."""
    if not _GENERATION.fullmatch(version):  # but of the storage that a checkpoint was copied from
        raise ObjectChangedError(f"{source} is of a generation, and {version!r} is none")
    path = "b/{}/o/{}/rewriteTo/b/{}/o/{}"
    more: dict[str, str] = {"ifSourceGenerationMatch": version}
    done_bytes = -1
    while True:
        headers = {"Content-Type": "application/json"}
        told = call("POST", path, bucket, source, bucket, name, headers=headers, **more)[1]
        reply = _of_kind("storage#rewriteResponse", told, "one to a copy, and nothing may have been copied")
        if reply.get("done"):
            return as_version(dict(reply.get("resource") or {}).get("generation"))
        before_bytes, done_bytes = done_bytes, int(reply.get("totalBytesRewritten", -1))
        if done_bytes <= before_bytes or not reply.get("rewriteToken"):
            raise StrangeReplyError("the copy is not done, and does not say how it goes on")
        more["rewriteToken"] = reply["rewriteToken"]


def check_gcs(
    method: str, path: str, query: Mapping[str, Any], asked: Mapping[str, str], reply: tuple[Any, Any, Any, bytes]
) -> None:
    """Raises unless a reply of success is one to a read, a write or a deletion, where it is one of these.

    `path` is gcsfs's, a template or a whole URL; `asked` are the request's headers, `reply` is what gcsfs makes of it.
    """
    status, headers, _, body = reply
    if method == "GET" and "alt=media" in path:
        wanted = RANGE.fullmatch(asked.get("Range", ""))
        if wanted is not None:
            start, last = int(wanted[1]), int(wanted[2])
            check_range(status, headers, len(body), start, last - start + 1)
    elif method == "GET" and path == "b/{}/o/{}":
        _of_kind("storage#object", body, "one about an object")
    elif method == "POST" and query.get("uploadType") == "multipart":
        _of_kind("storage#object", body, "one to a write, and nothing may have been written")
    elif method == "POST" and (sent := RANGE.fullmatch(asked.get("Content-Range", ""))):
        _check_part(int(sent[2]), int(sent[3]), headers, body)
    elif method == "DELETE" and body.strip() not in (b"", b"null"):
        raise StrangeReplyError("the reply is not one to a deletion")


def _check_part(last: int, total: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raises unless a reply to a part, up to byte `last`, of an upload of `total` bytes says what became of it."""
    kept = RANGE.fullmatch(headers.get("Range", ""))
    if kept and (int(kept[2]) < last or last + 1 < total):
        return  # what is not kept is sent again
    reply = _of_kind("storage#object", body, "one to a part of a write, and nothing may have been written")
    if int(reply.get("size", -1)) != total:
        raise StrangeReplyError(f"{total:,} bytes were sent, and another number of them was written")


def _of_kind(kind: str, body: bytes, what: str) -> dict[str, Any]:
    try:
        reply = json.loads(body)
    except ValueError:
        reply = None
    if not isinstance(reply, dict) or reply.get("kind") != kind:
        raise StrangeReplyError(f"the reply is not {what}")
    return reply
