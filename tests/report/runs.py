"""Runs on a disk to make pages of: real saves of several lives, to which something happened, at known times."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.retention import Policy
from ckptflow.format.layout import Folder, pin_key
from ckptflow.format.manifest import Claim, Manifest, Timing, decode, encode
from ckptflow.report.gather import read_run
from ckptflow.report.run import Run
from ckptflow.storage.opening import open_store
from tests.roots import Life, sample_arrays

NOW = datetime(2026, 10, 2, 12, tzinfo=UTC)
FIRST = datetime(2026, 10, 1, 8, tzinfo=UTC)
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def look(root: str | Path, *policies: Policy, now: datetime = NOW) -> Run:
    """What the page of `root` is made of."""
    store = open_store(str(root))
    try:
        return read_run(store, Summaries(store, is_for_show=True), policies, now=now)
    finally:
        store.close()


def eventful(root: str | Path, name: str = "val_loss", prefix: str = "") -> None:
    """Six lives: a start, a resume, a fall back past damage, one that saved nothing, a resume that was cut off within a
    save, and a rollback, whose second save is under way. Step 300 is pinned, and a shard of step 100 is gone.

    An hour lies between starts, ten minutes between saves. `name` is a metric's; `prefix` goes before tensors' names.
    """
    store, root = open_store(str(root)), Path(root)
    arrays = {f"{prefix}{key}": array for key, array in sample_arrays(1).items()}

    def save(life: Life, *steps: int, **how: Any) -> None:
        for step in steps:
            life.save(step, arrays, metrics={name: 100 / step, "accuracy": 1 - 20 / step}, **how)

    save(Life(store), 50, 100, 150, 200, 250, 300)
    store.put(pin_key(Folder(300, 1)), memoryview(b"pinned\n"))
    save(Life(store), 400, 500)
    damaged = root / Folder(500, 2).manifest_key
    damaged.write_bytes(damaged.read_bytes()[:-40])
    save(Life(store), 400, 450)
    Life(store)
    cut_off = Life(store)
    save(cut_off, 480)
    save(cut_off, 490, commit=False)
    rolled_back = Life(store, step=200)
    save(rolled_back, 200)
    save(rolled_back, 250, commit=False)
    store.close()
    os.unlink(next((root / str(Folder(100, 1))).glob("shard-*")))
    retime(root)


def retime(root: Path, *, host: str = "worker-0.example") -> None:
    """Gives claims and manifests known times, as if each save took its step in milliseconds and held training up for a
    hundredth of that; those of the first life have none, as an earlier version wrote them."""
    for path in sorted(root.glob("lineage/*.json")):
        claim = decode(path.read_bytes(), Claim, str(path))
        at = FIRST + timedelta(hours=claim.number - 1)
        path.write_bytes(encode(msgspec.structs.replace(claim, created_at=at.isoformat(), host=host, pid=42)))
    order: dict[int, int] = {}
    for path in sorted(root.glob("*/manifest.json")):
        try:
            manifest = decode(path.read_bytes(), Manifest, str(path))
        except ValueError:
            continue
        number = manifest.incarnation
        order[number] = order.get(number, 0) + 1
        at = FIRST + timedelta(hours=number - 1, minutes=10 * order[number])
        took_s = manifest.step / 1000
        changes: dict[str, Any] = {"created_at": at.isoformat(), "began_at": None, "timings": ()}
        if number > 1:
            changes["began_at"] = (at - timedelta(seconds=took_s)).isoformat()
            changes["timings"] = (Timing(blocked_s=took_s / 100, write_s=took_s / 2),)
        path.write_bytes(encode(msgspec.structs.replace(manifest, **changes)))


def hostile(root: str | Path) -> None:
    """An eventful run in which every name that comes from storage is markup."""
    eventful(root, name=EVIL, prefix=EVIL)
    retime(Path(root), host=EVIL)
