"""Manifest, receipt and claim against every bit that flips, every cut, and members made to do harm."""

from __future__ import annotations

import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import crc32c
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.errors import CorruptCheckpointError, UnknownVersionError
from ckptflow.format import manifest as manifest_module
from ckptflow.format.manifest import (
    Claim,
    Manifest,
    Receipt,
    ReceiptSlice,
    ShardRecord,
    SliceRecord,
    TensorRecord,
    check_manifest,
    decode,
    encode,
)
from ckptflow.format.object_graph import GraphNode, ObjectGraph, Zeros
from ckptflow.format.record import MAX_NAME_CHARACTERS, MAX_RANK
from ckptflow.format.values import to_json
from tests.processes import run_python

SHARD = "shard-00000-of-00001-0000.safetensors"
replace = msgspec.structs.replace


def piece(start: tuple[int, ...] = (0,), shape: tuple[int, ...] = (4,), **more: Any) -> SliceRecord:
    fields: dict[str, Any] = {"shard": 0, "offset": 64, "start": start, "shape": shape, "crc32c": 1}
    return SliceRecord(**(fields | more))


def tensor(name: str = "model/kernel", **more: Any) -> TensorRecord:
    return TensorRecord(**({"name": name, "dtype": "float32", "shape": (4,), "slices": (piece(),)} | more))


def manifest(**more: Any) -> Manifest:
    fields: dict[str, Any] = {
        "folder": "000000001500-i0007",
        "step": 1500,
        "incarnation": 7,
        "run_id": "run",
        "writer_id": "writer",
        "created_at": "2026-01-02T03:04:05Z",
        "world_size": 1,
        "reason": "start",
        "metrics": {"loss": 0.5},
        "metadata": to_json({"a": [1, (2.5,), b"x"]}, "metadata"),
        "shards": (ShardRecord(name=SHARD, size_bytes=1000, crc32c=5),),
        "tensors": (tensor(), tensor("model/bias", aliases=("bias",), slices=(piece(offset=128),))),
    }
    return Manifest(**(fields | more))


def seal(body: bytes) -> bytes:
    """A valid seal over any members: what an attacker can do too."""
    return body[:-1] + b',"crc32c":"%08x"}' % crc32c.crc32c(body[:-1])


def unsealed(record: Manifest | Receipt | Claim) -> bytes:
    return encode(record)[: -len(',"crc32c":"00000000"}')] + b"}"


CLAIM = Claim(
    number=7, run_id="run", writer_id="writer", reason="resume", host="h", pid=3, created_at="2026-01-02T03:04:05Z"
)
COPIED = ShardRecord(
    name=SHARD,
    size_bytes=1000,
    crc32c=5,
    version="5d41402abc4b2a76b9719d911017c592",
    content="0123456789abcdef" * 2,
    copied_from=f"000000001400-i0007-r2/{SHARD}",
)
RECEIPT = Receipt(
    folder="000000001500-i0007",
    writer_id="writer",
    worker=0,
    world_size=1,
    shards=(COPIED,),
    slices=(ReceiptSlice(tensor="a", shard=0, offset=64, start=(0,), shape=(4,), crc32c=1),),
    digests={"b": 7},
)


@pytest.mark.parametrize("record", [manifest(), RECEIPT, CLAIM], ids=lambda record: record.kind)
def test_records_come_back_and_every_damage_is_found(record: Any) -> None:
    data = encode(record)
    assert data == encode(record)
    assert data.startswith(b'{"format":"ckptflow","version":1,"kind":"%s",' % record.kind.encode())
    assert decode(data, type(record), "here") == record
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(CorruptCheckpointError):
                decode(bytes(changed), type(record), "here")
    for size in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            decode(data[:size], type(record), "here")
    for grown in (data + b" ", data + b"\0" * 512, b" " + data, data + data, b"\0" * len(data)):
        with pytest.raises(CorruptCheckpointError, match="here"):
            decode(grown, type(record), "here")


def test_what_was_copied_and_what_was_sent() -> None:
    name = SHARD.replace("-0000.", "-0001.")
    record = manifest(family=1, shards=(COPIED, ShardRecord(name=name, size_bytes=30, crc32c=5)))
    assert decode(encode(record), Manifest, "here") == record
    assert (record.size_bytes, record.copied_bytes, record.sent_bytes) == (1030, 1000, 30)


def test_one_record_is_not_taken_for_another() -> None:
    with pytest.raises(CorruptCheckpointError):
        decode(encode(CLAIM), Manifest, "here")
    with pytest.raises(CorruptCheckpointError):
        decode(encode(manifest()), Claim, "here")


def test_another_version_is_refused_by_name_whatever_else_it_holds() -> None:
    body = b'{"format":"ckptflow","version":2,"kind":"manifest","more":[{}]}'
    with pytest.raises(UnknownVersionError, match=r"version 2 .*upgrade ckptflow"):
        decode(seal(body), Manifest, "here")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"format":"other","version":1,"kind":"manifest"}',
        b'{"format":"ckptflow","version":1e400,"kind":"manifest"}',
        b'{"format":"ckptflow","version":"1","kind":"manifest"}',
        b'{"format":"ckptflow","version":1}',
        b'{"format":"ckptflow","version":1,"kind":"manifest"}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_bodies_that_are_none(body: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match="here"):
        decode(seal(body), Manifest, "here")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"step":1500', b'"step":1500,"step":1500'),
        (b'"step":1500', b'"step":1500.0'),
        (b'"step":1500', b'"step":-1500'),
        (b'"step":1500', b'"step":' + b"9" * 40),
        (b'"step":1500', b'"step":' + b"9" * 5000),
        (b'"step":1500', b'"step":null'),
        (b'"step":1500', b'"step":1501'),
        (b'"step":1500', b'"step":1500,"unknown":1'),
        (b'"step":1500', b'"step":1500,"metadata":' + b"[" * 100_000 + b"]" * 100_000),
        (b'"loss":0.5', b'"loss":NaN'),
        (b'"loss":0.5', b'"loss":1e999'),
        (b'"loss":0.5', b'"loss":null'),
        (b'"loss":0.5', b'"loss":0.5,"loss":0.25'),
        (b'"a":[1', b'"a":[NaN'),
        (b'"a":[1', b'"a":0,"a":[1'),
        (b'"writer_id":"writer"', b'"writer_id":"\\ud800"'),
        (b'"writer_id":"writer"', b'"writer_id":"\xed\xa0\x80"'),
        (b'"writer_id":"writer"', b'"writer_id":"\xff"'),
        (b'"writer_id":"writer"', b'"writer_id":"' + b"w" * 5000 + b'"'),
        (SHARD.encode(), b"../" + SHARD.encode()),
        (SHARD.encode(), b"manifest.json"),
        (SHARD.encode(), b"shard-00000-of-00002-0000.safetensors"),
        (b'"000000001500-i0007"', b'"../000000001500-i0007"'),
        (b'"reason":"start"', b'"reason":"other"'),
        (b'"reason":"start"', b'"reason":"start","lineage":[".."]'),
        (b'"reason":"start"', b'"reason":"start","restored":"/"'),
        (b'"float32"', b'"float31"'),
        (b'"float32"', b'"string"'),
        (b'"shape":[4]', b'"shape":[5]'),
        (b'"shape":[4]', b'"shape":[4611686018427387904,4611686018427387904]'),
        (b'"offset":64', b'"offset":985'),
        (b'"offset":64', b'"offset":120'),
        (b'"offset":64', b'"offset":-1'),
        (b'"shard":0', b'"shard":1'),
        (b'"model/bias"', b'"model/kernel"'),
        (b'"aliases":["bias"]', b'"aliases":["model/kernel"]'),
        (b'"model/bias"', b'""'),
        (b'"size_bytes":1000', b'"size_bytes":100'),
        (b'"crc32c":5', b'"crc32c":5,"content":"0123"'),
        (b'"crc32c":5', b'"crc32c":5,"content":"' + b"A" * 32 + b'"'),
        (b'"crc32c":5', b'"crc32c":5,"version":7'),
        (b'"crc32c":5', b'"crc32c":5,"version":"' + b"v" * 5000 + b'"'),
        (b'"crc32c":5', b'"crc32c":5,"copied_from":"../' + SHARD.encode() + b'"'),
        (b'"crc32c":5', b'"crc32c":5,"copied_from":"000000001400-i0007/manifest.json"'),
        (b'"crc32c":5', b'"crc32c":5,"copied_from":"000000001500-i0007/' + SHARD.encode() + b'"'),
        (b'"reason":"start"', b'"reason":"start","family":2'),
        (b'"reason":"start"', b'"reason":"start","family":true'),
    ],
)
def test_a_sealed_manifest_with_one_bad_member_is_refused(old: bytes, new: bytes) -> None:
    body = unsealed(manifest())
    assert old in body
    with pytest.raises(CorruptCheckpointError, match="here"):
        decode(seal(body.replace(old, new, 1)), Manifest, "here")


def test_other_writers_spelling_is_read() -> None:
    """Only the meaning counts: white space, escapes and the order of members may differ."""
    body = unsealed(manifest())
    for old, new in ((b'"step":1500', b'"step": 1500'), (b'"loss":0.5', b'"l\\u006fss":5e-1')):
        assert decode(seal(body.replace(old, new, 1)), Manifest, "here") == manifest()


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (manifest(tensors=(tensor(slices=()),)), "exactly once"),
        (manifest(tensors=(tensor(slices=(piece(), piece())),)), "exactly once"),
        (manifest(tensors=(tensor(slices=(piece((0, 0)),)),)), "rank"),
        (manifest(tensors=(tensor(), tensor("b"))), "overlap"),
        (manifest(tensors=(tensor(components="sum", shape=(4,)),)), "components"),
        (manifest(tensors=(tensor(components="sum", shape=(), slices=(piece((), ()),)),)), "components"),
        (manifest(tensors=(tensor(encoded_bytes=4),)), "do not go together"),
        (manifest(tensors=(tensor(shape=(1,) * 65, slices=(piece((0,) * 65, (1,) * 65),)),)), "axes"),
        (manifest(tensors=(tensor(shape=(2**62, 2**62, 0)),)), "larger than any storage"),
        (manifest(tensors=(tensor("n" * (MAX_NAME_CHARACTERS + 1)),)), "name"),
        (manifest(metrics={"loss": float("nan")}), "finite"),
        (manifest(shards=(ShardRecord(name=SHARD, size_bytes=1000, crc32c=5),) * 2), "shard twice"),
    ],
)
def test_what_does_not_fit_together_is_said(record: Manifest, why: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=why):
        check_manifest(record, "here")


@pytest.mark.parametrize(
    "more",
    [
        {"slices": (ReceiptSlice(tensor="a", shard=1, offset=64, start=(0,), shape=(4,), crc32c=1),)},
        {"worker": 1, "world_size": 2},
        {"shards": RECEIPT.shards * 2},
    ],
)
def test_receipts_agree_with_themselves(more: dict[str, Any]) -> None:
    with pytest.raises(CorruptCheckpointError, match="here"):
        decode(encode(replace(RECEIPT, **more)), Receipt, "here")


def test_bounds_hold_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {Manifest: 10_000, Receipt: 10_000, Claim: 100}
    monkeypatch.setattr(manifest_module, "_MAX_BYTES", bounds)
    with pytest.raises(CorruptCheckpointError, match="at most 10,000"):
        decode(b"x" * 10_001, Manifest, "here")
    with pytest.raises(ValueError, match="at most 100"):
        encode(CLAIM)  # what nobody could read back is not written


def test_brackets_do_not_buy_memory() -> None:
    count = 3 * 2**20
    body = unsealed(manifest()).replace(b'"a":[1', b'"a":[' + b"[]," * count + b"1")
    data = seal(body)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError, match="too many lists"):
            decode(data, Manifest, "here")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
texts = st.text(st.characters(codec="utf-8"), max_size=10)


@given(
    st.builds(
        manifest,
        metadata=json_values.map(lambda value: to_json(value, "metadata")),
        python_state=st.dictionaries(texts, json_values.map(lambda value: to_json(value, "state")), max_size=3),
        metrics=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        software=st.dictionaries(texts, texts, max_size=3),
        writer_id=texts,
        world_size=st.just(1),
    )
)
def test_whatever_passes_the_check_comes_back(record: Manifest) -> None:
    check_manifest(record, "here")
    assert decode(encode(record), Manifest, "here") == record


def test_many_tensors_and_the_largest_rank() -> None:
    size = 4 * 100_000 + 64
    many = tuple(
        tensor(f"t{i}", shape=(1,) * MAX_RANK, slices=(piece((0,) * MAX_RANK, (1,) * MAX_RANK, offset=64 + 4 * i),))
        for i in range(1000)
    )
    record = manifest(tensors=many, shards=(ShardRecord(name=SHARD, size_bytes=size, crc32c=5),))
    assert decode(encode(record), Manifest, "here") == record


def test_a_slice_for_each_row_is_checked_in_linear_time() -> None:
    rows = 20_000
    slices = tuple(piece((i, 0), (1, 4), offset=64 + 16 * i) for i in reversed(range(rows)))
    shards = (ShardRecord(name=SHARD, size_bytes=64 + 16 * rows, crc32c=5),)
    record = manifest(tensors=(tensor(shape=(rows, 4), slices=slices),), shards=shards)
    assert decode(encode(record), Manifest, "here") == record
    with pytest.raises(CorruptCheckpointError, match="exactly once"):
        check_manifest(replace(record, tensors=(tensor(shape=(rows, 4), slices=slices[1:]),)), "here")


def test_text_that_is_no_unicode_is_not_written() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode(replace(CLAIM, host="\ud800"))


GRAPH = ObjectGraph(
    nodes=(
        GraphNode(
            children={"model": 1, "büro/大": 0}, values={"table": {"-keys": "model/kernel", "-values": "model/bias"}}
        ),
        GraphNode(children=(2, 1), slots=(("momentum", 2, 3),)),
        "model/kernel",
        "model/bias",
        GraphNode(values={"table": {"": Zeros(dtype="string", shape=()), "-values": Zeros(dtype="int64", shape=(0,))}}),
    ),
    model=1,
)


def with_graph(graph: ObjectGraph) -> Manifest:
    return replace(manifest(), object_graph=graph)


def test_an_object_graph_comes_back_and_older_manifests_need_none() -> None:
    decoded = decode(encode(with_graph(GRAPH)), Manifest, "here")
    assert decoded.object_graph == GRAPH
    check_manifest(decoded, "here")
    assert decode(encode(manifest()), Manifest, "here").object_graph is None


NODE = GraphNode()
HOSTILE_GRAPHS: dict[str, bytes] = {
    "no nodes": b'{"nodes":[]}',
    "no root": b'{"nodes":["model/kernel"]}',
    "no such model": b'{"nodes":[{}],"model":1}',
    "a negative model": b'{"nodes":[{}],"model":-1}',
    "no such child": b'{"nodes":[{"children":{"x":1}}]}',
    "no such child in a list": b'{"nodes":[{"children":[0,1]}]}',
    "a negative child": b'{"nodes":[{"children":[-1]}]}',
    "a huge child": b'{"nodes":[{"children":[18446744073709551616]}]}',
    "no such slot": b'{"nodes":[{"slots":[["m",0,1]]}]}',
    "no such variable of a slot": b'{"nodes":[{"slots":[["m",1,0]]}]}',
    "half a slot": b'{"nodes":[{"slots":[["m",0]]}]}',
    "no such tensor": b'{"nodes":[{},"c"]}',
    "no such tensor in a value": b'{"nodes":[{"values":{"t":{"":"c"}}}]}',
    "zeros of no dtype": b'{"nodes":[{"values":{"t":{"":{"shape":[1]}}}}]}',
    "zeros of an unknown dtype": b'{"nodes":[{"values":{"t":{"":{"dtype":"float7","shape":[1]}}}}]}',
    "too many zeros": b'{"nodes":[{"values":{"t":{"":{"dtype":"int8","shape":[65537]}}}}]}',
    "far too many zeros": b'{"nodes":[{"values":{"t":{"":{"dtype":"int8","shape":[4611686018427387904,4]}}}}]}',
    "an unknown member": b'{"nodes":[{}],"x":1}',
    "an unknown member of a node": b'{"nodes":[{"x":1}]}',
    "a member twice": b'{"nodes":[{}],"nodes":[{}]}',
    "another type": b'[["model/kernel"]]',
    "a number for a node": b'{"nodes":[{},7]}',
    "an empty edge": b'{"nodes":[{"children":{"":0}}]}',
}


@pytest.mark.parametrize("name", HOSTILE_GRAPHS)
def test_a_hostile_object_graph_is_refused(name: str) -> None:
    body = unsealed(with_graph(ObjectGraph(nodes=(NODE,))))
    assert decode(seal(body), Manifest, "here").object_graph is not None
    body = body.replace(b'"object_graph":{"nodes":[{}]}', b'"object_graph":' + HOSTILE_GRAPHS[name])
    assert HOSTILE_GRAPHS[name] in body
    with pytest.raises(CorruptCheckpointError, match="here"):
        decode(seal(body), Manifest, "here")


def test_a_graph_that_goes_in_circles_is_read() -> None:
    assert decode(encode(with_graph(ObjectGraph(nodes=(GraphNode(children=(0, 0)),)))), Manifest, "here")


def test_several_threads_may_be_the_first_to_read(tmp_path: Path) -> None:
    """msgspec looks at a type when it is first asked for it: by two threads at once, that has ended the process."""
    code = """
        import sys, threading
        from ckptflow.format import manifest, shard
        sys.setswitchinterval(1e-6)
        start = threading.Barrier(8)
        data = open(sys.argv[1], "rb").read()
        header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        head = len(header).to_bytes(8, "little") + header

        def read():
            start.wait()
            manifest.decode(data, manifest.Manifest, "x")
            start.wait()
            shard.parse_file(head, len(head))

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
    """
    (tmp_path / "manifest.json").write_bytes(encode(manifest()))
    for _ in range(5):  # it was not each time that it did
        done = run_python("-c", textwrap.dedent(code), str(tmp_path / "manifest.json"), fresh=True)
        assert (done.returncode, done.stderr) == (0, "")
