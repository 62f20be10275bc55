"""A post of this process, as TensorFlow's coordination service keeps one: and what it does when its process is away."""

from __future__ import annotations

import threading
import time

from ckptflow.peers.post import Put, UnreachableError


class LocalPost:
    """Texts by key, for the threads of a test. `is_silent`: it takes nothing and gives nothing, as a stopped process;
    `is_refusing`: as one that has ended; `reply_s`: how long each reply takes to come."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.is_silent = False
        self.is_refusing = ""
        self.reply_s = 0.0
        self._changed = threading.Condition()

    def put(self, key: str, text: str, timeout_s: float) -> Put:
        if not self._answers(timeout_s):
            return Put.UNKNOWN
        with self._changed:
            is_there = key in self.texts
            self.texts.setdefault(key, text)
            self._changed.notify_all()
        return Put.EXISTED if is_there else Put.WRITTEN

    def get(self, key: str, timeout_s: float) -> str | None:
        return self._wait_for(key, timeout_s) if self._answers(timeout_s) else None

    def look(self, key: str, timeout_s: float) -> str | None:
        if self.reply_s > timeout_s:  # it is there, and nobody waits until that is known
            time.sleep(timeout_s)
            return None
        return self._wait_for(key, timeout_s) if self._answers(timeout_s) else None

    def replace(self, key: str, text: str) -> None:
        with self._changed:
            self.texts[key] = text
            self._changed.notify_all()

    def forget(self, key: str) -> None:
        with self._changed:
            for each in [each for each in self.texts if each == key or each.startswith(f"{key}/")]:
                del self.texts[each]

    def _wait_for(self, key: str, timeout_s: float) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self.texts, timeout_s)
            return self.texts.get(key)

    def _answers(self, timeout_s: float) -> bool:
        if self.is_refusing:
            raise UnreachableError(self.is_refusing)
        if self.is_silent:
            time.sleep(min(timeout_s, 0.05))
            return False
        time.sleep(self.reply_s)
        return True
