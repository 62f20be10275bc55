"""Memory for a manifest follows the bytes that come."""

from __future__ import annotations

from ckptflow.errors import CorruptCheckpointError
from ckptflow.storage.again import read_record, read_small
from ckptflow.testing import MemoryStore


def test_no_step_takes_much_more_than_what_is_there() -> None:
    store, asked = MemoryStore({"a": bytes(40 * 2**20)}), list[int]()
    get = store.get

    def noting(key: str, into: memoryview, start: int = 0) -> int:
        asked.append(len(into))
        return get(key, into, start)

    store.get = noting  # type: ignore[method-assign]
    assert len(read_small(store, "a", 256 * 2**20)) == 40 * 2**20
    assert max(asked) < 20 * 2**20


def test_what_comes_after_the_end_does_not_count() -> None:
    store = MemoryStore({"a": bytes(6 * 2**20) + b"\n" + bytes(4 * 2**20)})
    assert read_small(store, "a", 7 * 2**20, b"\n") == bytes(6 * 2**20)


def test_too_long_and_empty_are_two_answers() -> None:
    """What is wrong in two ways says nothing of what is stored."""
    answers = [b"x" * 100, b"", b"right"]

    def change(verb: str, key: str) -> None:
        if verb == "get" and answers:
            store.objects["a"] = answers.pop(0)

    store = MemoryStore(hook=change)

    def decode(data: bytes) -> str:
        if data != b"right":
            raise CorruptCheckpointError("wrong")
        return "right"

    assert read_record(store, "a", 10, decode) == "right"
