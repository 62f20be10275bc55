"""What a storage can hold while it is explored, what each call does to it, and which faults may still come."""

from __future__ import annotations

from typing import NamedTuple

from tests.protocol.process import VERSION, Op, Result, bytes_of

Content = dict[str, bytes]


class Budget(NamedTuple):
    """How many of each fault may still happen."""

    lost: int = 0  # creates whose reply is lost
    timeouts: int = 0  # reads of a shard that time out
    damages: int = 0  # shards or manifests whose bytes go wrong
    rollbacks: int = 0
    trims: int = 0  # claims below the newest that are removed
    empties: int = 0  # times that everything below the root is deleted by hand
    losses: int = 0  # times that lineage/ is
    lapses: int = 0  # times that the newest claim alone is
    blanks: int = 0  # listings that are answered as if nothing were there
    unreadable: int = 0  # manifests whose bytes go wrong
    lacks: int = 0  # listings of a prune or a sweep that lack every manifest
    replaced: int = 0  # shards that another file of that size is put in the place of
    refusals: int = 0  # copies that are refused, or whose reply is lost


class Storage:
    """All contents met, interned; what each call does to each."""

    def __init__(self) -> None:
        self._ids: dict[frozenset[tuple[str, bytes]], int] = {}
        self.contents: list[Content] = []
        self._lists: dict[tuple[int, Op], Result] = {}
        self._writes: dict[tuple[int, str, bytes | None], int] = {}

    def intern(self, content: Content) -> int:
        key = frozenset(content.items())
        if key not in self._ids:
            self._ids[key] = len(self.contents)
            self.contents.append(content)
        return self._ids[key]

    def write(self, content: int, key: str, data: bytes | None) -> int:
        """The content after `key` holds `data`; None deletes it."""
        memo = (content, key, data)
        if memo not in self._writes:
            after = dict(self.contents[content])
            if data is None:
                after.pop(key, None)
            else:
                after[key] = data
            self._writes[memo] = self.intern(after)
        return self._writes[memo]

    def damage(self, content: int, key: str) -> tuple[int, frozenset[str]]:
        """The content with other bytes in a file, under all its names, and the folders in which these are."""
        before = self.contents[content]
        data, _, version = before[key].partition(VERSION)
        names = {k for k, v in before.items() if version and v.partition(VERSION)[2] == version} or {key}
        bad = b"?" * len(data) + (VERSION + version if version else b"")
        after = self.intern(before | dict.fromkeys(names, bad))
        return after, frozenset(name.partition("/")[0] for name in names)

    def list(self, content: int, op: Op) -> Result:
        memo = (content, op)
        if memo not in self._lists:
            _, prefix, after, pages = op
            inside = {k: v for k, v in self.contents[content].items() if k.startswith(prefix) and k > after}
            found = sorted((k, len(bytes_of(v))) for k, v in inside.items())
            self._lists[memo] = Result(tuple(found[:pages] if pages else found))
        return self._lists[memo]
