"""One peer's process: does a round whenever it is told to, and prints what it measured as a line of JSON.

    python -m benchmarks.process benchmarks.peers.ours:Ckptflow '{"url": …, "size_bytes": …, …}'

Peers live beside each other and take turns, because a disk's speed drifts by a factor of two within minutes: what is
compared has been measured within the same seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from benchmarks.meters import Memory, drop_from_page_cache, metered
from benchmarks.peers.base import Peer, Point


def main() -> None:
    target, text = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints goes elsewhere
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    point = Point(**json.loads(text))
    if point.storage == "local":
        os.makedirs(point.url, exist_ok=True)
    peer = getattr(importlib.import_module(module), name)(point)

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    memory = Memory()
    answer(note=peer.note, is_limit=peer.is_limit)
    for line in sys.stdin:
        if line.strip() == "close":
            break
        answer(**do_round(peer, point, int(line), memory))
    peer.prove()
    peer.close()
    answer()


def do_round(peer: Peer, point: Point, number: int, memory: Memory) -> dict[str, float]:
    """Change, save, spoil, restore from cold and from warm, and check. A peer that measures by itself does so.

    Memory is counted above what the process held before its first save: the model, and no pool or copy of anything.
    """
    if (found := peer.measure(number)) is not None:
        return found
    peer.change()
    memory.begin()
    with metered() as save:
        peer.save(number)
        blocked_s = save.lap()
        peer.finish()
    peer.tidy()
    peer.spoil()
    measures: dict[str, float] = {
        "blocked_s": blocked_s,
        "durable_s": save.wall_s,
        "save_cpu_s": save.cpu_s,
        "peak_save_bytes": memory.above(save.peak_bytes),
    }
    if point.storage == "local":
        drop_from_page_cache(point.url)
        with metered() as cold:
            peer.restore()
        peer.check()
        peer.spoil()
        measures |= {
            "restore_cold_s": cold.wall_s,
            "restore_cpu_s": cold.cpu_s,
            "peak_restore_bytes": memory.above(cold.peak_bytes),
        }
    with metered() as warm:
        peer.restore()
    peer.check()
    measures["restore_warm_s"] = warm.wall_s
    if "restore_cpu_s" not in measures:
        measures |= {"restore_cpu_s": warm.cpu_s, "peak_restore_bytes": memory.above(warm.peak_bytes)}
    if peer.is_limit:  # memory that it has once is no measure of anything, and it blocks nobody
        for name in ("blocked_s", "peak_save_bytes", "peak_restore_bytes"):
            del measures[name]
    return {**measures, **peer.counters()}


if __name__ == "__main__":
    main()
