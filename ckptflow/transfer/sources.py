"""Where a save need not send a shard, since an earlier checkpoint holds it: what is known of that, and the copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, ShardRecord


@dataclass(frozen=True, slots=True)
class Earlier:
    """A shard of an earlier checkpoint: its key, what the manifest says of it, and the crc32c of each slice in it, in
    the file's order, where they are known."""

    key: str
    record: ShardRecord
    checksums: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """The shards of one earlier checkpoint that may be copied.

    `proved`: by the name of a planned shard, what is known to be the same. `by_content`: by size and xxh3-128, what is
    the same as a packed shard of that size and hash.
    """

    proved: Mapping[str, Earlier] = field(default_factory=dict)
    by_content: Mapping[tuple[int, str], Earlier] = field(default_factory=dict)


NO_SOURCES = Sources()


def shards_by_content(folder: Folder, manifest: Manifest) -> dict[tuple[int, str], Earlier]:
    """The shards of a checkpoint that can be copied, whoever wrote them, by size and xxh3-128."""
    return {
        (record.size_bytes, record.content): Earlier(folder.key(record.name), record)
        for record in manifest.shards
        if record.content is not None and record.version is not None
    }
