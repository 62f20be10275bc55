"""Four real worker processes on one machine: equal shares of the bytes, written and read, and the price list."""

from __future__ import annotations

import json
from pathlib import Path

from ckptflow.format.layout import MANIFEST_NAME, Folder
from ckptflow.format.manifest import LINE_END, Manifest, Receipt, decode, decode_digests
from tests.processes import run_workers
from tests.speed.stores import kind_of

WORLD_SIZE = 4


def test_four_workers(tmp_path: Path) -> None:
    root = tmp_path / "root"
    results = run_workers("tests.speed.workers:save_and_restore", WORLD_SIZE, env={"ROOT": str(root)})
    found = [json.loads(result.output.splitlines()[-1]) for result in results]

    folder = root / str(Folder(2, 1))
    lines = [path.read_bytes().split(LINE_END) for path in sorted(folder.glob("receipt-*"))]
    receipts = [decode(line, Receipt, "receipt") for line, _ in lines]
    alike = [decode_digests(LINE_END.join(each), receipt, "") for each, receipt in zip(lines, receipts, strict=True)]
    assert all(each == alike[0] and len(each) == 20 for each in alike)  # the small ones
    written = [sum(shard.size_bytes for shard in receipt.shards) for receipt in receipts]
    assert written == [sum(file.stat().st_size for file in folder.glob(f"shard-{worker:05d}-*"))
                       for worker in range(WORLD_SIZE)]  # fmt: skip
    quarter = sum(written) / WORLD_SIZE
    assert all(abs(size_bytes - quarter) <= 0.05 * quarter for size_bytes in written), written

    manifest = decode((folder / MANIFEST_NAME).read_bytes(), Manifest, "manifest")
    calls = [[(verb, kind_of(key)) for verb, key in each["save"]] for each in found]
    for worker, made in enumerate(calls):
        own = len(receipts[worker].shards)
        written_kinds = [call for call in made if call[0] in ("put", "create")]
        commit = [("create", "manifest")] if worker == 0 else []
        assert sorted(written_kinds) == sorted([("put", "shard")] * own + [("put", "receipt")] + commit)
        others = set(made) - set(written_kinds)
        assert others == ({("get", "receipt"), ("list", "lineage/"), ("get", "claim")} if worker == 0 else set())
    writes = sum(call[0] in ("put", "create") for made in calls for call in made)
    assert writes == len(manifest.shards) + WORLD_SIZE + 1
    assert calls[0].count(("list", "lineage/")) == 1

    needed = sum(tensor.size_bytes for tensor in manifest.tensors)
    assert needed <= sum(each["read_bytes"] for each in found) <= 1.05 * needed  # all of them together
    assert all(each["peer_bytes"] >= 0.7 * needed for each in found)
