"""The real rounds of messages over a post in virtual time. Of many workers some are real, the others say the same."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from benchmarks.scale.kernel import Kernel, Signal
from benchmarks.scale.model import Network
from ckptflow.peers.post import Put
from ckptflow.peers.rounds import Rounds
from ckptflow.peers.watch import Answer, Peer, Watch

_LIMIT_S = 36_000.0


class PostOffice:
    """The texts in worker 0's process. `real`: the workers that run, in order; each other one says what the real one
    before it says, at the same time."""

    def __init__(self, kernel: Kernel, network: Network, world_size: int, real: Sequence[int]) -> None:
        self.kernel = kernel
        self.network = network
        self.world_size = world_size
        self.real = real
        self.texts: dict[str, str] = {}
        self.sent_bytes = 0  # by worker 0's link, both ways
        self.rounds = 0
        self._signals: dict[str, Signal] = {}

    def signal(self, key: str) -> Signal:
        return self._signals.setdefault(key, Signal())

    def leave(self, key: str, text: str) -> bool:
        """Whether it was the first under this key."""
        if key in self.texts:
            return False
        self.texts[key] = text
        self.kernel.set(self.signal(key))
        return True

    def copies(self, worker: int) -> range:
        """The workers that say what this real one says, itself first."""
        at = bisect.bisect_right(self.real, worker)
        return range(worker, self.real[at] if at < len(self.real) else self.world_size)

    def forget(self, key: str) -> None:
        for each in [each for each in self.texts if each.startswith(f"{key}/")]:
            del self.texts[each]
            self._signals.pop(each, None)


class Box:
    """One worker's way to the post office, as `peers.post.Post`."""

    def __init__(self, office: PostOffice, worker: int) -> None:
        self._office = office
        self._worker = worker

    def put(self, key: str, text: str, timeout_s: float) -> Put:
        office, topic = self._office, key.rpartition("/")[0]
        if key == f"{topic}/{self._worker}":
            if self._worker:
                office.kernel.sleep(office.network.latency_s)
            for copy in office.copies(self._worker):
                office.leave(f"{topic}/{copy}", text)
            office.sent_bytes += len(office.copies(self._worker)) * len(text)
            return Put.WRITTEN
        if not office.leave(key, text):
            return Put.EXISTED
        office.rounds += 1
        office.sent_bytes += (office.world_size - 1) * len(text)
        return Put.WRITTEN

    def get(self, key: str, timeout_s: float) -> str | None:
        office, network = self._office, self._office.network
        if not office.kernel.wait(office.signal(key), timeout_s):
            return None
        text = office.texts[key]
        if self._worker == 0:  # it takes in one after the other
            office.kernel.sleep(network.message_s + len(text) / network.link_bytes_per_s)
        else:  # its place among those to whom it is given out
            each_s = network.message_s + len(text) / network.link_bytes_per_s
            office.kernel.sleep(network.latency_s + self._worker * each_s)
        return text

    def look(self, key: str, timeout_s: float) -> str | None:
        return self._office.texts.get(key)

    def replace(self, key: str, text: str) -> None:
        pass

    def forget(self, key: str) -> None:
        self._office.forget(key)


class Member:
    """A worker, as a `Team`."""

    is_lost = False
    carries_much = True

    def __init__(self, office: PostOffice, worker: int) -> None:
        peers = [Peer(f"/job:worker/task:{number}", f"host{number}:1") for number in range(office.world_size)]
        clock = office.kernel.monotonic
        watch = Watch(peers, lambda peer, timeout_s: Answer.HERE, _LIMIT_S, clock)
        self.worker, self.world_size = worker, office.world_size
        self._rounds = Rounds(Box(office, worker), worker, peers, watch, _LIMIT_S)
        self._numbers = itertools.count()

    @property
    def is_chief(self) -> bool:
        return self.worker == 0

    def exchange(self, message: bytes, call: str) -> list[bytes]:
        number = next(self._numbers)
        found = self._rounds.gather(f"round/{number}", message, call, limit_s=_LIMIT_S)
        if self.is_chief and number:
            self._rounds.forget(f"round/{number - 1}")
        return found

    def working(self, doing: str) -> AbstractContextManager[None]:
        return nullcontext()

    def part(self) -> None:
        pass

    def leave(self, call: str, error: BaseException) -> None:
        pass
