"""Which settings are tried: pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptflow.job.arguments import DEFAULT_MEMORY_BUDGET_BYTES, default_shard_bytes

MIB = 2**20
TENSOR_BYTES = 16 * MIB
HEADER_ROOM_BYTES = 2**16  # beside whole tensors in a shard, so that none is cut for the header's sake
_DEFAULT = 0  # a concurrency that nobody has set
_CONCURRENCIES = {False: (1, 2, 4), True: (4, 8, 16, 32)}
_SHARD_MIB = {False: (16, 64, 128), True: (8, 16, 64)}


def whole_tensors(size_bytes: int) -> int:
    """The bytes of as many tensors as hold so much."""
    return -(-size_bytes // TENSOR_BYTES) * TENSOR_BYTES


@dataclass(frozen=True, order=True, slots=True)
class Setting:
    """What is adjustable: how many shards are under way at once, and how long each is at most.

    `budget_bytes` is what the defaults may take; any other setting takes what it needs.
    """

    concurrency: int
    shard_bytes: int
    budget_bytes: int = DEFAULT_MEMORY_BUDGET_BYTES

    @property
    def is_default(self) -> bool:
        """What a manager does that is told at most its budget: on a disk two at once, on an object store what pays."""
        return self.concurrency == _DEFAULT

    @property
    def given_concurrency(self) -> int | None:
        """The argument of a manager; None if it is left out."""
        return None if self.is_default else self.concurrency

    @property
    def memory_bytes(self) -> int:
        """The budget that it takes: one more shard is packed while the others are under way."""
        return self.budget_bytes if self.is_default else (self.concurrency + 1) * self.shard_bytes

    @property
    def under_way_bytes(self) -> int:
        """What a state has at least to have, for so many shards of that size to be under way at once."""
        return self.concurrency * (self.shard_bytes - HEADER_ROOM_BYTES)

    def __str__(self) -> str:
        if self.is_default:
            return f"the defaults with {self.budget_bytes // MIB} MiB" if self.has_less_memory else "the defaults"
        return f"{self.concurrency} at once of {self.shard_bytes // MIB} MiB"

    @property
    def has_less_memory(self) -> bool:
        """Whether these are the defaults with a smaller budget than theirs."""
        return self.is_default and self.budget_bytes < DEFAULT_MEMORY_BUDGET_BYTES


def default_setting(*, is_object_store: bool, memory_bytes: int = DEFAULT_MEMORY_BUDGET_BYTES) -> Setting:
    """What all others are compared with: what a manager does with its usual budget, or with so much if that is less."""
    budget_bytes = min(DEFAULT_MEMORY_BUDGET_BYTES, memory_bytes)
    shard_bytes = default_shard_bytes(is_object_store=is_object_store, memory_budget_bytes=budget_bytes)
    return Setting(_DEFAULT, shard_bytes, budget_bytes)


def settings(
    *,
    is_object_store: bool,
    memory_bytes: int,
    concurrencies: Sequence[int] = (),
    shard_mib: Sequence[int] = (),
) -> tuple[list[Setting], list[Setting]]:
    """What to try, and what would take more memory than that; the defaults, and those of a grid or those given.

    The defaults come first, which take no more than they may; then what stands in the middle: where time runs out, the
    ends are what is left.
    """
    grid = [
        Setting(concurrency, mib * MIB + HEADER_ROOM_BYTES)
        for concurrency in dict.fromkeys(concurrencies or _CONCURRENCIES[is_object_store])
        for mib in dict.fromkeys(shard_mib or _SHARD_MIB[is_object_store])
    ]
    middle = Setting(16, 8 * MIB + HEADER_ROOM_BYTES) if is_object_store else Setting(2, 64 * MIB + HEADER_ROOM_BYTES)
    grid.sort(key=lambda setting: (_distance(setting, middle), setting))
    fitting = [setting for setting in grid if setting.memory_bytes <= memory_bytes]
    usual = default_setting(is_object_store=is_object_store, memory_bytes=memory_bytes)
    return [usual, *fitting], [setting for setting in grid if setting not in fitting]


def _distance(setting: Setting, middle: Setting) -> float:
    """How many doublings away."""
    ratios = (setting.concurrency / middle.concurrency, setting.shard_bytes / middle.shard_bytes)
    return sum(max(ratio, 1 / ratio) for ratio in ratios)
