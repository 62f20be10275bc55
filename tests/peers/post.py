"""A post of this process, as TensorFlow's coordination service keeps one: and what it does when its process is away."""

from __future__ import annotations

import threading
import time

from ckptflow.peers.rounds import UnreachableError


class LocalPost:
    """Texts by key, for the threads of a test. `is_silent`: it takes nothing and gives nothing, as a stopped process;
    `is_refusing`: as one that has ended."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.is_silent = False
        self.is_refusing = False
        self._changed = threading.Condition()

    def put(self, key: str, text: str, timeout_s: float) -> bool:
        self._answer()
        if self.is_silent:
            time.sleep(min(timeout_s, 0.05))
            return False
        with self._changed:
            self.texts.setdefault(key, text)
            self._changed.notify_all()
        return True

    def get(self, key: str, timeout_s: float) -> str | None:
        self._answer()
        if self.is_silent:
            time.sleep(min(timeout_s, 0.05))
            return None
        with self._changed:
            self._changed.wait_for(lambda: key in self.texts, timeout_s)
            return self.texts.get(key)

    def forget(self, key: str) -> None:
        with self._changed:
            for each in [each for each in self.texts if each == key or each.startswith(f"{key}/")]:
                del self.texts[each]

    def _answer(self) -> None:
        if self.is_refusing:
            raise UnreachableError("refused")
