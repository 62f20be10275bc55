"""Writer and reader on a real disk, through the same buffers that direct I/O needs."""

from __future__ import annotations

from pathlib import Path

from ckptflow.commit.catalog import read_manifest
from ckptflow.format.layout import Folder
from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.storage.local import LocalStore
from ckptflow.testing import CountingStore
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import check_sizes, read_tensors
from ckptflow.transfer.verify import Sound, verify_checkpoint
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


def test_a_file_that_checkpoints_share_is_verified_once(tmp_path: Path) -> None:
    """Not where manifests say the same of files that are not one, nor where they say another thing of one."""
    specs = [TensorSpec("still", "float32", (1000,))]
    arrays = arrays_for(specs)
    root, pool = tmp_path / "root", BufferPool(2**16, 2**16)
    store = CountingStore(LocalStore(str(root)))
    copied, apart, other = FOLDER, Folder(2, 1), Folder(3, 1)
    for folder, held in ((Folder(1, 1), arrays), (apart, arrays), (other, arrays_for(specs, seed=1))):
        write_checkpoint(store, [ArraySource(specs, held)], folder=folder)
    manifest = write_checkpoint(store, [ArraySource(specs, arrays)], folder=copied)
    shard = manifest.shards[0].name
    for folder in (Folder(1, 1), other):
        (root / str(folder) / shard).unlink()
        (root / str(folder) / shard).hardlink_to(root / str(copied) / shard)

    def verify(folder: Folder, sound: Sound) -> tuple[list[str], bool]:
        """What is wrong, and whether the shard was read."""
        store.calls.clear()
        found = verify_checkpoint(store, folder, read_manifest(store, folder), pool, sound=sound)
        return sorted({problem.shard for problem in found}), folder.key(shard) in store.keys("get")

    sound: Sound = {}
    assert verify(copied, sound) == ([], True)
    assert verify(Folder(1, 1), sound) == ([], False)
    assert verify(apart, sound) == ([], True)
    assert verify(other, sound)[0]
    with (root / str(copied) / shard).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    sound.clear()
    assert verify(copied, sound) == ([shard], True)
    assert verify(Folder(1, 1), sound) == ([shard], True)
