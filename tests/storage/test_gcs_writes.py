"""A write to Google Cloud Storage is believed where the reply says how much was written, and with what checksum."""

from __future__ import annotations

import json
from typing import Any

import gcsfs.core
import pytest

from ckptflow.places.files import staged
from ckptflow.places.remote import PART_BYTES
from ckptflow.storage.clients import open_file_system
from ckptflow.storage.opening import open_store
from ckptflow.storage.replies import StrangeReplyError, check_gcs, put_gcs
from ckptflow.testing import read_whole
from tests.servers import Server

MIB = 2**20


@pytest.mark.parametrize("data", [b"a\n--==0==--\nb", b"a\r\n--==0==\r\n\r\nb", b"", b"a" * (3 * MIB)], ids=len)
def test_data_may_hold_anything(fake_gcs: Server, data: bytes) -> None:
    store = open_store("gs://ckptflow-tests/writes", {**fake_gcs.storage_options, "client": "fsspec"})
    store.put("a/ü ?#%2F", memoryview(data))
    assert read_whole(store, "a/ü ?#%2F") == data
    assert [entry.size_bytes for entry in store.list("a/")] == [len(data)]


@pytest.mark.parametrize("wrong", [{"size": "3"}, {"crc32c": "AAAAAA=="}, {"size": None}])
def test_a_reply_to_another_write(wrong: dict[str, Any]) -> None:
    def call(*_: Any, data: bytes, **__: Any) -> tuple[dict[str, str], bytes]:
        told = {"kind": "storage#object", "size": "4"} | wrong
        return {}, json.dumps({name: value for name, value in told.items() if value}).encode()

    with pytest.raises(StrangeReplyError):
        put_gcs(call, "http://server", "bucket", "name", memoryview(b"data"), is_new=False)


OBJECT = json.dumps({"kind": "storage#object", "size": str(10 * MIB)}).encode()
SHORTER = json.dumps({"kind": "storage#object", "size": str(4 * MIB)}).encode()
PARTS: list[tuple[int, dict[str, str], bytes, bool]] = [
    (4 * MIB, {"Range": f"bytes=0-{4 * MIB - 1}"}, b"", True),
    (4 * MIB, {"Range": f"bytes=0-{MIB - 1}"}, b"", True),
    (4 * MIB, {}, b"", False),
    (4 * MIB, {}, b"<html>", False),
    (10 * MIB, {}, OBJECT, True),
    (10 * MIB, {"Range": f"bytes=0-{9 * MIB - 1}"}, b"", True),
    (10 * MIB, {"Range": f"bytes=0-{10 * MIB - 1}"}, b"", False),
    (10 * MIB, {}, b"", False),
    (10 * MIB, {}, SHORTER, False),
]


@pytest.mark.parametrize(("end", "headers", "body", "is_right"), PARTS)
def test_a_reply_to_a_part(end: int, headers: dict[str, str], body: bytes, is_right: bool) -> None:
    asked = {"Content-Range": f"bytes 0-{end - 1}/{10 * MIB}"}

    def check() -> None:
        check_gcs("POST", "http://server/upload", {}, asked, (200, headers, None, body))

    if is_right:
        check()
    else:
        with pytest.raises(StrangeReplyError):
            check()


def test_a_large_file_is_written_in_parts(fake_gcs: Server) -> None:
    options = fake_gcs.storage_options
    data = bytes(range(256)) * (2 * PART_BYTES // 256 + 1)
    with staged("gs://ckptflow-tests/writes-large", overwrite=True, storage_options=options) as path:
        with open(path, "wb") as file:
            file.write(data)
    store = open_store("gs://ckptflow-tests", options)
    assert read_whole(store, "writes-large") == data


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_no_class_that_asks_what_kind_of_bucket_it_is(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    file_system, _ = open_file_system(f"{scheme}://bucket/run", scheme, {"token": "anon"})
    assert type(file_system) is gcsfs.core.GCSFileSystem
