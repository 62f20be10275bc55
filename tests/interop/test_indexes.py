"""An index of several files is read in this process: it takes little memory, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop import safetensors_parts
from ckptflow.interop.keras import parts as keras_parts
from tests.processes import run_python

MIB = 2**20
ENTRY = b'"a": "b.safetensors"'
READERS: dict[str, Callable[[str, str], object]] = {
    "keras": lambda path, folder: keras_parts.shards_in(path),
    "safetensors": lambda path, folder: safetensors_parts.as_one_file(path, folder, folder, None, is_compared=False),
}
LISTS: dict[str, Callable[[int], bytes]] = {
    "of another member": lambda count: b'{"weight_map": {%s}, "more": [%s]}' % (ENTRY, b",".join([b"[]"] * count)),
    "of an entry": lambda count: b'{"weight_map": {%s, "c": [%s]}}' % (ENTRY, b",".join([b"[]"] * count)),
    "within one another": lambda count: b'{"weight_map": {%s}, "more": %s' % (ENTRY, b"[" * count),
    "objects": lambda count: b'{"weight_map": {%s}, "more": [%s]}' % (ENTRY, b",".join([b'{"":0}'] * count)),
}


@pytest.mark.parametrize("what", LISTS)
@pytest.mark.parametrize("reader", READERS)
def test_an_index_of_many_lists(reader: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{keras_parts.INDEX_SUFFIX if reader == 'keras' else safetensors_parts.INDEX_SUFFIX}"
    path.write_bytes(LISTS[what](1000))
    with pytest.raises(CorruptCheckpointError, match="too many lists and objects for its size"):
        READERS[reader](str(path), str(tmp_path))


def test_an_index_that_is_long(tmp_path: Path) -> None:
    """And many of them in one folder, which are read one after the other."""
    path = tmp_path / "m.weights.json"
    path.write_bytes(b'{"weight_map": {%s}}' % b",".join([ENTRY] * MIB))
    with pytest.raises(CorruptCheckpointError, match=r"longer than 16,777,216 bytes"):
        keras_parts.shards_in(str(path))


def test_names_may_have_brackets(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.json"
    names = {f"/layers[{number}][0][1]{{}}": "m_00000.weights.h5" for number in range(1000)}
    path.write_text(json.dumps({"weight_map": names}))
    assert keras_parts.shards_in(str(path)) == ["m_00000.weights.h5"]


def test_what_an_index_takes(tmp_path: Path) -> None:
    """At most some fifty times its bytes, as a manifest: as many entries as there can be."""
    path = tmp_path / "m.weights.json"
    entries = b",".join(b'"%x":"b"' % number for number in range(MIB))
    path.write_bytes(b'{"weight_map": {%s}}' % entries)
    size_bytes = path.stat().st_size
    assert 11 * MIB < size_bytes < 16 * MIB
    program = """
import resource, sys
from ckptflow.interop.keras import parts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert parts.shards_in(sys.argv[1]) == ["b"]
taken_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(taken_bytes)
"""
    done = run_python("-c", program, str(path))
    assert int(done.stdout) < 50 * size_bytes, done.stderr
