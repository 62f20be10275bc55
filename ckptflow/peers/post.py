"""Where workers leave short texts for one another, as `peers.service.Service` keeps them."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class UnreachableError(Exception):
    """The process that keeps the texts has ended, or does not answer."""


class Put(Enum):
    """What became of a text that was to be written."""

    WRITTEN = "written"
    EXISTED = "there was one, and it stays"
    UNKNOWN = "it may be written later"


class SignPost(Protocol):
    """Where signs are left. `look` raises `UnreachableError`."""

    def look(self, key: str, timeout_s: float) -> str | None: ...
    def replace(self, key: str, text: str) -> None: ...


class Post(SignPost, Protocol):
    """Where messages are left. Each of these may raise `UnreachableError`.

    `put` writes a key once; called again for a key that is under way, it waits on. `get` is for what is waited for,
    asked again and again; `look` for what is there or not.
    """

    def put(self, key: str, text: str, timeout_s: float) -> Put: ...
    def get(self, key: str, timeout_s: float) -> str | None: ...
    def forget(self, key: str) -> None: ...
