"""docs/format.md is true: its example is what the writer writes, and a reader made from the page alone reads it all."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors
import xxhash
from hypothesis import given

from ckptflow.format import dtypes, values
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import (
    Claim,
    Manifest,
    Receipt,
    ShardRecord,
    TensorRecord,
    Timing,
    decode,
    digest_of,
    encode,
    encode_receipt,
)
from ckptflow.format.object_graph import GraphNode, ObjectGraph
from ckptflow.format.spec import TensorSpec
from ckptflow.storage.local import LocalStore
from tests.format import second_reader
from tests.format.test_values import same
from tests.format.test_values import values as any_values
from tests.transfer.helpers import Array, ArraySource, DictStore, arrays_for, write_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"
EXAMPLE = Folder(5, 1)


def example() -> DictStore:
    """The checkpoint of section 7."""
    specs = [
        TensorSpec("model/kernel", "float32", (2, 2)),
        TensorSpec("model/words", "string", (), dynamic=True),
        TensorSpec("model/mean", "float32", (2,), components="mean"),
    ]
    kernel: Array = np.array([[1, 2], [3, 4]], np.float32)
    words: Array = np.array([b"ab", b""], object)
    means: list[Array] = [np.array([1, 2], np.float32), np.array([3, 4], np.float32)]
    store = DictStore()
    layer = GraphNode(children={"kernel": 2, "mean": 3})
    graph = ObjectGraph(nodes=(GraphNode(children={"model": 1}), layer, "model/kernel", "model/mean"), model=1)
    sources = [ArraySource(specs, [kernel, words, mean]) for mean in means]
    write_checkpoint(store, sources, folder=EXAMPLE, object_graph=graph)
    _say_that_the_words_were_copied(store)
    return store


def _say_that_the_words_were_copied(store: DictStore) -> None:
    manifest = decode(store.objects[EXAMPLE.manifest_key], Manifest, "example")
    kernel, words, means = manifest.shards
    words = msgspec.structs.replace(
        words,
        version="2f1c8a-9a-18c6e0d5b2a40000",
        content=xxhash.xxh3_128_hexdigest(store.objects[EXAMPLE.key(words.name)]),
        copied_from=f"{Folder(3, 1)}/{words.name}",
    )
    copied = msgspec.structs.replace(manifest, family=1, shards=(kernel, words, means))
    store.objects[EXAMPLE.manifest_key] = encode(copied)


def blocks() -> tuple[str, tuple[str, str, str], int]:
    """The page's manifest; the shard's length, header and data; and how many spaces follow the header."""
    text = PAGE.read_text(encoding="utf-8").partition("## 7. Example")[2]
    (manifest,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    (shard,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    prefix, header, data = shard.splitlines()
    spaces = re.search(r"followed by (\d+) spaces", text)
    assert spaces
    return manifest.replace("\n", ""), (prefix, header, data), int(spaces[1])


def test_the_example_is_what_is_written() -> None:
    store = example()
    manifest, (prefix, header, data), spaces = blocks()
    assert store.objects[EXAMPLE.manifest_key].decode() == manifest
    shard = bytes.fromhex(prefix) + header.encode() + b" " * spaces + bytes.fromhex(data)
    assert store.objects[EXAMPLE.key("shard-00001-of-00002-0000.safetensors")] == shard


def test_the_second_reader_reads_the_example(tmp_path: Path) -> None:
    for key, data in example().objects.items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(data)
    found = second_reader.read_tensors(tmp_path / str(EXAMPLE))
    assert found["model/kernel"].tolist() == [[1, 2], [3, 4]]
    assert found["model/words"].tolist() == [b"ab", b""]
    assert found["model/mean"].tolist() == [2, 3]


SPECS = [
    *(TensorSpec(f"dtypes/{name}", name, (3, 5), name in ("string", "variant")) for name in dtypes.names()),
    *(TensorSpec(f"shapes/{i}", "float32", shape) for i, shape in enumerate([(), (0,), (4, 0), (1, 1, 7), (9, 5000)])),
    *(TensorSpec(f"of/{kind}", "int32", (2, 3), components=kind) for kind in ("sum", "first")),
    TensorSpec("strange ]", "int8", (3,)),
    TensorSpec("__metadata__", "int8", (3,)),
    TensorSpec("büro/0/重み", "complex128", (200, 41)),
]


def write(root: Path, world_size: int) -> tuple[Path, list[list[Array]]]:
    shared = arrays_for(SPECS)
    own = [arrays_for(SPECS, seed=w + 1) for w in range(world_size)]
    held = [[own[w][i] if spec.components else shared[i] for i, spec in enumerate(SPECS)] for w in range(world_size)]
    write_checkpoint(
        LocalStore(str(root)),
        [ArraySource(SPECS, arrays) for arrays in held],
        small_bytes=2**12,
        metadata=values.to_json({"note": ("x", b"y", float("inf"))}, "metadata"),
    )
    (folder,) = root.iterdir()
    return folder, held


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_second_reader_reads_real_checkpoints(tmp_path: Path, world_size: int) -> None:
    folder, held = write(tmp_path / "root", world_size)
    found = second_reader.read_tensors(folder)
    assert list(found) == [spec.name for spec in SPECS]
    for i, spec in enumerate(SPECS):
        read, expected = found[spec.name], held[0][i]
        if spec.components == "sum":
            expected = sum((arrays[i] for arrays in held[1:]), held[0][i])
        assert read.shape == expected.shape
        same_bits = read.tolist() == expected.tolist() if read.dtype == object else read.tobytes() == expected.tobytes()
        assert same_bits, spec
    metadata = second_reader.read_value(second_reader.read_manifest(folder)["metadata"])
    assert metadata == {"note": ("x", b"y", float("inf"))}


@pytest.mark.parametrize(
    "alike", [{}, {"重み": 2**32 - 1, "büro/0": 0, 'a "strange"\n\tname\x7f\x01': 7, "a/b": 5, "Z": 1}]
)
def test_the_second_reader_reads_receipts(tmp_path: Path, alike: dict[str, int]) -> None:
    receipt = Receipt(folder="f", writer_id="w", worker=1, world_size=2, digest=digest_of(alike), digests={"mean": 3})
    (tmp_path / "receipt").write_bytes(encode_receipt(receipt, alike))
    found, digests = second_reader.read_receipt(tmp_path / "receipt")
    assert digests == alike
    assert (found["worker"], found["digests"]) == (1, {"mean": 3})


def test_stock_safetensors_opens_every_shard_of_a_checkpoint(tmp_path: Path) -> None:
    folder, held = write(tmp_path / "root", 2)
    keys: set[str] = set()
    for shard in folder.glob("*.safetensors"):
        entries = dict(safetensors.deserialize(shard.read_bytes()))  # type: ignore[no-untyped-call]
        assert not keys & set(entries)
        keys |= set(entries)
        if "dtypes/float64" in entries:
            assert bytes(entries["dtypes/float64"]["data"]) == held[0][list(dtypes.names()).index("float64")].tobytes()
    assert {"dtypes/float64", "of/sum[0:1,0:2,0:3]", "strange ][0:3]", "__metadata__[0:3]"} <= keys


def test_the_second_reader_finds_damage(tmp_path: Path) -> None:
    folder, _ = write(tmp_path / "root", 1)
    shard = min(folder.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        second_reader.read_tensors(folder)
    shard.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="another size"):
        second_reader.read_tensors(folder)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step":', b'"stup":'))
    with pytest.raises(ValueError, match="seal"):
        second_reader.read_tensors(folder)


@given(any_values)
def test_the_second_reader_reads_values(value: Any) -> None:
    assert same(second_reader.read_value(values.to_json(value, "state")), value)


def test_the_second_reader_is_independent_and_short() -> None:
    source = Path(second_reader.__file__).read_text(encoding="utf-8")
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
    assert len(source.splitlines()) < 140


def documented(text: str, kinds: Sequence[type[msgspec.Struct]]) -> set[str]:
    return {field.encode_name for kind in kinds for field in msgspec.structs.fields(kind)} - set(
        re.findall(r"`(\w+)`", text)
    )


def test_every_member_and_dtype_is_on_the_page_and_the_page_is_short() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert (
        documented(text, [Manifest, Receipt, Claim, Timing, ShardRecord, TensorRecord, ObjectGraph, GraphNode])
        - {"format", "version", "kind"}
        == set()
    )
    named = set(re.findall(r"`(\w+)`", text)) | {"int16", "int32", "uint16", "uint32"}
    assert set(dtypes.names()) <= named
    assert len(text.splitlines()) < 200
