"""What the reader gives to other workers and gets of them, where something of it came wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.ranges import plan_ranges
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.sharing import Division
from tests.transfer.helpers import FOLDER, ArraySource, ArrayTarget, DictStore, arrays_for, same_bits, write_checkpoint

BUFFER_BYTES = 2**14
SPECS = [TensorSpec("t", "float32", (15_000,))]  # of several buffers


@dataclass
class Others:
    """Other workers, who take nothing before the end, and give what is stored, but for one range."""

    division: Division
    store: DictStore
    manifest: Manifest
    wrong: int = -1
    lent: list[tuple[memoryview, bytes, Callable[[], None]]] = field(default_factory=list)
    distrusted: list[int] = field(default_factory=list)

    def pull(self, number: int, into: memoryview, is_stopped: Callable[[], bool]) -> bool:
        each = self.division.others[number]
        into[:] = self.store.objects[FOLDER.key(self.manifest.shards[each.shard].name)][each.begin : each.end]
        if number == self.wrong:
            into[-1] ^= 1
        return True

    def distrust(self, number: int, why: str) -> None:
        self.distrusted.append(number)

    def lend(self, number: int, view: memoryview, give_back: Callable[[], None]) -> None:
        self.lent.append((view, bytes(view), give_back))

    def advance(self) -> None:
        pass

    def press(self) -> None:
        pass

    def look(self) -> None:
        assert all(bytes(view) == before for view, before, _ in self.lent)


class OnceWrong(DictStore):
    """The first answer has another last byte."""

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = super().get(key, into, start)
        if len(self.gets) == 1:
            into[count - 1] ^= 1
        return count


@pytest.mark.parametrize("pulled", [False, True])
def test_a_part_that_came_wrong_is_read_again_aside_and_only_who_gave_it_is_blamed(pulled: bool) -> None:
    store = DictStore() if pulled else OnceWrong()
    arrays = arrays_for(SPECS)
    manifest = write_checkpoint(store, [ArraySource(SPECS, arrays)], shard_bytes=2**17)
    store.gets.clear()
    ranges = plan_ranges(manifest, [(0, piece) for piece in manifest.tensors[0].slices], BUFFER_BYTES)
    pool = BufferPool((len(ranges) + 1) * BUFFER_BYTES, BUFFER_BYTES)
    division = Division((), ranges, 1) if pulled else Division(ranges, (), pool.count)
    others = Others(division, store, manifest, wrong=1)
    target = ArrayTarget(manifest)
    read_tensors(store, FOLDER, manifest, [Wanted(0)], target, pool, look=others.look, sharing=others)
    assert same_bits(target.arrays["t"], arrays[0])
    assert others.distrusted == ([1] if pulled else [])
    others.look()
    assert len(others.lent) == (0 if pulled else len(ranges))
