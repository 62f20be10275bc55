"""What is in storage takes memory and time in proportion to its bytes, whatever is in it."""

from __future__ import annotations

import gc
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import crc32c
import pytest

from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.errors import CorruptCheckpointError
from ckptflow.format import boxes
from ckptflow.format.manifest import Manifest, decode
from ckptflow.format.shard import parse_header
from ckptflow.storage.faults import from_client_error
from ckptflow.storage.redaction import redact
from ckptflow.testing import MemoryStore

SHARD = "shard-00000-of-00001-0000.safetensors"


def body(folder: str = "000000000001-i0001", **more: Any) -> bytes:
    head = {"format": "ckptflow", "version": 1, "kind": "manifest", "folder": folder, "step": int(folder[:12])}
    head |= {"incarnation": 1, "run_id": "r", "writer_id": "w", "created_at": "2024-01-01T00:00:00+00:00"}
    head |= {"world_size": 1, "reason": "start", "shards": [], "tensors": []}
    return json.dumps(head | more, separators=(",", ":")).encode()


def sealed(text: bytes) -> bytes:
    return text[:-1] + b',"crc32c":"%08x"}' % crc32c.crc32c(text[:-1])


def with_slices(slices: list[dict[str, Any]], shape: list[int]) -> bytes:
    tensor = {"name": "t", "dtype": "int8", "shape": shape, "slices": slices}
    return body(shards=[{"name": SHARD, "size_bytes": 2**40, "crc32c": 0}], tensors=[tensor])


def six_axes(count: int) -> list[boxes.Box]:
    """Boxes that are no runs, and of which no two share a corner."""
    starts = itertools.islice(itertools.product(range(1, 80, 10), repeat=6), count)
    return [(start, (2,) * 6) for start in starts]


MANIFESTS: dict[str, Callable[[int], bytes]] = {
    "slices of six axes": lambda n: with_slices(
        [
            {"shard": 0, "offset": 64 * i, "start": start, "shape": shape, "crc32c": 0}
            for i, (start, shape) in enumerate(six_axes(n))
        ],
        [80] * 6,
    ),
    "a long lineage": lambda n: body(lineage=[f"{i:012d}-i{1 + i % 1000:04d}" for i in range(4 * n)]),
    "a list of numbers": lambda n: body(metadata=[300] * (20 * n)),
    "a dict": lambda n: body(metadata={str(i): 1 for i in range(10 * n)}),
    "many dicts": lambda n: body(metadata=[{"a": 1}] * (10 * n)),
    "many dicts, spelt otherwise": lambda n: body(metadata=[{"a": 1}] * (10 * n)).replace(b":", b": "),
    "many lists": lambda n: body(metadata=[[]] * (10 * n)),
    "many nodes": lambda n: body(object_graph={"nodes": [{}] * n}),
    "many aliases": lambda n: with_slices([], [1]).replace(
        b'"slices":[]', b'"slices":[],"aliases":' + json.dumps([str(i) for i in range(10 * n)]).encode()
    ),
    "a long number": lambda n: body(metadata="?").replace(b'"?"', b"9" * (100 * n)),
    "a long version": lambda n: body().replace(b'"version":1', b'"version":' + b"9" * (100 * n)),
    "a long format": lambda n: body().replace(b'"format":"ckptflow"', b'"format":"' + b"x" * (100 * n) + b'"'),
}  # fmt: skip


def memory_of(act: Callable[[], Any]) -> tuple[int, int]:
    """The most that `act` takes, and what is still taken when what it returned or raised is gone."""
    gc.collect()
    tracemalloc.start()
    try:
        result = act()
        peak = tracemalloc.get_traced_memory()[1]
        del result
        gc.collect()
        return peak, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_takes_a_small_multiple_of_its_bytes_and_leaves_none(name: str) -> None:
    data = sealed(MANIFESTS[name](2000))

    def read() -> Manifest | None:
        try:
            return decode(data, Manifest, "x")
        except CorruptCheckpointError:
            return None

    peak, left = memory_of(read)
    assert peak < 50 * len(data)
    assert left < 100_000


def test_a_cover_is_checked_in_memory_that_does_not_grow() -> None:
    few, many = six_axes(1000), six_axes(8000)

    def check(parts: list[boxes.Box]) -> None:
        with pytest.raises(ValueError, match="exactly once"):
            boxes.check_cover((80,) * 6, parts)

    check(few)
    assert memory_of(lambda: check(many))[0] < memory_of(lambda: check(few))[0] + 50_000


def test_covers_of_six_axes_are_told_from_what_is_none() -> None:
    cells = [(start, (2,) * 6) for start in itertools.product(range(0, 6, 2), repeat=6)]
    boxes.check_cover((6,) * 6, cells)
    for wrong in (cells[1:], [*cells[1:], cells[-1]], [*cells, cells[0]]):
        with pytest.raises(ValueError, match="exactly once"):
            boxes.check_cover((6,) * 6, wrong)


def test_a_damaged_manifest_is_remembered_by_its_reason_alone() -> None:
    store = MemoryStore()
    store.put("000000000001-i0001/manifest.json", memoryview(sealed(MANIFESTS["slices of six axes"](2000))))
    size = len(store.objects["000000000001-i0001/manifest.json"])
    (folder,) = list_root(store).committed
    summaries = Summaries(store)
    _, left = memory_of(lambda: str(summaries.get(folder)))
    assert isinstance(summaries.get(folder), CorruptCheckpointError)
    assert left < size / 10


def test_the_manifests_that_are_read_at_once_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    for step in range(1, 17):
        text = body(f"{step:012d}-i0001", metadata=[{"a": step}] * 1000)
        store.put(f"{step:012d}-i0001/manifest.json", memoryview(sealed(text)))
    monkeypatch.setattr("ckptflow.commit.catalog._READ_BYTES", 2 * 10_000)
    listing = list_root(store)
    one = memory_of(lambda: Summaries(store).get(listing.committed[0]) and None)[0]
    kept = memory_of(lambda: None)[0]

    class Forgetful(Summaries):
        def get(self, folder: Any) -> Any:
            super().get(folder)
            self.forget([folder])  # what is kept is not what is asked here

    peak, _ = memory_of(lambda: Forgetful(store).read_many(listing, listing.committed))
    assert peak - kept < 4 * one


# ---- time, as a ratio of two sizes in one run


def growth(act: Callable[[int], Any], size: int) -> float:
    """By how much eight times the size takes longer: 8 where it is linear, 64 where it is quadratic."""

    def seconds(count: int) -> float:
        spent = []
        for _ in range(3):
            start = time.thread_time()
            act(count)
            spent.append(time.thread_time() - start)
        return min(spent)

    act(size)
    return seconds(8 * size) / max(seconds(size), 1e-4)


def header(text: bytes) -> Callable[[], None]:
    data = len(text).to_bytes(8, "little") + text

    def read() -> None:
        with pytest.raises(ValueError, match=r"header|bytes|string|integer|value|dtype"):
            parse_header(data, len(data))

    return read


ENTRY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
HEADERS: dict[str, Callable[[int], bytes]] = {
    "a long shape": lambda n: ENTRY.replace(b"[0]", b"[" + b",".join([b"9999999"] * n) + b"]"),
    "a long shape of ones": lambda n: ENTRY.replace(b"[0]", b"[" + b",".join([b"1"] * n) + b"]"),
    "large numbers": lambda n: ENTRY.replace(b"[0]", b"[" + b",".join([b"9" * 4000] * 65) + b"]" + b" " * n),
    "a long number": lambda n: ENTRY.replace(b"[0]", b"[" + b"9" * n + b"]"),
    "a long text": lambda n: ENTRY.replace(b"U8", b"\\\\" * n),
    "a text without an end": lambda n: b'"' + b'\\"' * n,
    "spaces": lambda n: b" " * n,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_shards_header_takes_time_in_proportion_to_its_bytes(name: str) -> None:
    def read(count: int) -> None:
        header(b'{"a":' + HEADERS[name](count) + b"}")()

    assert growth(read, 4000) < 25


TEXTS: dict[str, Callable[[int], str]] = {
    "schemes": lambda n: "://" * n,
    "a word": lambda n: "a" * n,
    "a word with a scheme": lambda n: "a+" * n + "://x",
    "users": lambda n: "://a@" * n,
    "no users": lambda n: "://@" * n,
    "queries": lambda n: "a://b?c" * n,
    "fields": lambda n: "password" * n,
    "fields without an end": lambda n: "bearer" + " " * n,
    "passwords that begin": lambda n: "a://b:c " * n,
    "passwords without an end": lambda n: "a://b:" * n,
    "lines behind a query": lambda n: "a://b?c\n" * n,
    "lines behind a user": lambda n: "a://b\nc" * n,
    "parameters": lambda n: "/a;b" * n + "=",
    "paths with marks": lambda n: "/a?" * n,
    "escapes": lambda n: "%253a" * n,
    "characters of other scripts": lambda n: "\ufdfa" * n,
    "quotes": lambda n: "token='" * n,
    "names": lambda n: "token=" * n,
    "parts of a name": lambda n: "aB" * n + "Token=1",
    "options": lambda n: "--token " * n,
    "keys": lambda n: "-----BEGIN PRIVATE KEY-----" * n,
    "half tokens": lambda n: "eyJaaaaaaaaa." * n,
    "slashes": lambda n: "/" * n + "@",
    "elements": lambda n: "<Password>" * n,
    "elements with text": lambda n: "<Password>a" * n,
    "elements that do not end": lambda n: "<Password a='" * n,
    "elements with spaces": lambda n: "<Password>" + " \n" * n,
    "elements with escapes": lambda n: "&lt;Password&gt;" * n,
    "elements with escapes that do not end": lambda n: "&lt;Password &quot;" * n,
    "sections of elements": lambda n: "<Password><![CDATA[" * n,
    "comments in elements": lambda n: "<Password><!--" * n,
    "attributes": lambda n: "<a " + "b='token' " * n + ">",
    "pairs": lambda n: "name=token,value=" * n,
    "pairs of literals": lambda n: "name='token',value='" * n,
    "pairs far apart": lambda n: "name=token," + "value=a," * n,
    "lists": lambda n: "token=['" * n,
    "lists in lists": lambda n: "token=" + "[" * n,
    "signs": lambda n: "token" + "=" * n + ">",
    "what was not parsed": lambda n: "Further retries may succeed:" * n,
    "replies": lambda n: "<Message>" * n + "Debug source:",
    "codes": lambda n: "<Code>" * n + "Debug source:",
    "ranges": lambda n: "Requested " * n + "Debug source:",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_message_takes_time_in_proportion_to_its_length(name: str) -> None:
    assert growth(lambda n: redact(TEXTS[name](n)), 2000) < 25
    assert growth(lambda n: from_client_error(RuntimeError(TEXTS[name](n)), "read", "x"), 2000) < 25


def test_what_is_secret_is_found_as_before() -> None:
    found = {
        "s3://user:p/a?s#s@host/b": "s3://***",
        "1http://a.b/c?X-Signature=abc x": "1http://a.b/c?*** x",
        "(x=http://u:p@h/k?q, gs://v:w@i)": "(x=http://h/k?***",
        "a://x:y@b c://d@e": "a://b c://e",
    }
    for text, expected in found.items():
        assert redact(text).startswith(expected)
