"""Writer and reader on a real disk, through the same buffers that direct I/O needs."""

from __future__ import annotations

from pathlib import Path

from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.storage.local import LocalStore
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import check_sizes, read_tensors
from ckptflow.transfer.verify import verify_checkpoint
from tests.transfer.helpers import FOLDER, ArraySource, ArrayTarget, arrays_for, same_bits, write_checkpoint


def test_a_checkpoint_on_a_disk(tmp_path: Path) -> None:
    specs = [TensorSpec(f"t{i}", "float32", (700_001 + i,)) for i in range(8)] + [
        TensorSpec(f"s{i}", "bfloat16", (i,)) for i in range(200)
    ]
    arrays = arrays_for(specs)
    store, pool = LocalStore(str(tmp_path / "root")), BufferPool(2**23, 2**21)
    manifest = write_checkpoint(
        store, [ArraySource(specs, arrays), ArraySource(specs, arrays)], shard_bytes=2**21, pool=pool
    )
    entries = store.list(f"{FOLDER}/")
    check_sizes(manifest, {entry.key.partition("/")[2]: entry.size_bytes for entry in entries}, "root")
    target = ArrayTarget(manifest)
    read_tensors(store, FOLDER, manifest, map(Wanted, range(len(specs))), target, pool)
    assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(specs, arrays, strict=True))
    assert verify_checkpoint(store, FOLDER, manifest, pool) == []
    assert pool.made_bytes <= 2**23
