"""What receipts add up to, beyond one tensor that all have: copies that differ, and what is each worker's own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ckptflow.commit.assembly import Draft, assemble, refuse_receipt
from ckptflow.commit.resume import Start
from ckptflow.errors import SaveFailedError
from ckptflow.format.failure import Failure
from ckptflow.format.manifest import Receipt, ReceiptSlice, TensorRecord
from tests.commit.reports import FOLDER, HELD, WORLD_SIZE, draft, receipt

FULL = Failure(kind="StorageFullError", message="disk full")


@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        ({}, None),
        ({"folder": f"{FOLDER}-r2"}, "worker 1's receipt is not of this save"),
        ({"writer_id": "another"}, "worker 1's receipt is not of this save"),
        ({"worker": 2}, "worker 1's receipt is not of this save"),
        ({"world_size": WORLD_SIZE + 1}, "worker 1's receipt is not of this save"),
        ({"failure": FULL}, "worker 1 could not save: StorageFullError: disk full"),
        ({"failure": FULL, "writer_id": "another"}, "worker 1's receipt is not of this save"),
    ],
)
def test_which_receipts_are_of_a_save(change: dict[str, Any], why_not: str | None) -> None:
    assert refuse_receipt(draft(), HELD, msgspec.structs.replace(receipt(1), **change), 1) == why_not


def test_a_tensor_of_several_writers_that_has_diverged_is_not_committed() -> None:
    receipts = [
        msgspec.structs.replace(receipt(w), digests={"value": 1 if w != 2 else 2, "other": 7})
        for w in range(WORLD_SIZE)
    ]
    with pytest.raises(SaveFailedError, match="workers hold different values of value, which training keeps equal"):
        assemble(draft(), receipts, Start(HELD), HELD, "root")
    agreed = [msgspec.structs.replace(each, digests={"value": 1}) for each in receipts]
    assert assemble(draft(), agreed, Start(HELD), HELD, "root").diverged == ()


def test_a_copy_that_is_not_the_chiefs_is_not_committed_as_the_chiefs() -> None:
    """One worker, not the chief, wrote the whole tensor."""
    tensor = TensorRecord(name="value", dtype="uint8", shape=(8,), slices=())
    receipts = [
        msgspec.structs.replace(receipt(w), shards=(), slices=(), digests={"value": w}) for w in range(WORLD_SIZE)
    ]
    receipts[1] = msgspec.structs.replace(receipt(1, start=0), digests={"value": 5})
    with pytest.raises(SaveFailedError, match="different values of value"):
        assemble(Draft(FOLDER, WORLD_SIZE, (tensor,)), receipts, Start(HELD), HELD, "root")


def own_receipt(worker: int, name: str, value: str | None = None) -> Receipt:
    tensor = TensorRecord(name=name, dtype="uint8", shape=(8,), slices=())
    piece = ReceiptSlice(tensor=name, shard=0, offset=0, start=(0,), shape=(8,), crc32c=1)
    python = {f"data/worker-{worker}": value} if value else {}
    return msgspec.structs.replace(receipt(worker), slices=(piece,), tensors=(tensor,), python_state=python)


def own_draft() -> Draft:
    tensor = TensorRecord(name="data/worker-0/position", dtype="uint8", shape=(8,), slices=())
    return Draft(FOLDER, WORLD_SIZE, (tensor,), python_state={"data/worker-0": "a", "clock": 1}, per_worker=("data",))


def test_what_workers_have_for_themselves_comes_together() -> None:
    receipts = [own_receipt(worker, f"data/worker-{worker}/position", "abc"[worker]) for worker in range(WORLD_SIZE)]
    receipts[0] = msgspec.structs.replace(receipts[0], tensors=(), python_state={})  # the chief's are in its draft
    manifest = assemble(own_draft(), receipts, Start(HELD), HELD, "root")
    assert [tensor.name for tensor in manifest.tensors] == [f"data/worker-{w}/position" for w in range(WORLD_SIZE)]
    assert [tensor.slices[0].shard for tensor in manifest.tensors] == [0, 1, 2]
    assert manifest.python_state == {"clock": 1, "data/worker-0": "a", "data/worker-1": "b", "data/worker-2": "c"}
    assert manifest.per_worker == ("data",)


@pytest.mark.parametrize("name", ["data/worker-1/position", "data/worker-21", "model/kernel", "data"])
def test_a_worker_gives_nothing_under_anothers_name(name: str) -> None:
    receipts = [own_receipt(0, "data/worker-0/position"), receipt(1), own_receipt(2, name)]
    receipts[0] = msgspec.structs.replace(receipts[0], tensors=())
    with pytest.raises(SaveFailedError, match=f"worker 2 has '{name}' for itself"):
        assemble(own_draft(), receipts, Start(HELD), HELD, "root")
