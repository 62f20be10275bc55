"""Any damage to the newest checkpoint gives the next older one, and a log line that says which, where and why."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ckptflow
from ckptflow import CheckpointManager, CheckpointNotFoundError, CorruptCheckpointError, UnknownVersionError
from ckptflow.format.manifest import Manifest, decode, encode
from tests.manager.states import Weights, committed

NEWEST = "000000000003-i0001"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    weights = Weights()
    with CheckpointManager(tmp_path, {"w": weights}, shard_bytes=2**16, memory_budget_bytes=2**18) as manager:
        for step in (1, 2, 3):
            weights.fill(step)
            manager.save(step)
    return tmp_path


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(at * len(data)), len(data) - 1)] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def nest(path: Path) -> None:
    path.write_bytes(b'{"format":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**34)  # sparse: nobody may read or allocate all of it


def swap(path: Path) -> None:
    """The same file of the checkpoint before: whole and valid, and not this one's."""
    shutil.copy(path.parent.parent / NEWEST.replace("3-i", "2-i") / path.name, path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flip first": lambda path: flip(path, 0.0),
    "flip middle": lambda path: flip(path, 0.5),
    "flip late": lambda path: flip(path, 0.97),
    "truncate": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "grow": grow,
    "zero": zero,
    "delete": Path.unlink,
    "nest": nest,
    "huge": huge,
    "swap": swap,
}


def restore(root: Path, weights: Weights) -> int:
    with CheckpointManager(root, {"w": weights}) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        return restored.step


def one(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that fits."""
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["manifest.json", "shard-*"])
def test_damage_gives_the_one_before(root: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGE[damage](one(root / NEWEST, name))
    weights = Weights()
    with caplog.at_level(logging.INFO, "ckptflow"):
        step = restore(root, weights)
    header_only = name.startswith("shard") and damage == "flip first"
    assert (step, weights.value()) in ([(3, 3), (2, 2)] if header_only else [(2, 2)])
    if step == 2 and not (name == "manifest.json" and damage == "delete"):
        assert NEWEST in caplog.text
        assert "step 2" in caplog.text


def test_a_lost_receipt_costs_nothing(root: Path) -> None:
    for receipt in (root / NEWEST).glob("receipt-*"):
        receipt.unlink()
    assert restore(root, Weights()) == 3


def test_the_fallback_is_saved_again_and_holds(root: Path) -> None:
    flip(one(root / NEWEST, "shard-*"), 0.5)
    weights = Weights()
    assert restore(root, weights) == 2
    assert "000000000002-i0002" in committed(root)
    assert restore(root, weights) == 2
    assert weights.value() == 2


def test_with_none_left_it_says_so(root: Path) -> None:
    for name in committed(root):
        flip(one(root / name, "shard-*"), 0.5)
    with CheckpointManager(root, {"w": Weights()}) as manager:
        with pytest.raises(CorruptCheckpointError) as caught:
            manager.restore_latest()
    for name in committed(root):
        assert name in str(caught.value)
    assert "crc32c" in str(caught.value)


def test_restore_of_a_damaged_step_takes_no_other(root: Path) -> None:
    flip(one(root / NEWEST, "shard-*"), 0.5)
    weights = Weights()
    with CheckpointManager(root, {"w": weights}) as manager:
        with pytest.raises(CorruptCheckpointError, match="no other step"):
            manager.restore(3)
        with pytest.raises(CheckpointNotFoundError, match=r"\[1, 2, 3\]"):
            manager.restore(4)
        assert manager.restore(1).step == 1
        assert weights.value() == 1


def test_a_list_says_what_it_leaves_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where nothing is left in it: an empty list is what an empty root gives."""
    with CheckpointManager(root, {"w": Weights()}) as manager:
        manager.restore_latest()
        manager.save(4)
        manager.wait()
        flip(root / "000000000004-i0002" / "manifest.json", 0.5)
        assert [c.step for c in manager.checkpoints()] == [1, 2, 3, 4]  # which it has written itself
    caplog.clear()
    assert ckptflow.list_checkpoints(root) == []
    assert "not listed, since it cannot be read" in caplog.text
    assert "000000000004-i0002/manifest.json" in caplog.text
    assert "3 more exist" in caplog.text


def test_never_past_a_rollback(root: Path) -> None:
    """What a rollback cut off is not taken by itself, even where nothing else is left."""
    weights = Weights()
    with CheckpointManager(root, {"w": weights}) as manager:
        manager.rollback(1)
    for name in committed(root):
        if not name.startswith(NEWEST[:12]):
            flip(one(root / name, "shard-*"), 0.5)
    with CheckpointManager(root, {"w": weights}) as manager:
        with pytest.raises(CorruptCheckpointError, match=r"restore\(3\)"):
            manager.restore_latest()
        assert manager.restore(3).step == 3
        assert weights.value() == 3


def test_an_unknown_version_is_no_damage(root: Path) -> None:
    path = root / NEWEST / "manifest.json"
    manifest = decode(path.read_bytes(), Manifest, "test")
    newer = encode(manifest).replace(b'"version":1', b'"version":2', 1)
    path.write_bytes(reseal(newer))
    with CheckpointManager(root, {"w": Weights()}) as manager:
        with pytest.raises(UnknownVersionError, match="version 2"):
            manager.restore_latest()


def test_a_manifest_that_lies_with_a_right_checksum(root: Path) -> None:
    path = root / NEWEST / "manifest.json"
    original = path.read_bytes()
    for change in lies(json.loads(original)):
        path.write_bytes(reseal(json.dumps(change, separators=(",", ":")).encode()))
        weights = Weights()
        with CheckpointManager(root, {"w": weights}, read_only=True) as manager:
            restored = manager.restore_latest()
            assert restored is not None
            assert (restored.step, weights.value()) == (2, 2)


def lies(manifest: dict[str, object]) -> Iterator[dict[str, object]]:
    def edited(edit: Callable[[dict[str, list[dict[str, object]]]], object]) -> dict[str, object]:
        copy = json.loads(json.dumps(manifest))
        copy.pop("crc32c")
        edit(copy)
        return {**copy, "crc32c": manifest["crc32c"]}

    yield edited(lambda m: m["shards"][0].update(name="../000000000002-i0001/shard-00000-of-00001-0000.safetensors"))
    yield edited(lambda m: m["shards"][0].update(size_bytes=2**60))
    yield edited(lambda m: m["tensors"][0].update(shape=[2**40]))
    yield edited(lambda m: m["tensors"][0]["slices"][0].update(offset=0))  # type: ignore[index]
    yield edited(lambda m: m["tensors"][0]["slices"].clear())  # type: ignore[attr-defined]
    yield edited(lambda m: m["tensors"].append(m["tensors"][0]))
    yield edited(lambda m: m.update(surprise=[{}]))
    yield edited(lambda m: m.update(step=[{}]))


def reseal(sealed: bytes) -> bytes:
    import crc32c

    body = sealed[: -len(',"crc32c":"00000000"}')]
    return body + b',"crc32c":"%08x"}' % crc32c.crc32c(body)


def test_a_sealed_lie_about_sizes_takes_no_memory(root: Path) -> None:
    """A whole and rightly sealed manifest that claims a tensor of an exabyte: refused before memory is taken."""
    path = root / NEWEST / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["shards"][0]["size_bytes"] = 2**60
    manifest["tensors"][0].update(shape=[2**57 // 4])
    manifest["tensors"][0]["slices"] = [{"shard": 0, "offset": 2**20, "start": [0], "shape": [2**57 // 4], "crc32c": 0}]
    seal = manifest.pop("crc32c")
    path.write_bytes(reseal(json.dumps({**manifest, "crc32c": seal}, separators=(",", ":")).encode()))
    with ckptflow.open_checkpoint(root, 3) as checkpoint:
        name = manifest["tensors"][0]["name"]
        with pytest.raises(CorruptCheckpointError, match="the manifest says"):
            checkpoint[name]
